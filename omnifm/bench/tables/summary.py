"""Where OmniFM wins, ties and loses: one line per federation, from tables that were made before.

The rival is the best *matched* baseline of that federation, chosen by the very scores it is compared on, so that the
choice favours the rival.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnifm.bench.tables.markdown import grid
from omnifm.bench.tables.one_federation import paired
from omnifm.bench.tables.page import main_metric, versus
from omnifm.report.numbers import NONE, counted, number

MATCHED = " (matched)"
"""How the names of baselines with OmniFM's own head and suffix end."""
VERDICTS = ("wins", "ties", "loses")


def summary_table(files: Sequence[Path], contender: str) -> str:
    """A Markdown table of the contender beside the matched baselines, the best in bold, and how often it leads.

    No verdict has a federation where the contender or a matched baseline has no score, nor one of a single seed, which
    tells nothing of chance; synthetic demo data are left out.  What is not counted is named below the table.

    Args:
        files: JSON of `omnifm bench tables`.
        contender: the row that is compared with the best.

    Raises:
        ValueError: a file is no such table, or lacks the contender or any matched baseline; a federation is given
            twice; all are demo data.
    """
    found = [(name, column) for file in files for name, column in _columns(file, contender)]
    if twice := [name for name, count in Counter(name for name, _ in found).items() if count > 1]:
        raise ValueError(f"tables must be of different federations; {twice[0]!r} is given twice")
    demo = [name for name, column in found if column.get("source") == "demo"]
    if len(demo) == len(found):
        raise ValueError("tables must be of real data; all are of synthetic demo data")
    rows = [line(name, column, contender) for name, column in found if name not in demo]
    baselines = list(dict.fromkeys(name for row in rows for name in row["means"] if name.endswith(MATCHED)))
    heads = [
        "federation",
        "metric",
        "seeds",
        *(name.removesuffix(MATCHED) for name in baselines),
        contender,
        "difference [95 % CI]",
        "worst site",
        "verdict",
    ]
    cells = [
        [
            row["federation"],
            row["metric"],
            str(row["seeds"]),
            *(row["means"].get(name, "") for name in (*baselines, contender)),
            row["difference"],
            row["worst"],
            row["verdict"],
        ]
        for row in rows
    ]
    judged = [row for row in rows if row["verdict"] in VERDICTS]
    total = ", ".join(f"{word} {sum(row['verdict'] == word for row in judged)}" for word in VERDICTS)
    ahead, worse = sum(row["ahead"] for row in judged), sum(row["worse"] for row in judged)
    said = [
        f"{contender}, {counted(len(judged), 'federation')}: {total}; ahead in mean on {ahead}, worst site worse "
        f"by more than half the interval on {worse}."
    ]
    if unjudged := [row["federation"] for row in rows if row not in judged]:
        said.append(f"Not counted, for want of a score or of a second seed: {', '.join(unjudged)}.")
    if demo:
        said.append(f"Left out, synthetic demo data: {', '.join(demo)}.")
    return "\n".join([*grid(heads, cells), "", *said]) + "\n"


def line(federation: str, column: Mapping[str, Any], contender: str) -> dict[str, Any]:
    """One federation in words: scores, difference and verdict, whether the contender is ahead in mean, and whether its
    worst site is worse by more than half the interval."""
    metric = main_metric(column)
    sign = 1 if column["metrics"][metric] else -1
    scores = {
        name: row[metric]["after"]
        for name, row in column["rows"].items()
        if name == contender or name.endswith(MATCHED)
    }
    defined = {name: score for name, score in scores.items() if score["mean"] is not None}
    means = {name: number(score["mean"]) for name, score in scores.items()}
    means |= {name: "failed" for name in column["failed"] if name == contender or name.endswith(MATCHED)}
    row: dict[str, Any] = {
        "federation": federation,
        "metric": metric,
        "seeds": column["seeds"],
        "means": means,
        "difference": NONE,
        "worst": NONE,
        "verdict": NONE,
    }
    if len(defined) < len(means):
        return row
    best = max((name for name in defined if name != contender), key=lambda name: sign * defined[name]["mean"])
    means[best] = f"**{means[best]}**"
    mine, other = defined[contender], defined[best]
    told = paired(np.array(mine["values"], float), np.array(other["values"], float))
    row["difference"] = versus({"against_rival": told})
    row["worst"] = f"{number(other['worst_site'])} → {number(mine['worst_site'])}"
    if told["low"] is None or told["high"] is None or told["difference"] is None:
        return row
    bounds = sorted((sign * told["low"], sign * told["high"]))
    verdict = "wins" if bounds[0] > 0 else "loses" if bounds[1] < 0 else "ties"
    worst, half = sign * (mine["worst_site"] - other["worst_site"]), (bounds[1] - bounds[0]) / 2
    return row | {"verdict": verdict, "ahead": sign * told["difference"] > 0, "worse": worst < -half}


def _columns(file: Path, contender: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The columns of a table under their names, which tell two ways to run one federation apart.

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
