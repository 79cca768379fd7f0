"""FedSCA: only low layers are shared, and every site gets its own mixture (Zhang et al. 2025, arXiv 2503.15390)."""

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
    """The method section of a job that uses FedSCA."""

    num_layers: Count | None = 1
    """Number L of trained layers that are shared, counted from the image, >= 1 (LAT); the others are personal.  More
    layers cost more traffic.  Null shares all layers: the ablation with SGCA alone."""
    aggregation: Literal["similarity", "mean"] = "similarity"
    """What a site receives.  `similarity`: its own mixture (SGCA).  `mean`: the same average for all sites, the
    ablation with LAT alone."""
    alpha: Weight = 0.5
    """Weight alpha of the similarity in eq. (7), >= 0.  0 is the plain average; with a large value a site receives only
    its own weights."""
    metric: Metric = "l2"
    """How the weights of two sites are compared (table 5): by L2 or L1 distance, cosine, or inner product."""
    beta: Weight = 0.01
    """Weight beta of the regulariser in eq. (9), >= 0.  0 is none; a large value keeps the direction of the received
    layers."""


class FedSCA(FedAvg):
    """Low-level transmission (LAT) and similarity-guided collaborative aggregation (SGCA) (algorithm 1).

    Eq. (7) as printed contradicts the paper's text; we follow the text.  As printed, the distance would give unlike
    sites a larger weight; here `similarities` grow with likeness.  As printed, the prior m_i is the same for all j, so
    it has no effect on weights that sum to 1; here it is m_j, the size of the other site.  Similarities are in units of
    their mean, so that alpha does not depend on the network.  The minimum is then a projection onto the simplex,
    W_i = P(m + alpha s_i / 2), and needs no solver.

    A layer is a matrix or kernel with the vectors that follow it, so an adapter has two.  The server keeps the mixture
    of every site: the size of the shared part for each.  A site that misses a round keeps its mixture; a new site gets
    the average.  Normalisation statistics are personal.
    """

    Settings = Settings
    travels = "The lowest layers only, as many as `num_layers` says."
    when = "Choose it where little may be sent, or where sites share how images look but not what they predict."

    def __init__(self, settings: Capacity) -> None:
        super().__init__(settings)
        self.mixtures: dict[str, Tensors] = {}

    def partition(self, model: Model) -> Partition:
        """The lowest layers are shared; everything else is personal."""
        low = {name for layer in layers(model)[: self.settings.num_layers] for name in layer}
        personal = [parameter for name, parameter in model.named_parameters() if name not in low]
        return Partition.of(model, personal=personal, share_buffers=False)

    # The server's half.
    def payload(self, site: str, shared: Tensors, view: ServerView) -> tuple[Tensors, Tensors]:
        """The site's own mixture; it names no other site."""
        return shared | self.mixtures.get(site, {}), {}

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """Compute a mixture for every site that replied; the average is the start of new sites."""
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
        """The mixture of every site."""
        return prefixed(**self.mixtures), {}

    def restore(self, tensors: Tensors, record: dict[str, object]) -> None:
        """Invert `server_state`."""
        self.mixtures = to_sites(tensors)

    # The site's half.
    def extra_loss(self, local: LocalRound, batch: Batch, output: Output) -> Tensor | float:
        """-beta times the cosine between the layers now and as received (eq. 10)."""
        names = local.partition.shared
        now = torch.cat([local.model.get_parameter(name).flatten() for name in names])
        received = torch.cat([local.received[name].flatten() for name in names])
        return -self.settings.beta * F.cosine_similarity(now, received, dim=0)


def similarities(flat: Float[Tensor, "n p"], metric: Metric) -> Float[Tensor, "n n"]:
    """Similarity of each site (row) to each other one, minus its similarity to itself, in units of the mean over pairs.

    Never positive, except for `inner`, where a longer vector can be more similar than the site's own.  Zeros if no
    sites differ.

    >>> similarities(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), "l2")
    tensor([[ 0., -1.],
            [-1.,  0.]])

    Args:
        flat: all shared weights of each of n sites, one row per site.
        metric: how two rows are compared.
    """
    if metric in ("l2", "l1"):
        s = -torch.cdist(flat, flat, p=2.0 if metric == "l2" else 1.0, compute_mode="donot_use_mm_for_euclid_dist")
    else:
        unit = F.normalize(flat) if metric == "cosine" else flat
        s = unit @ unit.T
    s = s - s.diagonal()[:, None]
    pairs = len(s) * (len(s) - 1)
    return s * pairs / s.abs().sum().clamp(min=torch.finfo(s.dtype).tiny)


def simplex_projection(rows: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """For each row the nearest row of weights >= 0 that sum to 1 (Duchi et al. 2008, ICML, figure 1).

    >>> simplex_projection(torch.tensor([[0.5, 1.0, -2.0]]))
    tensor([[0.2500, 0.7500, 0.0000]])
    """
    ordered = rows.sort(dim=1, descending=True).values
    excess = (ordered.cumsum(dim=1) - 1) / torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype)
    last = (ordered > excess).sum(dim=1, keepdim=True) - 1
    return (rows - excess.gather(1, last)).clamp(min=0)
