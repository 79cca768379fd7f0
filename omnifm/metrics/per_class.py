"""What a classification report says beside the scores: per class, which are confused, and whether confidence is right.

Letters: n cases, k classes.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from monai.metrics import compute_confusion_matrix_metric, get_confusion_matrix
from scipy.stats import binned_statistic
from torch.nn.functional import one_hot

from omnifm.statistics import MAX_CLASSES, Bin, Reliability, Statistics

NUM_BINS = 10


def class_details(
    probabilities: Float[np.ndarray, "n k"], truth: Int[np.ndarray, " n"], names: list[str]
) -> Statistics:
    """Sensitivity and specificity of each class (MONAI), the confusion matrix, and the reliability diagram.

    Args:
        probabilities: probability of each class, for each case.
        truth: class number of each case, 0 to k - 1.
        names: of the classes.

    Returns:
        `classes`, `confusion` and `reliability`; without the first two for more than MAX_CLASSES classes.
    """
    found: Statistics = {"reliability": reliability(probabilities, truth)}
    if len(names) > MAX_CLASSES:
        return found
    predicted = probabilities.argmax(axis=1)
    answers, truths = (one_hot(torch.from_numpy(numbers), len(names)) for numbers in (predicted, truth))
    table = get_confusion_matrix(answers, truths, include_background=True).sum(dim=0)  # k (tp, fp, tn, fn)
    scores = {name: compute_confusion_matrix_metric(name, table).tolist() for name in ("sensitivity", "specificity")}
    sizes = np.bincount(truth, minlength=len(names)).tolist()
    found["classes"] = {
        name: {"cases": sizes[i], **{key: _defined(values[i]) for key, values in scores.items()}}
        for i, name in enumerate(names)
    }
    counts = [np.bincount(predicted[truth == i], minlength=len(names)).tolist() for i in range(len(names))]
    found["confusion"] = {"names": names, "counts": counts}
    return found


def reliability(probabilities: Float[np.ndarray, "n k"], truth: Int[np.ndarray, " n"]) -> Reliability:
    """Confidence and accuracy in ten ranges of confidence, and the expected calibration error (Guo et al. 2017).

    >>> reliability(np.array([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1]))
    {'ece': 0.25, 'bins': [{'cases': 2, 'confidence': 0.75, 'accuracy': 0.5}]}
    """
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == truth).astype(float)
    means, edges, _ = binned_statistic(confidence, [confidence, right], "mean", NUM_BINS, range=(0, 1))
    sizes = np.histogram(confidence, edges)[0]
    bins: list[Bin] = [
        {"cases": int(size), "confidence": float(mean), "accuracy": float(accuracy)}
        for size, mean, accuracy in zip(sizes, *means, strict=True)
        if size
    ]
    ece = sum(one["cases"] * abs(one["confidence"] - one["accuracy"]) for one in bins) / len(truth)
    return {"ece": ece, "bins": bins}


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value
