"""FedSCA: low layers travel, and every site gets its own mixture of them (Zhang et al. 2025, arXiv 2503.15390)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from omnifm.config import STRICT, Count
from omnifm.method import LocalRound, Model, Output, Partition, ServerView, Tensors, moved, to_sites, weighted_mean
from omnifm.methods._layers import layers
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity
from omnifm.task import Batch
from omnifm.update import Update, prefixed

Metric = Literal["l2", "l1", "cosine", "inner"]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """FedSCA's section of a job."""

    num_layers: Count | None = 1
    """Lowest trained layers L that travel (LAT); the rest stays home; null sends all, the ablation SGCA alone."""
    aggregation: Literal["similarity", "mean"] = "similarity"
    """`similarity` is SGCA; `mean` sends everybody the average, the ablation LAT alone."""
    alpha: Weight = 0.5
    """Pull alpha of eq. 7 towards similar sites, >= 0; 0 is the plain average, a large one leaves a site to itself."""
    metric: Metric = "l2"
    """How weights are compared (table 5)."""
    beta: Weight = 0.01
    """Weight beta of eq. 9, >= 0; 0 is none, a large one keeps the direction of the received layers."""


class FedSCA(FedAvg):
    """Low-level transmission (LAT) and similarity-guided collaborative aggregation (SGCA) (algorithm 1).

    Eq. 7 cannot be meant as printed, and is read so that the text is true.  Its distance has the sign of a similarity,
    which would reward sites for being unlike: here `similarities` grow with likeness.  Its prior m_i is the same for
    all j and so drops out of weights that sum to 1: here it is m_j, the size of the other site.  Similarities are in
    units of their mean, or alpha would depend on the network.  The minimum is then a projection, W_i = P(m + alpha
    s_i / 2), so no solver is needed.

    A layer is a matrix or kernel with the vectors that follow it, an adapter two of them.  The server keeps every
    site's mixture: N times what travels.  A site absent from a round keeps its own; a new one gets the average.
    Statistics stay home.
    """

    Settings = Settings

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.mixtures: dict[str, Tensors] = {}

    def partition(self, model: Model) -> Partition:
        """The lowest layers travel."""
        low = {name for layer in layers(model)[: self.settings.num_layers] for name in layer}
        home = [parameter for name, parameter in model.named_parameters() if name not in low]
        return Partition.of(model, personal=home, share_buffers=False)

    # The server's half.
    def payload(self, site: str, shared: Tensors, view: ServerView) -> tuple[Tensors, Tensors]:
        """The site's own mixture, which names no other site."""
        return shared | self.mixtures.get(site, {}), {}

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """Mix for every site that replied; the average is what new sites start from."""
        mean = weighted_mean(shared, updates)
        if self.settings.aggregation == "mean":
            return mean
        sent = {update.site: update.shared for update in updates}
        sizes = torch.tensor([float(update.num_samples) for update in updates], dtype=torch.float64)
        flat = torch.stack([torch.cat([value.flatten() for value in weights.values()]) for weights in sent.values()])
        s = similarities(flat.double(), self.settings.metric)
        mix = simplex_projection(sizes / sizes.sum() + 0.5 * self.settings.alpha * s)
        moving = moved(updates, lambda site: self.payload(site, shared, view)[0])
        for site, shares in zip(sent, mix, strict=True):
            self.mixtures[site] = self.mixtures.get(site, {}) | {
                name: sum(w * sent[j][name].double() for w, j in zip(shares, sent, strict=True)).to(mean[name].dtype)
                for name in moving
            }
        return shared | {name: mean[name] for name in moving}

    def server_state(self) -> tuple[Tensors, dict[str, object]]:
        """Every site's mixture."""
        return prefixed(**self.mixtures), {}

    def restore(self, tensors: Tensors, record: dict[str, object]) -> None:
        """Invert `server_state`."""
        self.mixtures = to_sites(tensors)

    # The site's half.
    def extra_loss(self, local: LocalRound, batch: Batch, output: Output) -> Tensor | float:
        """-beta times the cosine to the received layers (eq. 10)."""
        names = local.partition.shared
        now = torch.cat([local.model.get_parameter(name).flatten() for name in names])
        received = torch.cat([local.received[name].flatten() for name in names])
        return -self.settings.beta * F.cosine_similarity(now, received, dim=0)


def similarities(flat: Float[Tensor, "n p"], metric: Metric) -> Float[Tensor, "n n"]:
    """How much less than itself each site is like each other one, in units of the mean over pairs; never positive
    but for `inner`, where a longer vector can beat a site's own.  Zeros where nobody differs."""
    if metric in ("l2", "l1"):
        s = -torch.cdist(flat, flat, p=2.0 if metric == "l2" else 1.0, compute_mode="donot_use_mm_for_euclid_dist")
    else:
        unit = F.normalize(flat) if metric == "cosine" else flat
        s = unit @ unit.T
    s = s - s.diagonal()[:, None]
    pairs = len(s) * (len(s) - 1)
    return s * pairs / s.abs().sum().clamp(min=torch.finfo(s.dtype).tiny)


def simplex_projection(rows: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """The nearest row of weights >= 0 that sum to 1 (Duchi et al. 2008, ICML, figure 1)."""
    ordered = rows.sort(dim=1, descending=True).values
    excess = (ordered.cumsum(dim=1) - 1) / torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype)
    last = (ordered > excess).sum(dim=1, keepdim=True) - 1
    return (rows - excess.gather(1, last)).clamp(min=0)
