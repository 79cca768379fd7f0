"""FedALA: each site learns how much of the global model to take over (Zhang et al. 2023, arXiv 2212.01197)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import pstdev
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from omnifm.config import STRICT, Count, Fraction, Positive
from omnifm.method import LocalRound, Model, Tensors
from omnifm.methods._layers import layers
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity
from omnifm.task import Batch, Task

WINDOW, STEADY = 10, 0.1
"""Passes whose losses must vary by less than this (standard deviation) for the first learning to end."""


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """FedALA's section of a job."""

    num_layers: Count = 1
    """Layers p, counted from the prediction, that are mixed; those below are taken over whole."""
    eta: Positive = 1.0
    """Learning rate of the mixture, > 0; a tiny one keeps to the global model and so to FedAvg."""
    share: Fraction = 0.8
    """Share of the training batches that the mixture learns from, (0, 1]; 1 is all of them."""
    max_epochs: Count = 20
    """Most passes of the first learning; the published loop may never end."""
    share_buffers: bool = True
    """Whether normalisation statistics are averaged too; they are taken over whole."""


class FedALA(FedAvg):
    """Training starts from w_k + (w - w_k) * W (eq. 4), with W in [0, 1] learnt on local data (algorithm 1).

    w_k is what the site trained last, W one number per weight, at first 1.  A layer is a matrix or kernel with the
    vectors that follow it, where the published code counts tensors; batches are drawn at random, where it cuts a
    contiguous piece.  Layers are the backbone's in either capacity: the matched model's suffix and reader stand before
    its head and are taken over whole.
    """

    Settings = Settings

    def build(self, task: Task) -> Model:
        """The plain or the matched model, its upper layers noted."""
        model = super().build(task)
        upper = layers(model.backbone)[-self.settings.num_layers :]
        self.upper = [f"backbone.{name}" for layer in upper for name in layer]
        return model

    def begin(self, local: LocalRound) -> None:
        """Learn W and set the upper layers; in a site's first round there is nothing to mix."""
        weights = {name: local.model.get_parameter(name) for name in self.upper}
        weights = {name: p for name, p in weights.items() if p.requires_grad and f"own/{name}" in local.memory}
        if not weights:
            return
        device = next(iter(weights.values())).device
        old = {name: local.memory[f"own/{name}"].to(device) for name in weights}
        first = not any(name.startswith("mix/") for name in local.memory)
        mix = {n: local.memory.get(f"mix/{n}", torch.ones_like(w.data)).to(device) for n, w in weights.items()}
        _set(weights, old, local.received, mix)
        local.model.eval()  # statistics at rest
        losses: list[float] = []
        for _ in range(self.settings.max_epochs if first else 1):
            for batch in self._some(local.side_batches()):
                loss = local.task.loss(local.model(batch, local.extra).prediction, batch)
                for (name, _), slope in zip(weights.items(), _slopes(loss, weights), strict=True):
                    change = self.settings.eta * slope * (local.received[name] - old[name])
                    mix[name] = (mix[name] - change).clamp(0, 1)
                _set(weights, old, local.received, mix)
            losses.append(loss.item())
            if len(losses) > WINDOW and pstdev(losses[-WINDOW:]) < STEADY:
                break
        local.memory.update({f"mix/{name}": value for name, value in mix.items()})

    def finish(self, local: LocalRound) -> tuple[Tensors, dict[str, Any]]:
        """Remember what was trained."""
        for name in self.upper:
            local.memory[f"own/{name}"] = local.model.get_parameter(name).detach().clone()  # soup writes into it
        return {}, {}

    def _some(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The share of an epoch's batches, which come in random order; never none."""
        share = self.settings.share
        return (batch for i, batch in enumerate(batches) if math.ceil((i + 1) * share) > math.ceil(i * share))


def _set(weights: dict[str, nn.Parameter], old: Tensors, new: Tensors, mix: Tensors) -> None:
    for name, weight in weights.items():
        weight.data = torch.lerp(old[name], new[name], mix[name])


def _slopes(loss: Tensor, weights: dict[str, nn.Parameter]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
