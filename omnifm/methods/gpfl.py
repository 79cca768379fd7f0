"""GPFL: each image gets a global and a personal feature (Zhang et al. 2023, arXiv 2308.10279).  Classification only."""

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
    """The method section of a job that uses GPFL."""

    lam: Weight = 0.01
    """Weight lambda of the pull of global features towards their class embeddings, >= 0.  0 uses only the directions of
    the embeddings; a large value makes the features of one class equal."""
    mu: Weight = 0.0
    """Weight mu of the L2 penalty on class embeddings and conditional valve, >= 0.  0 is no penalty; a large value
    keeps both near zero."""
    share_buffers: bool = False
    """Whether normalisation statistics are averaged.  False keeps each site's own."""


class ConditionalValve(nn.Module):
    """CoV: scales and shifts features f, relu((gamma + 1) f + beta), where a condition gives gamma and beta (eq. 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.LayerNorm(width)) for _ in range(2)
        )

    def forward(self, features: Float[Tensor, "b q"], condition: Float[Tensor, " q"]) -> Float[Tensor, "b q"]:
        return F.relu((self.gamma(condition) + 1) * features + self.beta(condition))


class Conditions(nn.Module):
    """The constants from which the valve's conditions are computed; buffers, not trained.

    Attributes:
        share: (c) share of each class in the site's training cases; zeros at the server.
        anchors: (c q) class embeddings as the site last received them.
    """

    share: Tensor
    anchors: Tensor

    def __init__(self, embeddings: Float[Tensor, "c q"]) -> None:
        super().__init__()
        self.register_buffer("share", torch.zeros(len(embeddings)))
        self.register_buffer("anchors", embeddings.detach().clone())


class TwoFeatures(Model):
    """Backbone, valve and class embeddings (c q); the prediction is made from the personal feature."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.valve = ConditionalValve(backbone.width)
        self.embeddings = nn.Embedding(num_classes, backbone.width)
        self.conditions = Conditions(self.embeddings.weight)

    def forward(self, batch: Batch, extra: Tensors) -> Output:
        """Predict; `token` of the output is the global feature (b q)."""
        tokens, features = self.backbone.encode(batch)
        mean = tokens.mean(dim=1)
        conditions = self.conditions
        personal_feature = self.valve(mean, conditions.share @ conditions.anchors)
        global_feature = self.valve(mean, conditions.anchors.mean(dim=0))
        return Output(self.backbone.decode(personal_feature[:, None], features, batch), global_feature)

    def personal(self) -> Sequence[nn.Module | nn.Parameter]:
        """The head, and the conditions, which reveal how frequent each class is at the site."""
        return [*self.backbone.head(), self.conditions]


class GPFL(Method):
    """Cross-entropy of the personal feature, and guidance of the global feature by class embeddings that sites share.

    The guidance has two terms: the cross-entropy of the cosines to the embeddings, and lambda |f - embedding of the
    class|^2, averaged over the batch.  The published code leaves the norm unsquared, and computes the two conditions
    from the embeddings of the round before.  The feature is the mean of the backbone's tokens.

    Raises:
        ValueError: from `build`, where the task does not give every image one class.
    """

    Settings = Settings
    travels = "The backbone, the valve and the class embeddings; the head stays at its site."
    when = "Choose it for classification where sites hold different classes or very different shares of them."

    def build(self, task: Task) -> Model:
        """Build the backbone with the valve and one embedding per class."""
        backbone = task.backbone()
        if backbone.reads != "suffix" or "labels" not in task.spec:
            raise ValueError(f"gpfl needs a task with one class per image; got {type(task).__name__.lower()}")
        return TwoFeatures(backbone, len(task.spec["labels"]))

    def partition(self, model: Model) -> Partition:
        """The head and the conditions are personal."""
        return Partition.of(model, personal=model.personal(), share_buffers=self.settings.share_buffers)

    def receive(self, local: LocalRound) -> None:
        """Set the conditions of this round before the received model is scored; count the classes once."""
        assert isinstance(local.model, TwoFeatures)
        conditions = local.model.conditions
        conditions.anchors.copy_(local.received["embeddings.weight"])
        if not conditions.share.any():
            labels = torch.cat([batch["label"] for batch in local.side_batches()])
            conditions.share.copy_(torch.bincount(labels, minlength=len(conditions.share)) / len(labels))

    def extra_loss(self, local: LocalRound, batch: Batch, output: Output) -> Tensor | float:
        """The two terms that guide the global feature, and the L2 penalty."""
        model = local.model
        labels = batch["label"]
        assert isinstance(model, TwoFeatures) and output.token is not None
        cosines = F.normalize(output.token) @ F.normalize(model.embeddings.weight).T
        distance = ((output.token - model.conditions.anchors[labels]) ** 2).sum(dim=1).mean()
        learnt = [*model.embeddings.parameters(), *model.valve.parameters()]
        penalty = torch.stack([(p**2).sum() for p in learnt]).sum()
        return F.cross_entropy(cosines, labels) + self.settings.lam * distance + 0.5 * self.settings.mu * penalty
