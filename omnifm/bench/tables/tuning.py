"""Learning rate and a method's own constants, chosen on validation with seed 0: the same search for every contender."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from omnifm.bench.tables.comparison import Changes, Row, Scale
from omnifm.config import Experiment

RATE = "train.lr"
BEYOND = 2
"""Most steps beyond an edge of the learning rates' grid."""


def changed(experiment: Experiment, changes: Changes) -> Experiment:
    """The experiment with these sections laid over its own.

    Raises:
        ValueError: a key is unknown or out of range.
    """
    record = asdict(experiment) | {"preset": "it", "presets": {"it": changes}}
    return Experiment.from_json(json.dumps(record))


def grid(row: Row, scale: Scale, experiment: Experiment) -> dict[str, list[Any]]:
    """`section.key` -> values tried, the learning rate first; empty where nothing is tuned."""
    if not row.tuned:
        return {}
    own = row.grid if scale.constants else {}
    rates = [
        _rounded(experiment.train.lr * factor) if factor != 1 else experiment.train.lr for factor in scale.lr_factors
    ]
    return ({RATE: rates} if rates else {}) | {f"method.{key}": list(values) for key, values in own.items()}


def num_points(values: Mapping[str, Sequence[Any]]) -> int:
    """Runs that a grid costs, without steps beyond its edges."""
    return sum(map(len, values.values()))


def tune(
    experiment: Experiment,
    values: Mapping[str, Sequence[Any]],
    score: Callable[[Experiment], float | None],
    higher: bool,
) -> tuple[Changes, list[dict[str, Any]]]:
    """Choose one constant after the other, each at the best values of those before it.

    A learning rate that is best at an edge of its grid is followed beyond it, at most `BEYOND` steps.

    Args:
        values: of `grid`.
        score: runs an experiment and tells its validation score, None where the run failed.

    Returns:
        What was chosen, and every point tried with its score.
    """
    tried: list[dict[str, Any]] = []
    chosen: dict[str, dict[str, Any]] = {}
    for key, candidates in values.items():
        section, name = key.split(".")
        points: list[dict[str, Any]] = []
        waiting, best = list(candidates), None
        while waiting:
            value = waiting.pop(0)
            result = score(changed(experiment, {section: {name: value}}))
            points.append({"key": key, "value": value, "validation": result})
            best = _best(points, higher)
            if not waiting and best is not None and key == RATE and len(points) < len(candidates) + BEYOND:
                waiting = _beyond([point["value"] for point in points], best)
        tried += points
        if best is not None:
            chosen.setdefault(section, {})[name] = best
            experiment = changed(experiment, {section: {name: best}})
    return chosen, tried


def _best(points: Sequence[Mapping[str, Any]], higher: bool) -> Any:
    """The value that scores best, the first of equals; None where every run failed."""
    scored = [point for point in points if point["validation"] is not None]
    return (max if higher else min)(scored, key=lambda point: point["validation"])["value"] if scored else None


def _beyond(rates: Sequence[float], best: float) -> list[float]:
    """The next rate of the geometric grid if the best is its edge, else none."""
    ordered = sorted(rates)
    if best == ordered[-1]:
        return [_rounded(best * best / ordered[-2])]
    return [_rounded(best * best / ordered[1])] if best == ordered[0] else []


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
