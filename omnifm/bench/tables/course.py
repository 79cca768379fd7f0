"""What a contender's runs started from, cost and went through: without it scores cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SHARE_OF_BEST = 0.9
"""Rounds are counted until this share of the best validation score of all contenders."""
Runs = Sequence[Mapping[str, Any]]


def facts(runs: Runs, batch_size: int, epochs: int) -> dict[str, Any]:
    """Initial hashes and local steps of every seed; values per part of the model; traffic of the first seed.

    Args:
        epochs: passes over a site's training cases per round, those of a method's own included.

    Returns:
        `steps` counts optimisation steps of all sites and rounds; `values_moved` is eq. 11 of FedSCA, the shared
        values of all rounds and sites, there and back; bytes are those of the serialised messages.
    """
    first = runs[0]
    parts = {part: first["partition"][part] for part in ("shared", "personal", "frozen")}
    rows = _site_rounds(first)
    return {
        "init_hash": [run["init_hash"] for run in runs],
        "backbone_hash": [run.get("backbone_hash") for run in runs],  # cells of older versions lack it
        "partition_hash": first["partition"]["hash"],
        "steps": [_steps(run, batch_size) * epochs for run in runs],
        "num_values": parts,
        "values_moved": 2 * parts["shared"] * len(rows),
        "bytes_up": sum(row["bytes_up"] for row in rows),
        "bytes_down": sum(row["bytes_down"] for row in rows),
    }


def _steps(run: Mapping[str, Any], batch_size: int) -> int:
    """Of one pass per round."""
    batches = {site: math.ceil(row["num_train"] / batch_size) for site, row in run["sites"].items()}
    return sum(batches[site] for entry in run["history"] for site in entry["sites"])


def _site_rounds(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for entry in run["history"] for row in entry["sites"].values()]


def curve(runs: Runs, metric: str) -> list[float | None]:
    """Validation score after local training, per round: mean over the round's sites and over seeds."""
    return [
        _mean([row["metrics"].get(metric) for run in runs for row in run["history"][number]["sites"].values()])
        for number in range(min(len(run["history"]) for run in runs))
    ]


def add_curves(rows: Mapping[str, dict[str, Any]], cells: Mapping[str, Runs], metrics: Mapping[str, bool]) -> None:
    """Give every row its validation curve and rounds to 90 % of the best, by metric."""
    curves = {metric: {name: curve(cells[name], metric) for name in rows} for metric in metrics}
    reached = {metric: rounds_to_best(curves[metric], higher) for metric, higher in metrics.items()}
    for name, row in rows.items():
        row["curve"] = {metric: curves[metric][name] for metric in metrics}
        row["rounds_to_90"] = {metric: reached[metric][name] for metric in metrics}


def rounds_to_best(curves: Mapping[str, Sequence[float | None]], higher: bool) -> dict[str, int | None]:
    """Contender -> the first round within 90 % of the best score that any contender reached; None if never.

    For a metric of which less is better: within 1 / 90 %.
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


def validation(run: Mapping[str, Any], metric: str, higher: bool) -> float | None:
    """Mean over sites of each one's best validation score, which picks its checkpoint but for
    the evaluation's own training; never a test score."""
    best: dict[str, float] = {}
    for entry in run["history"]:
        for site, row in entry["sites"].items():
            score = row["metrics"].get(metric)
            if score is not None:
                best[site] = score if site not in best else (max if higher else min)(best[site], score)
    return _mean(list(best.values()))


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
