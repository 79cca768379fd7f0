"""GPFL: global and personal features side by side (Zhang et al. 2023, arXiv 2308.10279).  Classification only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from omnifm.config import STRICT
from omnifm.method import LocalRound, Method, Model, Output, Partition, Tensors
from omnifm.task import Backbone, Batch, Task

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=STRICT)
class Settings:
    """GPFL's section of a job."""

    lam: Weight = 0.01
    """Weight lambda of the pull towards the class embeddings, >= 0; 0 leaves only their directions to guide."""
    mu: Weight = 0.0
    """L2 penalty mu on class embeddings and conditional valve, >= 0; 0 is none."""
    share_buffers: bool = False
    """Whether normalisation statistics are averaged."""


class ConditionalValve(nn.Module):
    """CoV: scales and shifts features as a condition says, relu((gamma + 1) f + beta) (eq. 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.LayerNorm(width)) for _ in range(2)
        )

    def forward(self, features: Float[Tensor, "b q"], condition: Float[Tensor, " q"]) -> Float[Tensor, "b q"]:
        return F.relu((self.gamma(condition) + 1) * features + self.beta(condition))


class Conditions(nn.Module):
    """What the valve is told: `anchors` (c q), the class embeddings as the site last received them, and `share` (c),
    how frequent each class is at the site, zeros at the server."""

    share: Tensor
    anchors: Tensor

    def __init__(self, embeddings: Float[Tensor, "c q"]) -> None:
        super().__init__()
        self.register_buffer("share", torch.zeros(len(embeddings)))
        self.register_buffer("anchors", embeddings.detach().clone())


class TwoFeatures(Model):
    """Backbone, valve and class embeddings (c q); it predicts from the personal feature."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone, self.valve = backbone, ConditionalValve(backbone.width)
        self.embeddings = nn.Embedding(num_classes, backbone.width)
        self.conditions = Conditions(self.embeddings.weight)

    def forward(self, batch: Batch, extra: Tensors) -> Output:
        """`token` is the global feature (b q)."""
        tokens, features = self.backbone.encode(batch)
        mean, told = tokens.mean(dim=1), self.conditions
        personal = self.valve(mean, told.share @ told.anchors)
        everyones = self.valve(mean, told.anchors.mean(dim=0))
        return Output(self.backbone.decode(personal[:, None], features, batch), everyones)

    def personal(self) -> Sequence[nn.Module | nn.Parameter]:
        """The head, and the conditions, which tell the site's class frequencies."""
        return [*self.backbone.head(), self.conditions]


class GPFL(Method):
    """Cross-entropy of the personal feature, and guidance of the global one by class embeddings that all sites share.

    The guidance is a softmax over cosines to the embeddings, and lambda |f - embedding of the class|^2, the mean over
    the batch; published code leaves this norm unsquared, and computes the two conditions from the embeddings of the
    round before.  The feature is the mean of the backbone's tokens.

    Raises:
        ValueError: from `build`, where the task does not give every image one class.
    """

    Settings = Settings

    def build(self, task: Task) -> Model:
        """The backbone with the valve and one embedding per class."""
        backbone = task.backbone()
        if backbone.reads != "suffix" or "labels" not in task.spec:
            raise ValueError(f"gpfl needs a task with one class per image; got {type(task).__name__.lower()}")
        return TwoFeatures(backbone, len(task.spec["labels"]))

    def partition(self, model: Model) -> Partition:
        """The head and the conditions stay home."""
        return Partition.of(model, personal=model.personal(), share_buffers=self.settings.share_buffers)

    def receive(self, local: LocalRound) -> None:
        """Fix the conditions of this round, by which the received model is scored too; count classes once."""
        assert isinstance(local.model, TwoFeatures)
        told = local.model.conditions
        told.anchors.copy_(local.received["embeddings.weight"])
        if not told.share.any():
            labels = torch.cat([batch["label"] for batch in local.side_batches()])
            told.share.copy_(torch.bincount(labels, minlength=len(told.share)) / len(labels))

    def extra_loss(self, local: LocalRound, batch: Batch, output: Output) -> Tensor | float:
        """The two guidances of the global feature, and the penalty."""
        model, labels = local.model, batch["label"]
        assert isinstance(model, TwoFeatures) and output.token is not None
        cosines = F.normalize(output.token) @ F.normalize(model.embeddings.weight).T
        distance = ((output.token - model.conditions.anchors[labels]) ** 2).sum(dim=1).mean()
        learnt = [*model.embeddings.parameters(), *model.valve.parameters()]
        penalty = torch.stack([(p**2).sum() for p in learnt]).sum()
        return F.cross_entropy(cosines, labels) + self.settings.lam * distance + 0.5 * self.settings.mu * penalty
