"""Segmentation metrics of one whole case, by MONAI, including the rules for structures that do not occur.

Letters: x y z voxel axes (z = 1 for a picture).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou

from omnifm.metrics.defined import mean_of_defined


def overlap(
    prediction: Int[np.ndarray, "x y z"],
    truth: Int[np.ndarray, "x y z"],
    num_classes: int,
    spacing_mm: tuple[float, float, float],
) -> dict[str, float | None]:
    """Dice, IoU and 95th percentile of the Hausdorff distance of one case, each averaged over the foreground classes.

    A class that occurs in neither mask is left out.  A class that occurs in only one of the two has Dice and IoU 0, and
    its HD95 is undefined: a missed structure always lowers Dice.

    Args:
        prediction: class numbers, 0 to num_classes - 1; 0 is background.
        truth: class numbers, likewise.
        num_classes: number of classes, with background.
        spacing_mm: voxel size along x, y and z.

    Returns:
        dice: in [0, 1], higher is better (Dice 1945).
        iou: in [0, 1], higher is better (Jaccard 1912).
        hd95_mm: in mm, >= 0, lower is better (Huttenlocher et al. 1993; 95th percentile instead of the maximum).
        Each is None if no class defines it.

    >>> truth = np.zeros((4, 4, 1), dtype=int)
    >>> truth[:2] = 1
    >>> shifted = np.roll(truth, 1, axis=0)
    >>> scores = overlap(shifted, truth, 2, (2.0, 2.0, 1.0))
    >>> scores["dice"], round(scores["iou"], 4), scores["hd95_mm"]
    (0.5, 0.3333, 2.0)
    """
    return average(overlap_by_class(prediction, truth, num_classes, spacing_mm))


def overlap_by_class(
    prediction: Int[np.ndarray, "x y z"],
    truth: Int[np.ndarray, "x y z"],
    num_classes: int,
    spacing_mm: tuple[float, float, float],
) -> list[dict[str, float | None]]:
    """The scores of `overlap` for each foreground class, 1 to num_classes - 1; the arguments are the same."""
    return [_scores_of_class(prediction == c, truth == c, spacing_mm) for c in range(1, num_classes)]


def average(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of each score over the classes that define it."""
    return {name: mean_of_defined(row[name] for row in rows) for name in ("dice", "iou", "hd95_mm")}


def _scores_of_class(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: tuple[float, float, float]
) -> dict[str, float | None]:
    if not prediction.any() and not truth.any():
        return {"dice": None, "iou": None, "hd95_mm": None}
    if not prediction.any() or not truth.any():
        return {"dice": 0.0, "iou": 0.0, "hd95_mm": None}
    flat = prediction.shape[2] == 1  # MONAI expects pictures with two axes
    masks = [torch.from_numpy(m[..., 0] if flat else m)[None, None].float() for m in (prediction, truth)]
    distance = compute_hausdorff_distance(
        *masks, include_background=True, percentile=95, spacing=spacing_mm[:2] if flat else spacing_mm
    )
    return {
        "dice": float(compute_dice(*masks)),
        "iou": float(compute_iou(*masks)),
        "hd95_mm": float(distance),
    }
