"""Tune the learning rate and a method's own constants on validation with seed 0, by the same search for every row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from omnifm.bench.tables.comparison import Row, Scale
from omnifm.bench.tables.records import Changes, Point
from omnifm.config import Experiment

RATE = "train.lr"
BEYOND = 2
"""Most learning rates that are tried beyond an edge of the grid."""


def grid(row: Row, scale: Scale, experiment: Experiment) -> dict[str, list[float]]:
    """`section.key` -> the values to try, the learning rate first; empty where nothing is tuned."""
    if not row.tuned:
        return {}
    own = row.grid if scale.constants else {}
    rate = experiment.train.lr
    rates = [rate if factor == 1 else _rounded(rate * factor) for factor in scale.lr_factors]
    found = {RATE: rates} if rates else {}
    return found | {f"method.{key}": list(values) for key, values in own.items()}


def num_points(values: Mapping[str, Sequence[float]]) -> int:
    """Number of runs for a grid, without those beyond its edges."""
    return sum(map(len, values.values()))


class Tuned(NamedTuple):
    """What `tune` found."""

    chosen: Changes
    tried: list[Point]


def tune(
    experiment: Experiment,
    values: Mapping[str, Sequence[float]],
    score: Callable[[Experiment], float | None],
    higher: bool,
) -> Tuned:
    """Choose one setting after the other, each with the best values of those before it.

    If the best learning rate is at an edge of its grid, the next rates beyond that edge are tried, at most `BEYOND`.

    Args:
        values: the values to try, from `grid`.
        score: runs an experiment and returns its validation score, None where the run failed.
        higher: whether a higher score is better.
    """
    tried: list[Point] = []
    chosen: dict[str, dict[str, float]] = {}
    for key, candidates in values.items():
        section, name = key.split(".")
        points: list[Point] = []
        waiting, best = list(candidates), None
        while waiting:
            value = waiting.pop(0)
            result = score(experiment.changed({section: {name: value}}))
            points.append({"key": key, "value": value, "validation": result})
            best = _best(points, higher)
            if not waiting and best is not None and key == RATE and len(points) < len(candidates) + BEYOND:
                waiting = _beyond([point["value"] for point in points], best)
        tried += points
        if best is not None:
            chosen.setdefault(section, {})[name] = best
            experiment = experiment.changed({section: {name: best}})
    return Tuned(chosen, tried)


def _best(points: Sequence[Point], higher: bool) -> float | None:
    """The value with the best score, the first of equals; None where every run failed."""
    scores = {point["value"]: score for point in points if (score := point["validation"]) is not None}
    if not scores:
        return None
    return max(scores, key=scores.__getitem__) if higher else min(scores, key=scores.__getitem__)


def _beyond(rates: Sequence[float], best: float) -> list[float]:
    """The next rate of the geometric grid if the best rate is at its edge, else none."""
    ordered = sorted(rates)
    if best == ordered[-1]:
        return [_rounded(best * best / ordered[-2])]
    return [_rounded(best * best / ordered[1])] if best == ordered[0] else []


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
