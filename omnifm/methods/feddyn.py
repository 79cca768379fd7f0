"""FedDyn: local objectives that agree with the global one where they end (Acar et al. 2021, arXiv 2111.04263)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from omnifm.config import STRICT, Positive
from omnifm.method import LocalRound, Output, ServerView, Tensors, moved, to_sites, weighted_mean
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity
from omnifm.task import Batch
from omnifm.update import Update, prefixed, under


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
    followed.

    Nothing but the weights leaves a site: the server works h_k out from them and keeps that of every site, so that
    one may come to weigh more or less: N times what travels, in memory and in each checkpoint, 4 GB for a thousand
    sites and a million weights.  The server tells a site in which round it last counted a reply of it; of one that was
    lost, or that a run before this one has left, the site takes its h_k back, else the sum of all h_k would never be
    zero and the optimum another.
    """

    Settings = Settings

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.h: dict[str, Tensors] = {}
        self.counted: dict[str, int] = {}

    # Both ends.
    def advance(self, h: Tensor, w: Tensor, received: Tensor) -> Tensor:
        """h_k <- h_k - alpha (w_k - w_received)."""
        return h - self.settings.alpha * (w - received)

    # The server's half: `h` holds every site's h_k, `counted` the round of the last reply in it.
    def payload(self, site: str, shared: Tensors, view: ServerView) -> tuple[Tensors, Tensors]:
        """The model, and the round of the site's last reply that was counted, 0 before any."""
        return shared, {"counted": torch.tensor(self.counted.get(site, 0))}

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """Mean of those who replied, minus h / alpha of all."""
        nothing = {name: torch.zeros_like(shared[name]) for name in self.weights}
        for update in updates:
            own, self.counted[update.site] = self.h.get(update.site, nothing), view.round
            self.h[update.site] = {n: self.advance(h, update.shared[n], shared[n]) for n, h in own.items()}
        mean, everyone = weighted_mean(shared, updates), sum(view.sizes.values())
        for name in moved(updates, lambda _site: shared).intersection(self.weights):
            # What rests is left alone: its h has moved it already, in the last round that trained it.
            h = sum(view.sizes[site] * self.h[site][name].double() for site in sorted(self.h))
            mean[name] = (mean[name].double() - h / (everyone * self.settings.alpha)).to(shared[name].dtype)
        return mean

    def server_state(self) -> tuple[Tensors, dict[str, Any]]:
        """Every site's h_k, and the round that it is of."""
        return prefixed(**self.h), {"counted": self.counted}

    def restore(self, tensors: Tensors, record: dict[str, Any]) -> None:
        """Invert `server_state`."""
        self.h, self.counted = to_sites(tensors), dict(record["counted"])

    # The site's half.
    def begin(self, local: LocalRound) -> None:
        """Take h_k from the site's memory, as the server knows it; zeros at first."""
        counted, last = int(local.extra["counted"]), int(local.memory.get("round", torch.tensor(0)))
        known = "h" if counted == last else "before"
        own = under(local.memory, known) if counted else {}
        nothing = {name: torch.zeros_like(local.received[name]) for name in self.weights}
        local.scratch["h"] = {name: own.get(name, zeros).to(zeros.device) for name, zeros in nothing.items()}

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
        """Remember h_k, and the one before it for as long as the server may not have counted this reply."""
        local.memory["round"] = torch.tensor(local.round)
        for name, h in local.scratch["h"].items():
            now = self.advance(h, local.model.get_parameter(name).detach(), local.received[name])
            local.memory |= {f"before/{name}": h, f"h/{name}": now}
        return {}, {}
