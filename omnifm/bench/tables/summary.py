"""Where OmniFM wins, ties and loses: one line per federation, from tables that exist already.

The rival is the best *matched* baseline of each federation.  It is chosen by the same scores that it is compared on, so
the choice favours the rival.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omnifm.bench.tables.markdown import grid
from omnifm.bench.tables.page import main_metric, versus
from omnifm.bench.tables.records import Column, Scores
from omnifm.bench.tables.scores import paired
from omnifm.report.numbers import NONE, counted, number

MATCHED = " (matched)"
"""End of the names of baselines with OmniFM's own head and suffix."""
VERDICTS = ("wins", "ties", "loses")


@dataclass
class Line:
    """One federation.

    Attributes:
        means: contender or matched baseline -> mean score in words, the best baseline in bold.
        difference: to the best baseline, with its interval.
        worst: score at the worst site, of the baseline and of the contender.
        verdict: one of `VERDICTS`, or a dash.
        ahead: whether the contender's mean is better.
        worse: whether its worst site is worse by more than half the interval.
    """

    federation: str
    metric: str
    seeds: int
    means: dict[str, str]
    difference: str = NONE
    worst: str = NONE
    verdict: str = NONE
    ahead: bool = False
    worse: bool = False


def summary_table(files: Sequence[Path], contender: str) -> str:
    """A Markdown table of the contender beside the matched baselines, and how often it leads.

    A federation has no verdict if the contender or a matched baseline has no score, or if there is only one seed.
    Synthetic demo data are left out.  The text below the table names the federations that are not counted.

    Args:
        files: JSON of `omnifm bench tables`.
        contender: the row that is compared with the best matched baseline.

    Raises:
        ValueError: a file is not such a table, or lacks the contender or any matched baseline; a federation is given
            twice; or all are demo data.
    """
    found = [(name, column) for file in files for name, column in _columns(file, contender)]
    if twice := [name for name, count in Counter(name for name, _ in found).items() if count > 1]:
        raise ValueError(f"tables must be of different federations; {twice[0]!r} is given twice")
    demo = [name for name, column in found if column.get("source") == "demo"]
    if len(demo) == len(found):
        raise ValueError("tables must be of real data; all are of synthetic demo data")
    lines = [line(name, column, contender) for name, column in found if name not in demo]
    said = _totals(lines, contender)
    if demo:
        said.append(f"Left out, synthetic demo data: {', '.join(demo)}.")
    return "\n".join([*_grid(lines, contender), "", *said]) + "\n"


def _grid(lines: Sequence[Line], contender: str) -> list[str]:
    baselines = list(dict.fromkeys(name for row in lines for name in row.means if name.endswith(MATCHED)))
    heads = [
        *("federation", "metric", "seeds"),
        *(name.removesuffix(MATCHED) for name in baselines),
        *(contender, "difference [95 % CI]", "worst site", "verdict"),
    ]
    cells = []
    for row in lines:
        means = [row.means.get(name, "") for name in (*baselines, contender)]
        cells.append([row.federation, row.metric, str(row.seeds), *means, row.difference, row.worst, row.verdict])
    return grid(heads, cells)


def _totals(lines: Sequence[Line], contender: str) -> list[str]:
    """How often the contender wins, ties and loses, and which federations are not counted."""
    judged = [row for row in lines if row.verdict in VERDICTS]
    total = ", ".join(f"{word} {sum(row.verdict == word for row in judged)}" for word in VERDICTS)
    ahead, worse = sum(row.ahead for row in judged), sum(row.worse for row in judged)
    said = [
        f"{contender}, {counted(len(judged), 'federation')}: {total}; ahead in mean on {ahead}, worst site worse "
        f"by more than half the interval on {worse}."
    ]
    if unjudged := [row.federation for row in lines if row.verdict not in VERDICTS]:
        said.append(f"Not counted, for want of a score or of a second seed: {', '.join(unjudged)}.")
    return said


def line(federation: str, column: Column, contender: str) -> Line:
    """Compare the contender with the best matched baseline of one federation."""
    metric = main_metric(column)
    sign = 1 if column["metrics"][metric] else -1
    scores: dict[str, Scores] = {
        name: row[metric]["after"]
        for name, row in column["rows"].items()
        if name == contender or name.endswith(MATCHED)
    }
    means = {name: number(score["mean"]) for name, score in scores.items()}
    means |= {name: "failed" for name in column["failed"] if name == contender or name.endswith(MATCHED)}
    row = Line(federation, metric, column["seeds"], means)
    defined = {name: sign * score["mean"] for name, score in scores.items() if score["mean"] is not None}
    if len(defined) < len(means):
        return row
    best = max((name for name in defined if name != contender), key=defined.__getitem__)
    means[best] = f"**{means[best]}**"
    _judge(row, scores[contender], scores[best], sign)
    return row


def _judge(row: Line, mine: Scores, other: Scores, sign: int) -> None:
    """Fill in the difference and, if there is an interval, the verdict.

    Args:
        sign: 1 if higher is better, else -1.
    """
    told = paired(np.array(mine["values"], float), np.array(other["values"], float))
    row.difference = versus({"against_rival": told})
    row.worst = f"{number(other['worst_site'])} → {number(mine['worst_site'])}"
    if told["low"] is None or told["high"] is None or told["difference"] is None:
        return
    low, high = sorted((sign * told["low"], sign * told["high"]))
    if low > 0:
        row.verdict = "wins"
    elif high < 0:
        row.verdict = "loses"
    else:
        row.verdict = "ties"
    row.ahead = sign * told["difference"] > 0
    assert mine["worst_site"] is not None  # both have a score at some site
    assert other["worst_site"] is not None
    row.worse = sign * (mine["worst_site"] - other["worst_site"]) < -(high - low) / 2


def _columns(file: Path, contender: str) -> list[tuple[str, Column]]:
    """The columns of a table with their names, which differ where one federation is run in two ways.

    Raises:
        ValueError: as `summary_table`.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: tables must be JSON files of `omnifm bench tables`; one is not: {error}") from None
    columns = content.get("columns") if isinstance(content, dict) else None
    if not columns or not isinstance(columns, Mapping) or "table" not in content:
        raise ValueError(f"{file}: tables must be the JSON of `omnifm bench tables`; one is not")
    for name, column in columns.items():
        try:
            rows = [*column["rows"], *column["failed"]]
            main_metric(column)
        except (AttributeError, IndexError, KeyError, TypeError):
            raise ValueError(f"{file}: {name} must have the form that `bench tables` writes") from None
        if contender not in rows or not any(row.endswith(MATCHED) for row in rows):
            raise ValueError(f"{file}: {name} must have the row {contender!r} and a matched baseline; got {rows}")
    return list(columns.items())
