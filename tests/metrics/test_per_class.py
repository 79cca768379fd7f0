"""Per class: counted by hand."""

import numpy as np
import pytest

from omnifm.metrics.per_class import class_details, reliability

# True classes a a a b b, of c nobody; predicted a a b b c.
TRUTH = np.array([0, 0, 0, 1, 1])
SAID = np.array([0, 0, 1, 1, 2])
NAMES = ["a", "b", "c"]


def sure(classes, confidence=1.0):
    rest = (1 - confidence) / 2
    return np.full((len(classes), 3), rest) + (confidence - rest) * np.eye(3)[classes]


def test_sensitivity_specificity_and_confusion():
    found = class_details(sure(SAID), TRUTH, NAMES)
    assert found["confusion"] == {"names": NAMES, "counts": [[2, 1, 0], [0, 1, 1], [0, 0, 0]]}
    assert found["classes"]["a"] == {"cases": 3, "sensitivity": pytest.approx(2 / 3), "specificity": 1.0}
    assert found["classes"]["b"] == {"cases": 2, "sensitivity": 0.5, "specificity": pytest.approx(2 / 3)}
    assert found["classes"]["c"] == {"cases": 0, "sensitivity": None, "specificity": pytest.approx(0.8)}


def test_reliability():
    """Three right of five at 0.9: the gap is 0.3.  Two of two at 0.5 in another range: 0.5.  Weighted by cases."""
    probabilities = np.concatenate([sure(SAID, 0.9), sure([0, 0], 0.5)])
    found = reliability(probabilities, np.concatenate([TRUTH, [0, 0]]))
    assert found["bins"] == [
        {"cases": 2, "confidence": 0.5, "accuracy": 1.0},
        {"cases": 5, "confidence": pytest.approx(0.9), "accuracy": pytest.approx(0.6)},
    ]
    assert found["ece"] == pytest.approx((2 * 0.5 + 5 * 0.3) / 7)


def test_many_classes_are_not_told_apart():
    assert list(class_details(np.eye(33), np.arange(33), [str(i) for i in range(33)])) == ["reliability"]
