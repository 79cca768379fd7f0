"""SCAFFOLD: control variates against the drift of local training (Karimireddy et al. 2020, arXiv 1910.06378)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic.dataclasses import dataclass

from omnifm.config import STRICT
from omnifm.method import LocalRound, Model, Tensors, weighted_mean
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
    counts in c with zeros.  What leaves a site is the change of c_k, one vector over all weights.  A reply that is
    lost after the site has saved its state leaves c that much behind the mean of the c_k.
    """

    Settings = Settings
    sends = frozenset({"control"})

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.total = torch.zeros(0)

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

    # The server's half: `total` is the sum of n_k c_k.
    def start(self, shared: Tensors) -> None:
        """c = 0."""
        self.total = torch.zeros(self.num_weights, dtype=torch.float64)

    def payload(self, site: str, shared: Tensors) -> tuple[Tensors, Tensors]:
        """The model and c."""
        return shared, {"control": (self.total / sum(self.sizes.values())).float()}

    def aggregate(self, shared: Tensors, updates: Iterable[Update], round_number: int) -> Tensors:
        """Weighted mean; absent sites keep their share in c."""
        for update in updates:
            self.total += update.num_samples * update.extra["control"].double()
        return weighted_mean(shared, updates)

    def server_state(self) -> tuple[Tensors, dict[str, Any]]:
        """The sum behind c."""
        return {"total": self.total}, {}

    def restore(self, tensors: Tensors, record: dict[str, Any]) -> None:
        """Invert `server_state`."""
        self.total = tensors["total"]

    # The site's half.
    def begin(self, local: LocalRound) -> None:
        """Take c_k from the site's memory; zeros at first."""
        c = local.extra["control"]
        own = local.memory.get("control", torch.zeros_like(c)).to(c.device)
        local.scratch.update(own=own, shift=c - own, sum=torch.zeros_like(c), steps=0)

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

    def finish(self, local: LocalRound) -> tuple[Tensors, dict[str, Any]]:
        """The change of c_k; c_k itself stays."""
        control = local.scratch["sum"] / local.scratch["steps"]
        local.memory["control"] = control
        return {"control": control - local.scratch["own"]}, {}
