"""MOON: a contrastive loss keeps a site's features near the global model's (Li et al. 2021, arXiv 2103.16257)."""

from __future__ import annotations

import copy
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from omnifm.config import STRICT, Positive
from omnifm.method import LocalRound, Model, Output, Tensors
from omnifm.methods.fedavg import FedAvg
from omnifm.task import Backbone, Batch, Task


@dataclass(frozen=True, config=STRICT)
class Settings:
    """The method section of a job that uses MOON."""

    mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight mu of the contrastive loss, >= 0.  0 is FedAvg; a large value hardly lets the features change.  The best
    values in the paper are 1 to 10."""
    temperature: Positive = 0.5
    """Temperature tau of the contrastive loss, > 0.  A small value makes the loss react to small differences; with a
    large value it has almost no gradient."""
    share_buffers: bool = True
    """Whether normalisation statistics are averaged too.  False keeps each site's own."""


class Contrast(Model):
    """The plain backbone, which also returns the mean of its tokens (b q)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch, extra: Tensors) -> Output:
        """Predict; `token` of the output is the mean token (b q)."""
        tokens, features = self.backbone.encode(batch)
        return Output(self.backbone.decode(tokens, features, batch), token=tokens.mean(dim=1))


class Moon(FedAvg):
    """Pulls the representation z towards the received model's and away from the site's own of its last round (eq. 3).

    z is the mean of the backbone's tokens, for every task.  The paper adds a projection head; others flatten the
    bottleneck, so that z depends on positions in the image.  In a site's first round both models are the same and the
    loss would have no gradient, so it is left out.  The two models run in evaluation mode, so that their normalisation
    statistics do not change.
    """

    Settings = Settings
    when = "Choose it where sites differ in how images look; it keeps two more copies of the model in memory."

    def build(self, task: Task) -> Model:
        """Build the plain backbone."""
        return Contrast(task.backbone())

    def begin(self, local: LocalRound) -> None:
        """Copy the received model, and load the one that the site trained last."""
        if local.memory:
            received, previous = (copy.deepcopy(local.model).eval().requires_grad_(False) for _ in range(2))
            previous.load_state_dict(local.memory, strict=False)
            local.scratch["fixed"] = [received.backbone, previous.backbone]

    def extra_loss(self, local: LocalRound, batch: Batch, output: Output) -> Tensor | float:
        """mu times the contrastive loss."""
        if "fixed" not in local.scratch:
            return 0.0
        assert output.token is not None
        with torch.no_grad():
            theirs, before = (backbone.encode(batch)[0].mean(dim=1) for backbone in local.scratch["fixed"])
        return self.settings.mu * contrastive(output.token, theirs, before, self.settings.temperature)

    def finish(self, local: LocalRound) -> tuple[Tensors, dict[str, object]]:
        """Store the trained model at the site until it takes part again."""
        for part in ("shared", "buffers"):
            local.memory.update(local.partition.pick(local.model, part))
        return {}, {}


def contrastive(
    z: Float[Tensor, "b q"], theirs: Float[Tensor, "b q"], before: Float[Tensor, "b q"], temperature: float
) -> Float[Tensor, ""]:
    """Mean of -log(e^(cos(z, theirs) / tau) / (e^(cos(z, theirs) / tau) + e^(cos(z, before) / tau))) (eq. 3).

    >>> z = torch.tensor([[1.0, 0.0]])
    >>> contrastive(z, theirs=z, before=z, temperature=0.5)  # no difference: log 2
    tensor(0.6931)

    Args:
        z: features of the model that is trained.
        theirs: features of the received model.
        before: features of the model that the site trained last.
        temperature: tau, > 0.
    """
    cosines = torch.stack([F.cosine_similarity(z, theirs), F.cosine_similarity(z, before)], dim=1)
    return F.cross_entropy(cosines / temperature, torch.zeros(len(z), dtype=torch.long, device=z.device))
