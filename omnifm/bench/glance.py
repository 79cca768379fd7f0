"""Where OmniFM wins, ties and loses: one line per federation, from tables that were made before.

The rival is the best *matched* baseline of that federation, chosen by the very scores it is compared on, so that the
choice favours the rival.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnifm.bench.tables import paired
from omnifm.bench.tables_page import versus
from omnifm.page import number

MATCHED = " (matched)"
"""How the names of baselines with OmniFM's own head and suffix end."""


def glance(files: Sequence[Path], contender: str) -> str:
    """A Markdown table of the contender beside the matched baselines, the best in bold, and how often it leads.

    Args:
        files: JSON of `omnifm bench tables`: table.json of one federation, or a paper's table of several.
        contender: the row that is compared with the best.

    Raises:
        ValueError: a file is no such table, or lacks the contender or any matched baseline, or is given twice.
    """
    if len({file.resolve() for file in files}) < len(files):
        raise ValueError("tables must differ; one is given twice")
    rows = [row for file in files for row in _lines_of(file, contender)]
    baselines = list(dict.fromkeys(name for row in rows for name in row["baselines"]))
    heads = ["federation", "metric", "seeds", *(name.removesuffix(MATCHED) for name in baselines), contender]
    heads += ["difference [95 % CI]", "worst site", "verdict"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [*row["named"], *(row["baselines"].get(name, "") for name in baselines), *row["compared"]]
        lines.append("| " + " | ".join(cells) + " |")
    counts = {word: sum(row["verdict"] == word for row in rows) for word in ("wins", "ties", "loses")}
    ahead, worse = sum(row["ahead"] for row in rows), sum(row["worse"] for row in rows)
    total = ", ".join(f"{word} {count}" for word, count in counts.items())
    lines += ["", f"{contender}, {len(rows)} federations: {total}; ahead in mean on {ahead}, worst site worse by more "
              f"than half the interval on {worse}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def line(table: Mapping[str, Any], contender: str) -> dict[str, Any]:
    """One federation: its cells, the verdict over the best matched baseline, whether it is ahead in mean, and whether
    its worst site is worse by more than half the interval."""
    metric = next(iter(table.get("shown") or table["metrics"]))
    higher = table["metrics"][metric]
    sign = 1 if higher else -1
    scores = {name: row[metric]["after"] for name, row in table["rows"].items()}
    rivals = [name for name in scores if name.endswith(MATCHED)]
    if not rivals or contender not in scores:
        got = f"{list(scores)} in {table['data']}"
        raise ValueError(f"a table must have the row {contender!r} and a matched baseline; got {got}")
    if undefined := [name for name in (contender, *rivals) if scores[name]["mean"] is None]:
        raise ValueError(f"{metric} must be defined for every row of {table['data']}; it is not for {undefined}")
    best = max(rivals, key=lambda name: sign * scores[name]["mean"])
    mine, other = scores[contender], scores[best]
    told = paired(np.array(mine["values"], float), np.array(other["values"], float))
    difference, ends = told["difference"], [told[end] for end in ("low", "high")]
    bounds = [sign * end for end in ends if end is not None]
    verdict = "wins" if bounds and min(bounds) > 0 else "loses" if bounds and max(bounds) < 0 else "ties"
    half = (max(bounds) - min(bounds)) / 2 if bounds else 0.0
    worst = sign * (mine["worst_site"] - other["worst_site"])
    means = {name: number(scores[name]["mean"]) for name in rivals}
    return {
        "named": [table["data"], metric, str(len(mine["values"]))],
        "baselines": means | {best: f"**{means[best]}**"},
        "compared": [
            number(mine["mean"]),
            versus({"against_rival": told}),
            f"{number(other['worst_site'])} → {number(mine['worst_site'])}",
            verdict,
        ],
        "verdict": verdict,
        "ahead": difference is not None and sign * difference > 0,
        "worse": worst < -half,
    }


def _lines_of(file: Path, contender: str) -> list[dict[str, Any]]:
    try:
        return [line(table, contender) for table in _tables(file)]
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _tables(file: Path) -> list[Mapping[str, Any]]:
    """The one table of a file, or its columns under their names, which tell columns of one federation apart."""
    content = json.loads(file.read_text())
    columns = content.get("columns") if isinstance(content, dict) else None
    tables = [content]
    if isinstance(columns, dict) and all(isinstance(column, dict) for column in columns.values()):
        tables = [column | {"data": name} for name, column in columns.items()]
    for table in tables or [{}]:
        parts = [table.get(key) for key in ("metrics", "rows")] if isinstance(table, dict) else [None]
        if not all(isinstance(part, dict) for part in parts) or not parts[0] or "data" not in table:
            raise ValueError("tables must be the JSON of `omnifm bench tables`; one is not")
    return tables
