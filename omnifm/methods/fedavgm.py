"""FedAvgM: momentum at the server (Hsu et al. 2019, arXiv 1909.06335)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

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
    """FedAvgM's section of a job."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum beta, [0, 1); 0 with lr 1 is FedAvg, near 1 the server hardly turns."""
    lr: Positive = 1.0
    """The server's learning rate, > 0; 1 takes the sites' mean step whole."""
    share_buffers: bool = True
    """Whether normalisation statistics are averaged too; they have no momentum."""


class FedAvgM(FedAvg):
    """v <- beta v + (mean - w), w <- w + lr v; what rests at every site keeps its v for later."""

    Settings = Settings

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.velocity: Tensors = {}

    def start(self, shared: Tensors) -> None:
        """No velocity yet."""
        self.velocity = {name: torch.zeros_like(shared[name], dtype=torch.float64) for name in self.weights}

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """The momentum step on the weights; statistics are plain means."""
        mean = weighted_mean(shared, updates)
        for name in moved(updates, lambda _site: shared).intersection(self.velocity):
            w, v = shared[name].double(), self.velocity[name]
            v.mul_(self.settings.momentum).add_(mean[name].double() - w)
            mean[name] = (w + self.settings.lr * v).to(shared[name].dtype)
        return mean

    def server_state(self) -> tuple[Tensors, dict[str, Any]]:
        """The velocity."""
        return dict(self.velocity), {}

    def restore(self, tensors: Tensors, record: dict[str, Any]) -> None:
        """Invert `server_state`."""
        self.velocity = tensors
