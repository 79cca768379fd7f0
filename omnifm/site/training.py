"""What one local round needs beside the model: seeds, the optimizer, and the refusal of a model that diverged."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from omnifm.config import Train
from omnifm.method import LocalRound

KEPT_PARTS = ("shared", "personal", "buffers")
"""Parts of a model that training changes and the site keeps."""


def make_optimizer(train: Train, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """A new optimizer with the settings of the job's `train` section."""
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    return kinds[train.optimizer](parameters, lr=train.lr, weight_decay=train.weight_decay)


def seed_everything(*parts: str | int) -> int:
    """Seed every random generator and return the number.

    Args:
        parts: what the number depends on: the run's seed, the site, the stage and the round.
    """
    seed = int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "little") >> 1
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def refuse_divergence(local: LocalRound) -> None:
    """Refuse a trained model that is not finite, before anything of it is kept: the next round starts from that.

    Raises:
        ValueError: a trained tensor, or one in the method's memory, holds NaN or infinity.
    """
    state = local.model.state_dict()
    parts = {part: {name: state[name] for name in getattr(local.partition, part)} for part in KEPT_PARTS}
    for part, tensors in (parts | {"remembered": local.memory}).items():
        for name, value in tensors.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ValueError(
                    f"nothing is sent: the trained {part} part {name!r} must be finite; got NaN or infinity"
                )
