"""FedDyn: a regulariser makes the sites' optima agree with the global one (Acar et al. 2021, arXiv 2111.04263)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from omnifm.config import STRICT, Positive
from omnifm.method import LocalRound, Output, ServerView, Tensors, moved, to_sites, weighted_mean
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity
from omnifm.records import Json
from omnifm.task import Batch
from omnifm.update import Update, prefixed, under


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """The method section of a job that uses FedDyn."""

    alpha: Positive = 0.1
    """Weight alpha of the regulariser, > 0.  A small value lets the sites drift apart and makes the server's steps
    large; a large value keeps both near the received model.  The paper uses 0.01 to 0.1."""
    max_norm: Positive = 10.0
    """Maximum norm of a gradient, > 0; longer gradients are shortened, as in the authors' code.  A small value is slow,
    a very large one is no limit."""
    share_buffers: bool = True
    """Whether normalisation statistics are averaged too.  They are not regularised.  False keeps each site's own."""


class FedDyn(FedAvg):
    """Sites minimise L - <h_k, w> + alpha / 2 |w - w_received|^2; then h_k <- h_k - alpha (w_k - w_received).

    The server's model is the mean minus h / alpha, where h is the mean of the h_k of all sites, also of absent ones
    (algorithm 1).  Sites count by n_k / N; in the paper they count equally.  The norm is squared, as in the paper; some
    libraries leave it unsquared.

    Only the weights leave a site.  The server computes h_k from them and keeps one for every site, because the weight
    n_k / N of a site can change.  This takes the size of the model for every site, in memory and in each checkpoint:
    4 GB for a thousand sites and a million weights.

    Server and site must hold the same h_k, or the method has another optimum.  So the server tells a site in which
    round it last used a reply of this site.  If the site's last reply was lost, or belongs to an earlier run, the site
    returns to the h_k that the server knows.
    """

    Settings = Settings
    when = "Choose it where sites differ and train for many local epochs; with few rounds it can be unstable."

    def __init__(self, settings: Capacity) -> None:
        super().__init__(settings)
        self.h: dict[str, Tensors] = {}
        self.counted: dict[str, int] = {}

    # Both ends.
    def advance(self, h: Tensor, w: Tensor, received: Tensor) -> Tensor:
        """h_k <- h_k - alpha (w_k - w_received)."""
        return h - self.settings.alpha * (w - received)

    # The server's half: `h` holds every site's h_k, `counted` the round of the last reply that is in it.
    def payload(self, site: str, shared: Tensors, view: ServerView) -> tuple[Tensors, Tensors]:
        """The model, and the round of the site's last reply that was used; 0 before the first."""
        return shared, {"counted": torch.tensor(self.counted.get(site, 0))}

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """Mean over the sites that replied, minus h / alpha over all sites."""
        nothing = {name: torch.zeros_like(shared[name]) for name in self.weights}
        for update in updates:
            own = self.h.get(update.site, nothing)
            self.counted[update.site] = view.round
            self.h[update.site] = {n: self.advance(h, update.shared[n], shared[n]) for n, h in own.items()}
        mean = weighted_mean(shared, updates)
        num_cases = sum(view.sizes.values())
        for name in moved(updates, lambda _site: shared).intersection(self.weights):
            # A tensor that no site trained keeps its value: the last round that trained it has already applied its h.
            h = sum(view.sizes[site] * self.h[site][name].double() for site in sorted(self.h))
            mean[name] = (mean[name].double() - h / (num_cases * self.settings.alpha)).to(shared[name].dtype)
        return mean

    def server_state(self) -> tuple[Tensors, dict[str, object]]:
        """Every site's h_k, and the round of the last reply in it."""
        return prefixed(**self.h), {"counted": self.counted}

    def restore(self, tensors: Tensors, record: Json) -> None:
        """Invert `server_state`."""
        self.h = to_sites(tensors)
        self.counted = dict(record["counted"])

    # The site's half.
    def begin(self, local: LocalRound) -> None:
        """Read from the site's memory the h_k that the server has too; zeros at first."""
        counted = int(local.extra["counted"])
        last = int(local.memory.get("round", torch.tensor(0)))
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
        """Clip the gradients, because the linear term <h_k, w> has no lower bound."""
        torch.nn.utils.clip_grad_norm_(local.model.parameters(), self.settings.max_norm)

    def finish(self, local: LocalRound) -> tuple[Tensors, dict[str, object]]:
        """Store the new h_k, and the one before it: the server may not receive this reply."""
        local.memory["round"] = torch.tensor(local.round)
        for name, h in local.scratch["h"].items():
            now = self.advance(h, local.model.get_parameter(name).detach(), local.received[name])
            local.memory |= {f"before/{name}": h, f"h/{name}": now}
        return {}, {}
