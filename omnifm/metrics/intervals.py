"""95 % bootstrap intervals over cases, by scipy: how much a score would vary with other cases of the same hospital."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.stats import bootstrap

from omnifm.metrics.classification import balanced_accuracy, macro_f1
from omnifm.statistics import MAX_CLASSES, MIN_CASES

RESAMPLES = 1000
SEED = 0
"""Every site and run draws the same samples, so that a report can be repeated."""


def mean_interval(values: Sequence[float | None]) -> list[float] | None:
    """The interval of the mean over the cases that define it; None for fewer than MIN_CASES of them.

    >>> mean_interval([0.5] * 6), mean_interval([0.1, 0.9])
    ([0.5, 0.5], None)
    """
    return _interval(np.array([value for value in values if value is not None], float), np.mean)


def class_intervals(probabilities: Float[np.ndarray, "n k"], truth: Int[np.ndarray, " n"]) -> dict[str, list[float]]:
    """Intervals of accuracy, balanced accuracy and macro F1; empty for few cases or more than MAX_CLASSES classes.

    Args:
        probabilities: probability of each class, for each case.
        truth: class number of each case, 0 to k - 1.
    """
    num_classes = probabilities.shape[1]
    if num_classes > MAX_CLASSES:
        return {}
    predicted = probabilities.argmax(axis=1)
    pairs = truth * num_classes + predicted

    def of_confusion(score: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        return lambda sample, axis: score(_confusion(np.moveaxis(sample, axis, -1), num_classes))

    found = {
        "accuracy": _interval((truth == predicted).astype(float), np.mean),
        "balanced_accuracy": _interval(pairs, of_confusion(balanced_accuracy)),
        "macro_f1": _interval(pairs, of_confusion(macro_f1)),
    }
    return {name: interval for name, interval in found.items() if interval is not None}


def _confusion(pairs: Int[np.ndarray, "*r n"], num_classes: int) -> Int[np.ndarray, "*r k k"]:
    """Confusion matrices of samples of (true class * k + predicted class)."""
    samples = pairs.reshape(-1, pairs.shape[-1])
    cells = num_classes**2
    offsets = np.arange(len(samples))[:, None] * cells
    counts = np.bincount((samples + offsets).ravel(), minlength=len(samples) * cells)
    return counts.reshape(*pairs.shape[:-1], num_classes, num_classes)


def _interval(values: Shaped[np.ndarray, " n"], score: Callable[..., np.ndarray]) -> list[float] | None:
    if len(values) < MIN_CASES:
        return None
    found = bootstrap(
        (values,),
        score,
        n_resamples=RESAMPLES,
        batch=100,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return [float(found.low), float(found.high)]
