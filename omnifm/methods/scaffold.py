"""SCAFFOLD: control variates correct the drift of local training (Karimireddy et al. 2020, arXiv 1910.06378)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from omnifm.config import STRICT
from omnifm.method import LocalRound, Model, ServerView, Tensors, weighted_mean
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity
from omnifm.task import Task
from omnifm.update import Update


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """The method section of a job that uses SCAFFOLD."""

    share_buffers: bool = True
    """Whether normalisation statistics are averaged too.  They have no control variate.  False keeps each site's
    own."""


class Scaffold(FedAvg):
    """Every gradient g becomes g - c_k + c (algorithm 1); c_k is the mean gradient of the site's last round.

    For SGD this mean is exactly option II of the paper, c_k - c + (x - y) / (K eta).  Unlike that formula it is also
    correct for Adam, momentum and weight decay, where a step is not a multiple of the gradient.  The server's learning
    rate is 1.  Sites count by n_k / N, in c as in the average; in the paper they count equally.  A site that has not
    replied yet counts in c with zeros.

    A site sends c_k itself: one number per weight.  The paper sends the change of c_k.  With c_k itself, the next reply
    repairs a lost one, the weight n_k / N of a site can change, and a site's first reply is as large as the others'.
    The server keeps the last c_k of every site, in memory and in each checkpoint: 4 GB for a thousand sites
    and a million weights.
    """

    Settings = Settings
    travels = "What FedAvg sends, and a control variate of the same size."
    when = "Choose it where sites differ and train with plain SGD for many local steps; it doubles the traffic."
    sends = frozenset({"control"})

    def __init__(self, settings: Capacity) -> None:
        super().__init__(settings)
        self.controls: Tensors = {}
        self.c = torch.zeros(0)
        self.counted: Mapping[str, int] = {}

    # Both ends.
    def build(self, task: Task) -> Model:
        """Build the plain or the matched model, and count its trained weights."""
        model = super().build(task)
        self.num_weights = sum(model.get_parameter(name).numel() for name in self.weights)
        return model

    def undeclared(self, update: Update, metrics: Iterable[str]) -> str | None:
        """Also refuse a control that is not one finite number per weight."""
        reason = super().undeclared(update, metrics)
        if reason is None and update.stage == "train":
            control = update.extra.get("control", torch.zeros(0))
            if (control.dtype, control.shape) != (torch.float32, (self.num_weights,)) or not control.isfinite().all():
                return f"control must be {self.num_weights} finite float32 numbers"
        return reason

    # The server's half: `controls` holds the c_k that each site sent last.
    def payload(self, site: str, shared: Tensors, view: ServerView) -> tuple[Tensors, Tensors]:
        """The model, c, and whether c includes a c_k of this site."""
        if self.counted != view.sizes:  # once a round, not once a site
            self.c, self.counted = self._mean(view.sizes), view.sizes
        return shared, {"control": self.c, "counted": torch.tensor(int(site in self.controls))}

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """Weighted mean; absent sites keep their c_k."""
        self.controls |= {update.site: update.extra["control"] for update in updates}
        self.counted = {}
        return weighted_mean(shared, updates)

    def _mean(self, sizes: Mapping[str, int]) -> Tensor:
        """c: the sum of n_k c_k / N over all sites of the federation, with their present sizes."""
        total = torch.zeros(self.num_weights, dtype=torch.float64)
        for site in sorted(self.controls):  # a fixed order, so that a restart changes no bit of the sum
            total.add_(self.controls[site], alpha=sizes[site])
        return (total / sum(sizes.values())).float()

    def server_state(self) -> tuple[Tensors, dict[str, object]]:
        """The c_k of every site."""
        return dict(self.controls), {}

    def restore(self, tensors: Tensors, record: dict[str, object]) -> None:
        """Invert `server_state`."""
        self.controls = tensors
        self.counted = {}

    # The site's half.
    def begin(self, local: LocalRound) -> None:
        """Read c_k from the site's memory; zeros if c includes none of it (first round, or after a warm start)."""
        c = local.extra["control"]
        own = local.memory.get("control") if local.extra["counted"] else None
        own = torch.zeros_like(c) if own is None else own.to(c.device)
        local.scratch.update(shift=c - own, sum=torch.zeros_like(c), steps=0)

    def correct_gradients(self, local: LocalRound) -> None:
        """Add g to the sum behind the next c_k, then g <- g - c_k + c."""
        local.scratch["steps"] += 1
        parameters = [local.model.get_parameter(name) for name in self.weights]
        sizes = [parameter.numel() for parameter in parameters]
        pieces = zip(parameters, local.scratch["sum"].split(sizes), local.scratch["shift"].split(sizes), strict=True)
        for parameter, total, shift in pieces:
            if parameter.grad is not None:
                total += parameter.grad.flatten()
                parameter.grad += shift.view_as(parameter)

    def finish(self, local: LocalRound) -> tuple[Tensors, dict[str, object]]:
        """Send the new c_k; the site keeps it too."""
        local.memory["control"] = local.scratch["sum"] / local.scratch["steps"]
        return {"control": local.memory["control"]}, {}
