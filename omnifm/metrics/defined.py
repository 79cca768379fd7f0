"""The mean of the scores that are defined: a metric that a case or a class does not define is None."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def mean_of_defined(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there is no such value.

    >>> mean_of_defined([0.5, None, 1.0]), mean_of_defined([None])
    (0.75, None)
    """
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
