"""Predict an image in overlapping windows, if it is larger than the network takes at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from omnifm.task import Forward

WINDOWS_AT_ONCE = 4
"""Number of windows that the network is given together."""


def predict_in_windows(
    forward: Forward, image: Tensor, window: Sequence[int], overlap: float, *, mirrored: bool = False
) -> Tensor:
    """The network's prediction for a whole image.

    Args:
        forward: the network.
        image: (1, c, *space), no side shorter than the window's.
        window: largest size that the network takes, one number per spatial axis.
        overlap: share of a window that its neighbour covers too, in [0, 1).  Predictions are averaged there, with more
            weight near the middle of a window.
        mirrored: whether the prediction is averaged over the image mirrored along each set of its axes.

    Returns:
        the prediction (1, channels, *space), as if it was made at once.
    """
    predict = partial(_of_windows, forward, mirrored=mirrored)
    if list(image.shape[2:]) == list(window):
        return predict(image)
    prediction = sliding_window_inference(
        image, list(window), WINDOWS_AT_ONCE, predict, overlap=overlap, mode="gaussian"
    )
    return torch.as_tensor(prediction)


def _of_windows(forward: Forward, windows: Tensor, mirrored: bool) -> Tensor:
    """The network's prediction for a batch of windows."""
    if not mirrored:
        return forward({"image": windows})
    axes = range(2, windows.ndim)
    flips = [flip for number in range(len(axes) + 1) for flip in combinations(axes, number)]
    return torch.stack([forward({"image": windows.flip(flip)}).flip(flip) for flip in flips]).mean(0)
