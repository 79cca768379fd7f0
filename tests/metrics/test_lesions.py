"""Missed lesions."""

import numpy as np

from omnifm.metrics.lesions import lesions


def masks(truth, prediction):
    return (np.array(rows, dtype=np.int64)[..., None] for rows in (prediction, truth))


def test_parts_that_touch_at_a_corner_are_one():
    assert lesions(*masks([[1, 0, 0], [0, 2, 0], [0, 0, 0]], [[3, 0, 0], [0, 0, 0], [0, 0, 0]])) == (1, 0)


def test_a_prediction_beside_a_lesion_misses_it():
    assert lesions(*masks([[1, 0, 0, 1]], [[0, 1, 1, 0]])) == (2, 2)


def test_no_lesion_and_no_prediction():
    assert lesions(*masks([[0, 0]], [[1, 1]])) == (0, 0)
    assert lesions(*masks([[1, 1]], [[0, 0]])) == (1, 1)
