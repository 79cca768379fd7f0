"""SCAFFOLD: control variates against the drift of local training (Karimireddy et al. 2020, arXiv 1910.06378)."""

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
    """SCAFFOLD's section of a job."""

    share_buffers: bool = True
    """Whether normalisation statistics are averaged too; they have no control variate."""


class Scaffold(FedAvg):
    """Every gradient g becomes g - c_k + c (algorithm 1); c_k is the mean gradient of the site's last round.

    For SGD that mean is exactly the paper's option II, c_k - c + (x - y) / (K eta); unlike that formula it also holds
    for Adam, momentum and weight decay, whose steps are no multiples of the gradient.  The server's step is 1.
    Sites count by n_k / N, in c as in the average, where the paper counts them alike; a site that was never drawn
    counts in c with zeros.

    What leaves a site is c_k itself, one vector over all weights, where the paper sends its change: then a lost reply
    is made good by the site's next one, a site may come to weigh more or less, and a site's first reply is of the size
    of the others'.  The server keeps the last c_k of every site, in memory and in each checkpoint: N times the
    weights, 4 GB for a thousand sites and a million of them.
    """

    Settings = Settings
    sends = frozenset({"control"})

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.controls: Tensors = {}
        self.c = torch.zeros(0)
        self.counted: Mapping[str, int] = {}

    # Both ends.
    def build(self, task: Task) -> Model:
        """The plain backbone, its weights counted."""
        model = super().build(task)
        self.num_weights = sum(model.get_parameter(name).numel() for name in self.weights)
        return model

    def undeclared(self, update: Update, metrics: Iterable[str]) -> str | None:
        """Also anything but one finite number per weight as control."""
        reason = super().undeclared(update, metrics)
        if reason is None and update.stage == "train":
            control = update.extra.get("control", torch.zeros(0))
            if (control.dtype, control.shape) != (torch.float32, (self.num_weights,)) or not control.isfinite().all():
                return f"control must be {self.num_weights} finite float32 numbers"
        return reason

    # The server's half: `controls` holds every site's c_k, as it sent it last.
    def payload(self, site: str, shared: Tensors, view: ServerView) -> tuple[Tensors, Tensors]:
        """The model, c, and whether c counts a c_k of this site."""
        if self.counted != view.sizes:  # once a round, not once a site
            self.c, self.counted = self._mean(view.sizes), view.sizes
        return shared, {"control": self.c, "counted": torch.tensor(int(site in self.controls))}

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """Weighted mean; absent sites keep their c_k."""
        self.controls |= {update.site: update.extra["control"] for update in updates}
        self.counted = {}
        return weighted_mean(shared, updates)

    def _mean(self, sizes: Mapping[str, int]) -> Tensor:
        """c, the sum of n_k c_k over N of all sites of the federation, by the sizes that they have now."""
        total = torch.zeros(self.num_weights, dtype=torch.float64)
        for site in sorted(self.controls):  # in one order, before and after a restart
            total.add_(self.controls[site], alpha=sizes[site])
        return (total / sum(sizes.values())).float()

    def server_state(self) -> tuple[Tensors, dict[str, object]]:
        """Every site's c_k."""
        return dict(self.controls), {}

    def restore(self, tensors: Tensors, record: dict[str, object]) -> None:
        """Invert `server_state`."""
        self.controls, self.counted = tensors, {}

    # The site's half.
    def begin(self, local: LocalRound) -> None:
        """Take c_k from the site's memory; zeros where c counts none of it, as at first and after a warm start."""
        c = local.extra["control"]
        own = local.memory.get("control") if local.extra["counted"] else None
        own = torch.zeros_like(c) if own is None else own.to(c.device)
        local.scratch.update(shift=c - own, sum=torch.zeros_like(c), steps=0)

    def correct_gradients(self, local: LocalRound) -> None:
        """g <- g - c_k + c, after noting g."""
        local.scratch["steps"] += 1
        parameters = [local.model.get_parameter(name) for name in self.weights]
        sizes = [parameter.numel() for parameter in parameters]
        pieces = zip(parameters, local.scratch["sum"].split(sizes), local.scratch["shift"].split(sizes), strict=True)
        for parameter, noted, shift in pieces:
            if parameter.grad is not None:
                noted += parameter.grad.flatten()
                parameter.grad += shift.view_as(parameter)

    def finish(self, local: LocalRound) -> tuple[Tensors, dict[str, object]]:
        """c_k, which the site remembers too."""
        local.memory["control"] = local.scratch["sum"] / local.scratch["steps"]
        return {"control": local.memory["control"]}, {}
