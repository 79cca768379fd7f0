"""Classification metrics over all cases of a split, including the rules for classes that do not occur.

Letters: n cases, k classes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import mannwhitneyu


def class_scores(probabilities: Float[np.ndarray, "n k"], truth: Int[np.ndarray, " n"]) -> dict[str, float | None]:
    """Accuracy, balanced accuracy, macro F1 and AUROC of n >= 1 cases; each in [0, 1], higher is better.

    The predicted class is the one with the highest probability; of equal ones the first.

    Args:
        probabilities: probability of each class, for each case.
        truth: class number of each case, 0 to k - 1.

    Returns:
        accuracy: share of the cases that are right.
        balanced_accuracy: mean recall over the classes that occur.
        macro_f1: mean F1 over the classes that occur or are predicted; a class that is only predicted has F1 0.
        auroc: area under the ROC curve of one class against the others, averaged over the classes that occur.  Pairs
            with equal probabilities count half (Mann and Whitney 1947; scipy).  None if only one class occurs.

    >>> class_scores(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]]), np.array([0, 0, 1, 1]))
    {'accuracy': 0.75, 'balanced_accuracy': 0.75, 'macro_f1': 0.7333333333333334, 'auroc': 0.75}
    """
    num_classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    confusion = np.bincount(truth * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, -1)
    return {
        "accuracy": float(confusion.diagonal().sum() / len(truth)),
        "balanced_accuracy": float(balanced_accuracy(confusion)),
        "macro_f1": float(macro_f1(confusion)),
        "auroc": _auroc(probabilities, truth),
    }


def balanced_accuracy(confusion: Int[np.ndarray, "*r k k"]) -> Float[np.ndarray, "*r"]:
    """Mean recall over the classes that occur, of each confusion matrix (rows: true classes)."""
    num_right = confusion.diagonal(axis1=-2, axis2=-1)
    return _mean_share(num_right, confusion.sum(axis=-1))


def macro_f1(confusion: Int[np.ndarray, "*r k k"]) -> Float[np.ndarray, "*r"]:
    """Mean F1 over the classes that occur or are predicted, of each confusion matrix (rows: true classes)."""
    num_right = confusion.diagonal(axis1=-2, axis2=-1)
    return _mean_share(2 * num_right, confusion.sum(axis=-1) + confusion.sum(axis=-2))


def _mean_share(part: Int[np.ndarray, "*r k"], whole: Int[np.ndarray, "*r k"]) -> Float[np.ndarray, "*r"]:
    """Mean of part / whole over the classes whose whole is not zero."""
    occurs = whole > 0
    return np.asarray(np.mean(part / np.where(occurs, whole, 1), axis=-1, where=occurs))


def _auroc(probabilities: np.ndarray, truth: np.ndarray) -> float | None:
    areas = []
    for number in np.unique(truth):
        own = probabilities[truth == number, number]
        others = probabilities[truth != number, number]
        if len(others):
            # U is the number of pairs (case of this class, other case) in which the first has the higher probability.
            areas.append(mannwhitneyu(own, others, method="asymptotic").statistic / (len(own) * len(others)))
    return float(np.mean(areas)) if areas else None
