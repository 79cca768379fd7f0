"""Missed lesions: connected parts of the reference mask that the prediction does not touch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from scipy.ndimage import generate_binary_structure, label, sum_labels


class Found(NamedTuple):
    """Number of lesions of one case, and of those that were missed."""

    total: int
    missed: int


def lesions(prediction: Int[np.ndarray, "x y z"], truth: Int[np.ndarray, "x y z"]) -> Found:
    """Count the connected parts of the foreground of `truth`, and those in which `prediction` is background.

    Parts that touch at a corner are one.  All foreground classes are one.

    >>> truth = np.array([1, 1, 0, 1]).reshape(4, 1, 1)
    >>> lesions(np.array([0, 2, 0, 0]).reshape(4, 1, 1), truth)
    Found(total=2, missed=1)
    """
    parts, number = label(truth > 0, generate_binary_structure(3, 3))
    touched = sum_labels(prediction > 0, parts, np.arange(1, number + 1))
    return Found(number, int((np.asarray(touched) == 0).sum()))
