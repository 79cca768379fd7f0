"""Check a table's own numbers: everything is calculated again from the scores per seed and site.

It shares no arithmetic with the code that made the table, only the types of the document and the name of the row in
which sites train alone.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import Literal

from scipy import stats

from omnifm.bench.tables.records import MOMENTS, Column, ContenderRow, Facts, Moment, Scores

Statistic = Literal["mean", "worst_site", "std_over_seeds", "std_over_sites"]
TOLERANCE = 1e-6
"""Largest relative or absolute error that is not a finding."""


def lint_folder(folder: Path) -> list[str]:
    """The findings of every table in a folder, a line each; other JSON files are passed over.

    Raises:
        ValueError: the folder holds no table.
    """
    read = {file.stem: _read(file) for file in sorted(folder.glob("*.json"))}
    documents = {
        name: found for name, found in read.items() if "columns" in found or {"rows", "trivial"} <= found.keys()
    }
    if not documents:
        raise ValueError("folder must hold a table's JSON; it holds none")
    return [f"{name}: {line}" for name, document in documents.items() for line in lint(document)]


def _read(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file.name} must be JSON; {error}") from None
    return content if isinstance(content, dict) else {}


def lint(document: Mapping[str, object]) -> list[str]:
    """The findings of one table, each a line with column, row and metric; empty if its numbers agree."""
    columns = document.get("columns", {"table": document})
    if not columns or not isinstance(columns, Mapping):
        return ["table must have a column; it has none"]
    return [f"{name}: {line}" for name, column in columns.items() for line in _findings(column)]


def _findings(column: Column) -> list[str]:
    try:
        return list(_column(column))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        return [f"must have the form that `bench tables` writes; reading it ends in {type(error).__name__}"]


def _column(column: Column) -> Iterator[str]:
    if "columns" in column or not {"rival", "seeds", "sites", "failed"} <= column.keys():
        yield "must hold scores per seed and site; an older version wrote it without: make it again"
        return
    rows = column["rows"]
    for name, reason in column["failed"].items():
        yield f"{name}: has no scores, since its run failed: {reason}"
    yield from _tuning(column)
    if wrong := [*_shape(column)]:
        yield from wrong
        return  # nothing else can be calculated
    for name, row in (rows | column["trivial"]).items():
        for metric in column["metrics"]:
            if metric not in row:
                continue  # a trivial rival has scores of its own metrics only
            for when in MOMENTS:
                yield from (f"{name}: {metric} {when}: {line}" for line in _cell(column, name, row, metric, when))
        yield from (f"{name}: {line}" for line in _overlap(row))
    yield from _budget(rows)
    yield from _courses(column)
    yield from _traffic(column)


def _cell(column: Column, name: str, row: ContenderRow, metric: str, when: Moment) -> Iterator[str]:
    """The numbers of one row, metric and moment."""
    rows, rival, higher = column["rows"], column["rival"], column["metrics"][metric]
    alone = alone_of(rows)
    yield from _scores(row[metric][when], higher)
    if alone in rows:
        yield from _below(row[metric][when], rows[alone][metric]["after"], higher)
    if rival in rows and name != rival:
        yield from _against(row[metric][when], rows[rival][metric][when])


def _shape(column: Column) -> Iterator[str]:
    """Every contender must have all metrics, and every score all seeds and sites."""
    rows, shape = column["rows"], (column["seeds"], len(column["sites"]))
    if len(set(column["sites"])) < len(column["sites"]):
        yield f"sites must be named once each; got {column['sites']}"
    if rows and column["rival"] not in {*rows, *column["failed"], None}:
        yield f"rival must be a row; got {column['rival']!r}"
    for name, row in (rows | column["trivial"]).items():
        metrics = [metric for metric in column["metrics"] if metric in row]
        if name in rows and (lacking := sorted(set(column["metrics"]) - set(metrics))):
            yield f"{name}: must have every metric; {', '.join(lacking)} lacking"
        for metric, when in ((metric, when) for metric in metrics for when in MOMENTS):
            scores = row[metric][when]
            found = {(len(scores["values"]), len(seed)) for seed in (*scores["values"], scores["per_site"])}
            if found != {shape}:
                yield f"{name}: {metric} {when}: must have {shape[0]} seeds of {shape[1]} sites; got {sorted(found)}"


def _tuning(column: Column) -> Iterator[str]:
    """What tuning chose must be the best of what it tried."""
    higher = next(iter(column["metrics"].values()), True)
    for name, points in column.get("tried", {}).items():
        for key in dict.fromkeys(point["key"] for point in points):
            section, setting = key.split(".")
            scored = {
                point["value"]: point["validation"]
                for point in points
                if point["key"] == key and point["validation"] is not None
            }
            chosen = column["chosen"].get(name, {}).get(section, {}).get(setting)
            best = max(scored.values(), default=None) if higher else min(scored.values(), default=None)
            if scored and (chosen is None or scored.get(chosen) != best):
                yield f"{name}: {key} must be the best of those tried; got {chosen}"


def alone_of(rows: Collection[str]) -> str:
    """The row in which sites train alone, for comparison: "Local", or "Local (matched)" if there is no "Local"."""
    return "Local" if "Local" in rows else "Local (matched)"


def _scores(row: Scores, higher: bool) -> Iterator[str]:
    """Means, worst site and spreads must follow from the scores."""
    per_site = [_mean(scores) for scores in zip(*row["values"], strict=True)]
    per_seed = [_mean(scores) for scores in row["values"]]
    defined = [score for score in per_site if score is not None]
    seeds = [score for score in per_seed if score is not None]
    expected: dict[Statistic, float | None] = {
        "mean": _mean([score for scores in row["values"] for score in scores]),
        "worst_site": min(defined, default=None) if higher else max(defined, default=None),
        "std_over_seeds": pstdev(seeds) if len(seeds) > 1 else None,
        "std_over_sites": pstdev(defined) if defined else None,
    }
    for i, (mean, right_mean) in enumerate(zip(row["per_site"], per_site, strict=True), 1):
        if not _same(mean, right_mean):
            yield f"per_site must be the mean over seeds, {right_mean}, at site {i}; got {mean}"
    for key, right in expected.items():
        if not _same(row[key], right):
            yield f"{key} must be {right}; got {row[key]}"


def _below(row: Scores, alone: Scores, higher: bool) -> Iterator[str]:
    """The number of sites that score worse than when they train alone."""
    pairs = zip(row["per_site"], alone["per_site"], strict=True)
    lost = sum((a < b if higher else a > b) for a, b in pairs if a is not None and b is not None)
    if row.get("sites_below_local") != lost:
        yield f"sites_below_local must be {lost}; got {row.get('sites_below_local')}"


def _against(row: Scores, other: Scores) -> Iterator[str]:
    """The paired difference to the rival, and its interval."""
    told = row.get("against_rival")
    if told is None:
        yield "must have a difference to the rival; it has none"
        return
    differences = [
        _mean([None if a is None or b is None else a - b for a, b in zip(mine, theirs, strict=True)])
        for mine, theirs in zip(row["values"], other["values"], strict=True)
    ]
    defined = [value for value in differences if value is not None]
    right = _mean(differences)
    if not _same(told["difference"], right):
        yield f"difference to the rival must be {right}; got {told['difference']}"
    if told["low"] is None or told["high"] is None:
        if len(defined) > 1:
            yield "a difference over several seeds must have an interval; it has none"
        return
    assert right is not None  # an interval needs two seeds in which the difference is defined
    half = float(stats.t.ppf(0.975, len(defined) - 1) * stdev(defined) / math.sqrt(len(defined)))
    if not (_same(told["low"], right - half) and _same(told["high"], right + half)):
        yield f"the interval must be [{right - half}, {right + half}]; got [{told['low']}, {told['high']}]"


def _overlap(row: ContenderRow) -> Iterator[str]:
    """Mean Dice must lie in [J, 2J / (1 + J)] for mean IoU J.

    Per case Dice is 2J / (1 + J), which is concave in J, so that means over cases can only be lower (Jensen).
    """
    if "dice" not in row or "iou" not in row:
        return
    for when in MOMENTS:
        pairs = zip(row["dice"][when]["values"], row["iou"][when]["values"], strict=True)
        for dice, iou in (pair for d, j in pairs for pair in zip(d, j, strict=True)):
            if dice is None or iou is None:
                continue
            if not iou - TOLERANCE <= dice <= 2 * iou / (1 + iou) + TOLERANCE:
                yield f"{when}: mean Dice must lie in [J, 2J / (1 + J)] for mean IoU J = {iou}; got {dice}"


def _budget(rows: Mapping[str, ContenderRow]) -> Iterator[str]:
    """All contenders must have the same steps and initial backbone; with equal partitions, equal shared values."""
    with_facts: dict[str, Facts] = {name: row["facts"] for name, row in rows.items() if "facts" in row}
    starts: tuple[tuple[Literal["steps", "backbone_hash"], str], ...] = (
        ("steps", "local steps"),
        ("backbone_hash", "initial backbone"),
    )
    for key, what in starts:
        found: dict[str, list[str]] = defaultdict(list)
        for name, facts in with_facts.items():
            if facts[key][0] is not None:
                found[str(facts[key])].append(name)
        if len(found) > 1:
            rare = min(found.values(), key=len)
            yield f"{', '.join(rare)}: must have the same {what} as the others; got {with_facts[rare[0]][key]}"
    hashes: dict[str, tuple[str, list[str]]] = {}
    for name, facts in with_facts.items():
        first, initial = hashes.setdefault(facts["partition_hash"], (name, facts["init_hash"]))
        if initial != facts["init_hash"]:
            yield f"{name}: must start from the same shared values as {first}, which has the same partition"


def _courses(column: Column) -> Iterator[str]:
    """Curves must have a point per round, and the rounds to 90 % of the best validation score must follow from them."""
    rows = {name: row for name, row in column["rows"].items() if "curve" in row}
    for metric, higher in column["metrics"].items():
        curves = {name: row["curve"][metric] for name, row in rows.items()}
        goal = _goal([value for curve in curves.values() for value in curve if value is not None], higher)
        for name, curve in curves.items():
            if len(curve) != column["num_rounds"]:
                yield f"{name}: {metric}: curve must have {column['num_rounds']} rounds; got {len(curve)}"
            told, right = rows[name]["rounds_to_90"][metric], _first_round(curve, goal, higher)
            if told != right:
                yield f"{name}: {metric}: rounds to 90 % of the best must be {right}; got {told}"


def _goal(scores: Sequence[float], higher: bool) -> float | None:
    """90 % of the best score; where lower is better, 1 / 90 % of it."""
    if not scores:
        return None
    return 0.9 * max(scores) if higher else min(scores) / 0.9


def _first_round(curve: Sequence[float | None], goal: float | None, higher: bool) -> int | None:
    """The first round whose score reaches the goal."""
    if goal is None:
        return None
    for number, value in enumerate(curve, 1):
        if value is not None and (value + TOLERANCE >= goal if higher else value - TOLERANCE <= goal):
            return number
    return None


def _traffic(column: Column) -> Iterator[str]:
    """FedSCA eq. 11: values moved are the shared values, there and back, of each reply in each round."""
    most = column["num_rounds"] * len(column["sites"])
    for name, facts in ((name, row["facts"]) for name, row in column["rows"].items() if "facts" in row):
        shared, moved = facts["num_values"]["shared"], facts["values_moved"]
        if moved > 2 * shared * most or (shared and moved % (2 * shared)):
            yield f"{name}: values moved must be 2 x {shared} of at most {most} replies; got {moved}"


def _mean(values: Sequence[float | None]) -> float | None:  # not `mean_of_defined`: this file checks its results
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined else None


def _same(told: float | None, right: float | None) -> bool:
    if told is None or right is None:
        return told is right
    return math.isclose(told, right, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
