"""Bootstrap intervals: they hold the score, narrow with more cases, and are the same every time."""

import numpy as np
import pytest

from omnifm.metrics.classification import class_scores
from omnifm.metrics.intervals import class_intervals, mean_interval


def split(number, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.arange(number) % 3
    return np.eye(3)[truth] + rng.random((number, 3)), truth


def test_it_agrees_with_the_normal_interval_of_a_large_mean():
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    low, high = mean_interval(list(values))
    half = 1.96 * values.std() / 20
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], abs=2e-3)


def test_cases_without_the_score_do_not_count():
    assert mean_interval([0.1, 0.9, None, 0.3, 0.5, None, 0.7]) == mean_interval([0.1, 0.9, 0.3, 0.5, 0.7])
    assert mean_interval([0.1, 0.9, None, 0.3, 0.5]) is None  # four


def test_classes_hold_their_scores_and_narrow_with_cases():
    for number, width in ((30, 0.4), (600, 0.1)):
        probabilities, truth = split(number)
        found, scores = class_intervals(probabilities, truth), class_scores(probabilities, truth)
        assert sorted(found) == ["accuracy", "balanced_accuracy", "macro_f1"]
        for name, (low, high) in found.items():
            assert low <= scores[name] <= high
            assert high - low < width


def test_a_class_that_a_sample_lacks_does_not_count_in_it():
    """One case of class 1, always right: balanced accuracy is 1 in every sample, with or without that case."""
    truth = np.array([0] * 9 + [1])
    assert class_intervals(np.eye(2)[truth], truth)["balanced_accuracy"] == [1.0, 1.0]


def test_few_cases_or_many_classes_have_none():
    assert class_intervals(*split(4)) == {}
    assert class_intervals(np.eye(33), np.arange(33)) == {}
