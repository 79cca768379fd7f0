"""FedALA: each site learns how to mix the global model with its own (Zhang et al. 2023, arXiv 2212.01197)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import pstdev

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from omnifm.config import STRICT, Count, Fraction, Positive
from omnifm.method import LocalRound, Model, Tensors
from omnifm.methods._layers import layers
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity
from omnifm.task import Batch, Task

WINDOW = 10
"""Number of last passes whose losses decide whether the first learning of W has converged."""
STEADY = 0.1
"""It has converged if the standard deviation of these losses is below this value."""


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """The method section of a job that uses FedALA."""

    num_layers: Count = 1
    """Number p of layers that are mixed, counted from the prediction, >= 1.  The layers below are taken from the global
    model.  More layers give the site more freedom and cost more time."""
    eta: Positive = 1.0
    """Learning rate of the mixing weights W, > 0.  A tiny value keeps W at 1, which is FedAvg; a large one moves W to 0
    or 1 in one step."""
    share: Fraction = 0.8
    """Share of the training batches from which W is learnt, in (0, 1].  A small share is faster; 1 uses all batches."""
    max_epochs: Count = 20
    """Maximum number of passes when W is learnt for the first time, >= 1 (ours: the published loop may never end)."""
    share_buffers: bool = True
    """Whether normalisation statistics are averaged too.  They are taken from the global model unmixed.  False keeps
    each site's own."""


class FedALA(FedAvg):
    """Training starts from w_k + (w - w_k) * W (eq. 4), with W in [0, 1] learnt on local data (algorithm 1).

    w is the global model, w_k the weights that the site trained last, W one number per weight, 1 at first.

    Two differences from the published code: a layer is a matrix or kernel with the vectors that follow it (there, one
    tensor), and the batches for W are drawn at random (there, one contiguous piece).  Only layers of the backbone are
    mixed, in either capacity: the suffix and the reader of the matched model are taken from the global model.
    """

    Settings = Settings
    when = "Choose it where sites differ and each should take from the shared model only what helps on its own data."

    def build(self, task: Task) -> Model:
        """Build the plain or the matched model, and note the names of the layers to mix."""
        model = super().build(task)
        upper = layers(model.backbone)[-self.settings.num_layers :]
        self.upper = [f"backbone.{name}" for layer in upper for name in layer]
        return model

    def begin(self, local: LocalRound) -> None:
        """Learn W and mix the upper layers; in a site's first round there is nothing to mix."""
        weights = {name: local.model.get_parameter(name) for name in self.upper}
        weights = {name: p for name, p in weights.items() if p.requires_grad and f"own/{name}" in local.memory}
        if not weights:
            return
        device = next(iter(weights.values())).device
        old = {name: local.memory[f"own/{name}"].to(device) for name in weights}
        first = not any(name.startswith("mix/") for name in local.memory)
        mix = {n: local.memory.get(f"mix/{n}", torch.ones_like(w.data)).to(device) for n, w in weights.items()}
        _load_mixture(weights, old, local.received, mix)
        local.model.eval()  # so that normalisation statistics do not change
        losses: list[float] = []
        for _ in range(self.settings.max_epochs if first else 1):
            losses.append(self._pass(local, weights, old, mix))
            if len(losses) > WINDOW and pstdev(losses[-WINDOW:]) < STEADY:
                break
        local.memory.update({f"mix/{name}": value for name, value in mix.items()})

    def _pass(self, local: LocalRound, weights: dict[str, nn.Parameter], old: Tensors, mix: Tensors) -> float:
        """Improve `mix` (W) by one pass of gradient descent; return the loss of the last batch."""
        for batch in self._some(local.side_batches()):
            loss = local.task.loss(local.model(batch, local.extra).prediction, batch)
            for name, slope in zip(weights, _slopes(loss, weights), strict=True):
                change = self.settings.eta * slope * (local.received[name] - old[name])
                mix[name] = (mix[name] - change).clamp(0, 1)
            _load_mixture(weights, old, local.received, mix)
        return loss.item()

    def finish(self, local: LocalRound) -> tuple[Tensors, dict[str, object]]:
        """Store the trained upper layers at the site."""
        for name in self.upper:
            # A copy, because soup changes the model after this.
            local.memory[f"own/{name}"] = local.model.get_parameter(name).detach().clone()
        return {}, {}

    def _some(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The first `share` of the batches, evenly spread; at least one.  They come in random order."""
        share = self.settings.share
        return (batch for i, batch in enumerate(batches) if math.ceil((i + 1) * share) > math.ceil(i * share))


def _load_mixture(weights: dict[str, nn.Parameter], old: Tensors, new: Tensors, mix: Tensors) -> None:
    """Set each weight to old + (new - old) * mix."""
    for name, weight in weights.items():
        weight.data = torch.lerp(old[name], new[name], mix[name])


def _slopes(loss: Tensor, weights: dict[str, nn.Parameter]) -> tuple[Tensor, ...]:
    """Gradient of the loss by each weight; zeros where the loss does not depend on it."""
    return torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
