"""What a contender's runs started from, what they cost, and how they went: scores of unequal runs do not compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from omnifm.bench.tables.records import ContenderRow, Facts, Metrics
from omnifm.metrics.defined import mean_of_defined
from omnifm.records import SiteRound, Summary

SHARE_OF_BEST = 0.9
"""`rounds_to_best` counts rounds until this share of the best validation score of all contenders is reached."""
Runs = Sequence[Summary]
"""A contender's runs, one per seed."""


def facts(runs: Runs, batch_size: int, epochs: int) -> Facts:
    """What a contender's runs started from and cost.

    Args:
        epochs: passes over a site's training cases per round, including the method's own.
    """
    first = runs[0]
    parts = first["partition"]
    rows = _site_rounds(first)
    return {
        "init_hash": [run["init_hash"] for run in runs],
        "backbone_hash": [run.get("backbone_hash") for run in runs],  # runs of older versions lack it
        "partition_hash": parts["hash"],
        "steps": [_steps(run, batch_size) * epochs for run in runs],
        "num_values": {"shared": parts["shared"], "personal": parts["personal"], "frozen": parts["frozen"]},
        "values_moved": 2 * parts["shared"] * len(rows),
        "bytes_up": sum(row["bytes_up"] for row in rows),
        "bytes_down": sum(row["bytes_down"] for row in rows),
    }


def _steps(run: Summary, batch_size: int) -> int:
    """Optimisation steps of all sites and rounds, with one pass per round."""
    batches = {site: math.ceil(row["num_train"] / batch_size) for site, row in run["sites"].items()}
    return sum(batches[site] for entry in run["history"] for site in entry["sites"])


def _site_rounds(run: Summary) -> list[SiteRound]:
    return [row for entry in run["history"] for row in entry["sites"].values()]


def curve(runs: Runs, metric: str) -> list[float | None]:
    """Validation score after local training in each round, as a mean over the round's sites and over seeds."""
    return [
        mean_of_defined(row["metrics"].get(metric) for run in runs for row in run["history"][number]["sites"].values())
        for number in range(min(len(run["history"]) for run in runs))
    ]


def add_curves(rows: Mapping[str, ContenderRow], cells: Mapping[str, Runs], metrics: Metrics) -> None:
    """Add to every row its validation curve and its rounds to 90 % of the best, by metric."""
    curves = {metric: {name: curve(cells[name], metric) for name in rows} for metric in metrics}
    reached = {metric: rounds_to_best(curves[metric], higher) for metric, higher in metrics.items()}
    for name, row in rows.items():
        row["curve"] = {metric: curves[metric][name] for metric in metrics}
        row["rounds_to_90"] = {metric: reached[metric][name] for metric in metrics}


def rounds_to_best(curves: Mapping[str, Sequence[float | None]], higher: bool) -> dict[str, int | None]:
    """Contender -> the first round that reaches 90 % of the best score of all contenders; None if none does.

    Where lower is better, a round must reach 1 / 90 % of the best score.
    """
    scores = [value for values in curves.values() for value in values if value is not None]
    if not scores:
        return dict.fromkeys(curves)
    best = max(scores) if higher else min(scores)

    def near(value: float | None) -> bool:
        if value is None:
            return False
        return value >= SHARE_OF_BEST * best if higher else SHARE_OF_BEST * value <= best

    return {
        name: next((i for i, value in enumerate(values, 1) if near(value)), None) for name, values in curves.items()
    }


def validation(run: Summary, metric: str, higher: bool) -> float | None:
    """Mean over sites of the best validation score of each site; tuning compares it, and never a test score.

    The same score picks a site's checkpoint, except that the last evaluation trains once more.
    """
    better = max if higher else min
    best: dict[str, float] = {}
    for entry in run["history"]:
        for site, row in entry["sites"].items():
            score = row["metrics"].get(metric)
            if score is not None:
                best[site] = better(best.get(site, score), score)
    return mean_of_defined(best.values())
