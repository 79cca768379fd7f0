"""MOON: what a site sees shall look as the global model sees it (Li et al. 2021, arXiv 2103.16257)."""

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
    """MOON's section of a job."""

    mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the contrastive loss, >= 0; 0 is FedAvg, the paper's best are 1 to 10."""
    temperature: Positive = 0.5
    """Temperature tau, > 0; a small one makes the contrast hard, a large one makes it vanish."""
    share_buffers: bool = True
    """Whether normalisation statistics are averaged too."""


class Contrast(Model):
    """The plain backbone, which also tells the mean of its tokens (b q)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch, extra: Tensors) -> Output:
        tokens, features = self.backbone.encode(batch)
        return Output(self.backbone.decode(tokens, features, batch), token=tokens.mean(dim=1))


class Moon(FedAvg):
    """Pulls the representation z towards the received model's and away from the site's own of its last round (eq. 3).

    z is the mean of the backbone's tokens, whatever the task; the paper adds a projection head, and others flatten
    the bottleneck, which makes z depend on where in the image something lies.  In a site's first round both models
    are the same and the loss has no gradient, so there it is left out.  The two models are evaluated as they are
    used, with normalisation statistics at rest.
    """

    Settings = Settings

    def build(self, task: Task) -> Model:
        """The plain backbone."""
        return Contrast(task.backbone())

    def begin(self, local: LocalRound) -> None:
        """The received model, and the one that the site trained last."""
        if local.memory:
            fixed = [copy.deepcopy(local.model).eval().requires_grad_(False) for _ in range(2)]
            fixed[1].load_state_dict(local.memory, strict=False)
            local.scratch["fixed"] = [model.backbone for model in fixed]

    def extra_loss(self, local: LocalRound, batch: Batch, output: Output) -> Tensor | float:
        """mu times the contrastive loss."""
        if "fixed" not in local.scratch:
            return 0.0
        assert output.token is not None
        with torch.no_grad():
            theirs, before = (backbone.encode(batch)[0].mean(dim=1) for backbone in local.scratch["fixed"])
        return self.settings.mu * contrastive(output.token, theirs, before, self.settings.temperature)

    def finish(self, local: LocalRound) -> tuple[Tensors, dict[str, object]]:
        """Remember the trained model, for however many rounds the site is not drawn."""
        for part in ("shared", "buffers"):
            local.memory.update(local.partition.pick(local.model, part))
        return {}, {}


def contrastive(
    z: Float[Tensor, "b q"], theirs: Float[Tensor, "b q"], before: Float[Tensor, "b q"], temperature: float
) -> Float[Tensor, ""]:
    """Mean of -log(e^(cos(z, theirs) / tau) / (e^(cos(z, theirs) / tau) + e^(cos(z, before) / tau)))."""
    cosines = torch.stack([F.cosine_similarity(z, theirs), F.cosine_similarity(z, before)], dim=1)
    return F.cross_entropy(cosines / temperature, torch.zeros(len(z), dtype=torch.long, device=z.device))
