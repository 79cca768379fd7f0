"""Ditto: every site trains a personal model that stays near the shared one (Li et al. 2021, arXiv 2012.04221)."""

from __future__ import annotations

import copy
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from omnifm.config import STRICT
from omnifm.method import LocalRound, Method, Model, Output, Partition, Tensors
from omnifm.model import PlainModel
from omnifm.task import Backbone, Batch, Task


@dataclass(frozen=True, config=STRICT)
class Settings:
    """The method section of a job that uses Ditto."""

    lam: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Weight lambda of the pull of the personal model towards the received one, >= 0.  0 trains each site alone (as
    `local`); a large value keeps the personal model near that of FedAvg.  The default is from the usual range 0.1 to
    1."""
    share_buffers: bool = True
    """Whether normalisation statistics of the shared model are averaged too.  False keeps each site's own."""


class Pair(PlainModel):
    """The shared model w and the personal model v, which starts as a copy of w.  Predictions are those of v."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.own = PlainModel(copy.deepcopy(backbone))

    def forward(self, batch: Batch, extra: Tensors) -> Output:
        """What v predicts."""
        return self.own(batch, extra)

    def shared(self, batch: Batch, extra: Tensors) -> Output:
        """What w predicts."""
        return super().forward(batch, extra)


class Ditto(Method):
    """v minimises L(v) + lambda / 2 |v - w_received|^2 (eq. 2), while w is trained as by FedAvg.

    Both models are trained on the same batches, so a round costs twice the time and memory.  Scores are those of v.
    """

    Settings = Settings
    travels = "The shared one of two models; the personal model stays at the site."
    when = "Choose it where every site needs a model of its own and you can afford twice the time and memory."

    def build(self, task: Task) -> Model:
        """Two copies of the plain backbone."""
        return Pair(task.backbone())

    def partition(self, model: Model) -> Partition:
        """v is personal."""
        assert isinstance(model, Pair)
        return Partition.of(model, personal=[model.own], share_buffers=self.settings.share_buffers)

    def objective(self, local: LocalRound, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both models are trained at once, because they have no weight in common; the loss of v is reported."""
        assert isinstance(local.model, Pair)
        own, shared = (
            local.task.loss(model(batch, local.extra).prediction.float(), batch)
            for model in (local.model, local.model.shared)
        )
        return own + shared + 0.5 * self.settings.lam * self._squared_distance(local), own

    def _squared_distance(self, local: LocalRound) -> Float[Tensor, ""]:
        """|v - w_received|^2 over the shared weights."""
        assert isinstance(local.model, Pair)
        owns = local.model.own.backbone.named_parameters()
        pairs = [(v, local.received.get(f"backbone.{name}")) for name, v in owns]
        return torch.stack([((v - w) ** 2).sum() for v, w in pairs if w is not None]).sum()
