"""What is planned from all sites' data before training: spacing and patch, after nnU-Net's rules.

Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation", Nature
Methods 2021, supplementary note 2.  nnU-Net plans from one data set; here every site sends a few medians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from omnifm.task import Backbone

ANISOTROPIC = 3.0
"""A voxel whose longest side is more than this multiple of the others' is treated as anisotropic."""
LONGEST_2D = 512
"""Largest side of a planned patch of a picture, in pixels."""
STEP = 16
"""Sides of patches are multiples of this number of voxels, so that networks of up to five levels can halve them."""
BATCH = 2
"""Number of patches that must fit the memory together: the smallest batch in which nnU-Net trains."""
GIB = 2**30


def planned_spacing(medians: Sequence[Sequence[float]], finest: Sequence[Sequence[float]]) -> list[float]:
    """The common voxel size in mm (x, y, z).

    It is the median of the sites' medians.  Where one axis is more than three times as coarse as the others, its 10th
    percentile is taken, because the median would make most images of the better scanners coarser.

    >>> planned_spacing([[1.0, 1.0, 5.0], [1.0, 1.0, 7.0]], [[1.0, 1.0, 3.0], [1.0, 1.0, 5.0]])
    [1.0, 1.0, 4.0]

    Args:
        medians: each site's median spacing.
        finest: each site's 10th percentile of spacings.
    """
    spacing = np.median(medians, axis=0)
    axis = int(spacing.argmax())
    if spacing[axis] > ANISOTROPIC * np.delete(spacing, axis).max():
        spacing[axis] = np.median(finest, axis=0)[axis]
    return [float(side) for side in np.round(spacing, 3)]


def planned_patch(
    median_shape: Sequence[float], memory_gib: float, network: Callable[[list[int]], Backbone], channels: int
) -> list[int]:
    """The patch: the sites' median image, whose longest side is made shorter until two patches fit the memory.

    Args:
        median_shape: voxels or pixels per axis, on the common spacing.
        memory_gib: for what the network keeps of two patches for its backward pass.
        network: builds the network for a patch.
        channels: number of image channels.

    Returns:
        sides in voxels, each a multiple of 16.

    Raises:
        ValueError: no patch that the network can take fits the memory.
    """
    longest = LONGEST_2D if len(median_shape) == 2 else math.inf
    patch = [int(min(longest, STEP * max(1, math.ceil(side / STEP)))) for side in median_shape]
    while (needed := activation_bytes(partial(network, patch), [BATCH, channels, *patch]) / GIB) > memory_gib:
        axis = int(np.argmax(patch))
        if patch[axis] <= STEP:
            raise ValueError(
                f"task.memory_gib must hold {BATCH} patches of {patch}, {needed:.3g} GiB; got {memory_gib}"
            )
        patch[axis] -= STEP
    return patch


def activation_bytes(build: Callable[[], Backbone], shape: Sequence[int]) -> int:
    """Bytes that a network keeps of one batch for its backward pass, without computing anything (device `meta`).

    Args:
        build: makes the network; it is called where new tensors have no memory.
        shape: of the input: batch, channels, space.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage
        return tensor

    with torch.device("meta"):
        network = build()
        batch = {"image": torch.empty(list(shape))}
    weights = [value.untyped_storage() for value in network.parameters()]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network.decode(*network.encode(batch), batch)
    del output
    return sum(storage.nbytes() for key, storage in kept.items() if key not in map(id, weights))
