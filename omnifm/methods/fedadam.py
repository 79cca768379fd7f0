"""FedAdam: the server applies Adam to the sites' mean change (Reddi et al. 2021, arXiv 2003.00295, algorithm 2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

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
    """The method section of a job that uses FedAdam or FedYogi."""

    lr: Positive = 0.01
    """Learning rate eta of the server, > 0: roughly the largest change of a weight in one round.  A small value is
    slow, a large one unstable."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay beta1 of the running mean m of the changes, in [0, 1).  0 uses the last round only; near 1 reacts
    slowly."""
    beta2: Annotated[float, Field(ge=0, le=1)] = 0.99
    """Decay beta2 of the running mean v of the squared changes, in [0, 1].  0 uses the last round only; 1 keeps v at
    its first value tau^2, so that every mean change is multiplied by lr / (2 tau)."""
    tau: Positive = 1e-3
    """Constant tau in the denominator, > 0.  A large value makes steps proportional to the sites' mean change; a tiny
    one makes training diverge."""
    share_buffers: bool = True
    """Whether normalisation statistics are averaged too.  They are plain means: a step of Adam could make a variance
    negative.  False keeps each site's own."""


class FedAdam(FedAvg):
    """d = mean - w, m <- b1 m + (1 - b1) d, v <- b2 v + (1 - b2) d^2, w <- w + lr m / (sqrt(v) + tau).

    As in the paper, v starts at tau^2 and there is no bias correction.  A tensor that no site trained in a round
    (frozen by a schedule) keeps its value and its moments.
    """

    Settings = Settings
    when = "Choose it where FedAvg moves slowly or jumps from round to round; it needs its server learning rate tuned."

    def __init__(self, settings: Capacity) -> None:
        super().__init__(settings)
        self.moments: Tensors = {}

    def start(self, shared: Tensors) -> None:
        """Set m = 0 and v = tau^2."""
        for name in self.weights:
            self.moments[f"m/{name}"] = torch.zeros_like(shared[name], dtype=torch.float64)
            self.moments[f"v/{name}"] = torch.full_like(shared[name], self.settings.tau**2, dtype=torch.float64)

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """Take the step on the trained weights; normalisation statistics are plain means."""
        s = self.settings
        mean = weighted_mean(shared, updates)
        for name in moved(updates, lambda _site: shared).intersection(self.weights):
            w = shared[name].double()
            m = self.moments[f"m/{name}"]
            v = self.moments[f"v/{name}"]
            d = mean[name].double() - w
            m.mul_(s.beta1).add_((1 - s.beta1) * d)
            self.second_moment(v, d**2)
            mean[name] = (w + s.lr * m / (v.sqrt() + s.tau)).to(shared[name].dtype)
        return mean

    def second_moment(self, v: Tensor, squared: Tensor) -> None:
        """Update Adam's v in place: a running mean of the squared changes."""
        v.mul_(self.settings.beta2).add_((1 - self.settings.beta2) * squared)

    def server_state(self) -> tuple[Tensors, dict[str, object]]:
        """Both moments, as `m/<name>` and `v/<name>`."""
        return dict(self.moments), {}

    def restore(self, tensors: Tensors, record: dict[str, object]) -> None:
        """Invert `server_state`."""
        self.moments = tensors
