"""What one local round needs beside the model: seeds, the optimizer with its learning rates, and the precision.

A model that diverged is refused here, too.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from omnifm.config import Train
from omnifm.method import LocalRound

KEPT_PARTS = ("shared", "personal", "buffers")
"""Parts of a model that training changes and the site keeps."""


POWER = 0.9
"""Exponent of the schedule "poly", as in nnU-Net and DeepLab."""


@dataclass(frozen=True)
class Course:
    """Where a local training stands in the whole run, in optimisation steps of this site.

    Attributes:
        first: number of steps before it, >= 0.
        total: number of steps of all rounds, > 0.
        alone: whether its result only stays at the site: the last local training, after the last round.
    """

    first: int
    total: int
    alone: bool = False

    @classmethod
    def of(cls, train: Train, num_cases: int, round_number: int, *, alone: bool) -> Course:
        """The course of a round at a site with so many training cases.

        >>> Course.of(Train(10, 2, 4, 0.1), num_cases=9, round_number=3, alone=False)
        Course(first=12, total=60, alone=False)
        """
        batches = math.ceil(num_cases / train.batch_size)
        steps = train.local_epochs * math.ceil(batches / train.accumulate)
        return cls(steps * max(0, round_number - (not alone)), steps * train.num_rounds, alone)


def rate_share(train: Train, step: int, total: int) -> float:
    """The learning rate at a step of the whole run, as a share of `lr` in [0, 1].

    Args:
        step: from 0; from `total` on, the share is that of the last step.
        total: number of steps of the run.

    >>> cosine = Train(10, 1, 4, 0.1, schedule="cosine", warmup=0.1)
    >>> [round(rate_share(cosine, step, 100), 3) for step in (0, 9, 10, 55, 99, 500)]
    [0.1, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    done = min(step, total - 1) / total
    if done < train.warmup:
        return min(1.0, (done + 1 / total) / train.warmup)
    after_warmup = (done - train.warmup) / (1 - train.warmup)
    match train.schedule:
        case "constant":
            return 1.0
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * after_warmup))
        case "poly":
            return (1 - after_warmup) ** POWER


def make_optimizer(train: Train, course: Course, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """A new optimizer with the settings of the job's `train` section.

    Its own hooks clip the gradients before each step and set the next learning rate after it, so that every method
    obeys both without a line of its own.
    """
    own = list(parameters)
    decay = train.weight_decay
    optimizer: torch.optim.Optimizer
    match train.optimizer:
        case "adamw":
            optimizer = torch.optim.AdamW(own, lr=train.lr, weight_decay=decay)
        case "adam":
            optimizer = torch.optim.Adam(own, lr=train.lr, weight_decay=decay)
        case "sgd":
            optimizer = torch.optim.SGD(
                own, lr=train.lr, weight_decay=decay, momentum=train.momentum, nesterov=train.nesterov
            )
    if (limit := train.grad_clip) is not None:
        optimizer.register_step_pre_hook(lambda *_: clip(own, limit))
    if course.alone and train.personal_lr is not None:
        for group in optimizer.param_groups:
            group["lr"] = train.lr * train.personal_lr
    elif train.schedule != "constant" or train.warmup > 0:
        scheduler = LambdaLR(optimizer, lambda step: rate_share(train, course.first + step, course.total))
        optimizer.register_step_post_hook(lambda *_: scheduler.step())
    return optimizer


def clip(parameters: Sequence[nn.Parameter], limit: float) -> None:
    """Scale the gradients down to a common L2 norm of at most `limit`."""
    nn.utils.clip_grad_norm_(parameters, limit)


def autocast_for(train: Train, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """What makes the context in which a model computes in the job's precision."""
    if train.precision == "fp32":
        return nullcontext
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[train.precision]
    return partial(torch.autocast, device.type, dtype=dtype)


def scaler_for(train: Train, device: torch.device) -> torch.amp.GradScaler:
    """The gradient scaler of half precision; it does nothing in the other precisions.

    Raises:
        ValueError: half precision on a processor.
    """
    if train.precision == "fp16" and device.type == "cpu":
        raise ValueError("train.precision fp16 needs a GPU; this site trains on its processor: choose bf16 or fp32")
    return torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")


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
