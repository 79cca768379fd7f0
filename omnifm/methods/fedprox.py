"""FedProx: a proximal term keeps local training near the received model (Li et al. 2020, arXiv 1812.06127)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from omnifm.config import STRICT
from omnifm.method import LocalRound, Output
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity
from omnifm.task import Batch


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """The method section of a job that uses FedProx."""

    mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    """Weight mu of the pull towards the received model, >= 0.  0 is FedAvg; a large value hardly lets the model
    change."""
    share_buffers: bool = True
    """Whether normalisation statistics are averaged too.  The pull does not act on them.  False keeps each site's
    own."""


class FedProx(FedAvg):
    """Adds mu / 2 * |w - w_received|^2 (eq. 2) over the trained weights to the loss.

    Some libraries have mu = 0 by default, which is FedAvg, or leave the norm unsquared; this is the paper's term.
    """

    Settings = Settings
    when = "Choose it where sites differ, or train for many local epochs, and FedAvg drifts; mu needs tuning."

    def extra_loss(self, local: LocalRound, batch: Batch, output: Output) -> Tensor | float:
        """The proximal term."""
        pairs = [(p, local.received[name]) for name, p in local.model.named_parameters() if name in local.received]
        return 0.5 * self.settings.mu * torch.stack([((p - first) ** 2).sum() for p, first in pairs]).sum()
