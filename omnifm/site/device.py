"""The processor that a site computes on, and moving a batch to it."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from omnifm.task import Batch


def device_named(name: str) -> torch.device:
    """Return the device of this name.

    Args:
        name: `auto` (the first GPU, or the CPU if there is none), `cpu`, or `cuda:N` for the GPU with number N.

    Raises:
        ValueError: the name is none of these, or this machine has no such GPU.

    >>> device_named("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise ValueError(f"device must be auto, cpu or cuda:N; got {name!r}")
    device = torch.device(name)
    num_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise ValueError(f"device must exist; got {name!r} on a machine with {num_gpus} usable GPUs")
    return device


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with its tensors on the device, as plain tensors without MONAI's metadata."""
    return {k: v.as_subclass(Tensor).to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
