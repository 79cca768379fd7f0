"""FedAdam: the server takes Adam's steps (Reddi et al. 2021, arXiv 2003.00295, algorithm 2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from omnifm.config import STRICT, Positive
from omnifm.method import ServerView, Tensors, moved, weighted_mean
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity
from omnifm.update import Update


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """The section of a job for FedAdam and FedYogi."""

    lr: Positive = 0.01
    """The server's learning rate eta, > 0; about the most that a weight moves in a round."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Memory of the mean step, [0, 1); 0 has none."""
    beta2: Annotated[float, Field(ge=0, le=1)] = 0.99
    """Memory of the squared step, [0, 1]; 1 keeps its first value tau^2, so that lr / (2 tau) scales every step."""
    tau: Positive = 1e-3
    """Adaptivity, > 0; a large one makes steps proportional to the sites' mean step, a tiny one explodes."""
    share_buffers: bool = True
    """Whether normalisation statistics are averaged too; never adapted, which could make a variance negative."""


class FedAdam(FedAvg):
    """d = mean - w, m <- b1 m + (1 - b1) d, v <- b2 v + (1 - b2) d^2, w <- w + lr m / (sqrt(v) + tau).

    As in the paper v starts at tau^2 and nothing is corrected for bias.  What rests at every site keeps its moments for
    later.
    """

    Settings = Settings

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.moments: Tensors = {}

    def start(self, shared: Tensors) -> None:
        """m = 0, v = tau^2."""
        for name in self.weights:
            self.moments[f"m/{name}"] = torch.zeros_like(shared[name], dtype=torch.float64)
            self.moments[f"v/{name}"] = torch.full_like(shared[name], self.settings.tau**2, dtype=torch.float64)

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """The step on the weights; statistics are plain means."""
        s, mean = self.settings, weighted_mean(shared, updates)
        for name in moved(updates, lambda _site: shared).intersection(self.weights):
            w, m, v = shared[name].double(), self.moments[f"m/{name}"], self.moments[f"v/{name}"]
            d = mean[name].double() - w
            m.mul_(s.beta1).add_((1 - s.beta1) * d)
            self.second_moment(v, d**2)
            mean[name] = (w + s.lr * m / (v.sqrt() + s.tau)).to(shared[name].dtype)
        return mean

    def second_moment(self, v: Tensor, squared: Tensor) -> None:
        """Adam's v, in place: a running mean of the squared steps."""
        v.mul_(self.settings.beta2).add_((1 - self.settings.beta2) * squared)

    def server_state(self) -> tuple[Tensors, dict[str, Any]]:
        """Both moments."""
        return dict(self.moments), {}

    def restore(self, tensors: Tensors, record: dict[str, Any]) -> None:
        """Invert `server_state`."""
        self.moments = tensors
