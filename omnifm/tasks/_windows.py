"""Predict an image in overlapping windows, if it is larger than the network takes at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from omnifm.task import Forward


def predict_in_windows(forward: Forward, image: Tensor, window: Sequence[int], overlap: float) -> Tensor:
    """The network's prediction for a whole image.

    Args:
        forward: the network.
        image: (1, c, *space), no side shorter than the window's.
        window: largest size that the network takes, one number per spatial axis.
        overlap: share of a window that its neighbour covers too, in [0, 1).  Predictions are averaged there, with more
            weight near the middle of a window.

    Returns:
        the prediction (1, channels, *space), as if it was made at once.
    """
    if list(image.shape[2:]) == list(window):
        return forward({"image": image})
    prediction = sliding_window_inference(
        image, list(window), 1, lambda part: forward({"image": part}), overlap=overlap, mode="gaussian"
    )
    return torch.as_tensor(prediction)
