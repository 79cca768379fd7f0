"""FedDyn: local objectives that agree with the global one where they end (Acar et al. 2021, arXiv 2111.04263)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from omnifm.config import STRICT, Positive
from omnifm.method import LocalRound, Output, Tensors, weighted_mean
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity
from omnifm.task import Batch
from omnifm.update import Update


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """FedDyn's section of a job."""

    alpha: Positive = 0.1
    """Regularisation alpha, > 0; a small one lets sites drift and the server overshoot, a large one holds both."""
    max_norm: Positive = 10.0
    """Largest norm of a gradient, > 0, clipped as in the authors' code; a small one is slow, a huge one no limit."""
    share_buffers: bool = True
    """Whether normalisation statistics are averaged too; they are not regularised."""


class FedDyn(FedAvg):
    """Sites minimise L - <h_k, w> + alpha / 2 |w - w_received|^2; then h_k <- h_k - alpha (w_k - w_received).

    The server's model is the mean minus h / alpha, where h is the mean of all h_k, absent sites included (algorithm
    1).  Sites count by n_k / N, where the paper counts them alike.  Libraries that leave the norm unsquared are not
    followed.  Nothing but the weights leaves a site: the server works h out from them.  A reply that is lost after the
    site has saved its state leaves h that much behind the mean of the h_k.
    """

    Settings = Settings

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.total: Tensors = {}

    # The server's half: `total` is the sum of n_k h_k.
    def start(self, shared: Tensors) -> None:
        """h = 0."""
        self.total = {name: torch.zeros_like(shared[name], dtype=torch.float64) for name in self.weights}

    def aggregate(self, shared: Tensors, updates: Iterable[Update], round_number: int) -> Tensors:
        """Mean of those who replied, minus h / alpha of all."""
        alpha, everyone = self.settings.alpha, sum(self.sizes.values())
        for update in updates:
            for name, h in self.total.items():
                h -= alpha * update.num_samples * (update.shared[name].double() - shared[name].double())
        mean = weighted_mean(shared, updates)
        moved = {name: (mean[name].double() - h / (everyone * alpha)) for name, h in self.total.items()}
        return mean | {name: value.to(shared[name].dtype) for name, value in moved.items()}

    def server_state(self) -> tuple[Tensors, dict[str, Any]]:
        """The sum behind h."""
        return dict(self.total), {}

    def restore(self, tensors: Tensors, record: dict[str, Any]) -> None:
        """Invert `server_state`."""
        self.total = tensors

    # The site's half.
    def begin(self, local: LocalRound) -> None:
        """Take h_k from the site's memory; zeros at first."""
        local.scratch["h"] = {
            name: local.memory.get(name, torch.zeros_like(local.received[name])).to(local.received[name].device)
            for name in self.weights
        }

    def extra_loss(self, local: LocalRound, batch: Batch, output: Output) -> Tensor | float:
        """-<h_k, w> + alpha / 2 |w - w_received|^2."""
        terms = []
        for name, h in local.scratch["h"].items():
            w = local.model.get_parameter(name)
            terms.append(0.5 * self.settings.alpha * ((w - local.received[name]) ** 2).sum() - (h * w).sum())
        return torch.stack(terms).sum()

    def correct_gradients(self, local: LocalRound) -> None:
        """Clip: the linear term has no bound of its own."""
        torch.nn.utils.clip_grad_norm_(local.model.parameters(), self.settings.max_norm)

    def finish(self, local: LocalRound) -> tuple[Tensors, dict[str, Any]]:
        """h_k <- h_k - alpha (w_k - w_received)."""
        for name, h in local.scratch["h"].items():
            change = local.model.get_parameter(name).detach() - local.received[name]
            local.memory[name] = h - self.settings.alpha * change
        return {}, {}
