"""FedAvgM: FedAvg with momentum at the server (Hsu et al. 2019, arXiv 1909.06335)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from omnifm.config import STRICT, Positive
from omnifm.method import ServerView, Tensors, moved, weighted_mean
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity
from omnifm.update import Update


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """The method section of a job that uses FedAvgM."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum beta, in [0, 1).  0 (with lr 1) is FedAvg; near 1 the direction of the server's steps changes slowly."""
    lr: Positive = 1.0
    """Learning rate of the server, > 0.  1 applies the full step; a smaller value is slower, a larger one less
    stable."""
    share_buffers: bool = True
    """Whether normalisation statistics are averaged too.  They have no momentum.  False keeps each site's own."""


class FedAvgM(FedAvg):
    """v <- beta v + (mean - w), w <- w + lr v.

    A tensor that no site trained in a round (frozen by a schedule) keeps its value and its v.
    """

    Settings = Settings
    when = "Choose it where FedAvg goes back and forth from round to round, for example with few sites per round."

    def __init__(self, settings: Capacity) -> None:
        super().__init__(settings)
        self.velocity: Tensors = {}

    def start(self, shared: Tensors) -> None:
        """Set v = 0."""
        self.velocity = {name: torch.zeros_like(shared[name], dtype=torch.float64) for name in self.weights}

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """Take the step on the trained weights; normalisation statistics are plain means."""
        mean = weighted_mean(shared, updates)
        for name in moved(updates, lambda _site: shared).intersection(self.velocity):
            w = shared[name].double()
            v = self.velocity[name]
            v.mul_(self.settings.momentum).add_(mean[name].double() - w)
            mean[name] = (w + self.settings.lr * v).to(shared[name].dtype)
        return mean

    def server_state(self) -> tuple[Tensors, dict[str, object]]:
        """The velocity v."""
        return dict(self.velocity), {}

    def restore(self, tensors: Tensors, record: dict[str, object]) -> None:
        """Invert `server_state`."""
        self.velocity = tensors
