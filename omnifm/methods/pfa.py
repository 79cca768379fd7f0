"""PFA: progressive Fourier aggregation, the server's half of PRR-FL (Chen et al. 2021, arXiv 2110.00394)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from omnifm.config import STRICT, Count
from omnifm.method import Model, Partition, ServerView, Tensors, moved, to_sites, weighted_mean
from omnifm.methods._layers import batch_norms
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity
from omnifm.update import Update, prefixed

Rate = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """PFA's section of a job."""

    start: Rate = 0.7
    """Share of each frequency axis whose amplitudes are averaged in round 0, [0, 1]; 0 is the mean value alone."""
    end: Rate = 0.95
    """The share it grows to, [0, 1]; at 1 all amplitudes are common and only phases stay a site's own."""
    ramp: Count | None = None
    """Rounds over which it grows; null is the paper's, all of the run's, a small one has its end early."""


class PFA(FedAvg):
    """Each site's kernels keep their phases and fine frequencies and get the average's coarse amplitudes.

    Biases and other vectors are averaged, batch normalisation stays home.  The local half of PRR-FL (deputy models) is
    left out.  Sites count by n_k / N, and the band is symmetric, so that a real kernel stays real; published code
    divides by four sites and drops the imaginary part that its lopsided band leaves.  The server keeps every site's
    model: N times what travels.  A site absent from a round keeps its own; a new one gets the average.
    """

    Settings = Settings

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.models: dict[str, Tensors] = {}

    def partition(self, model: Model) -> Partition:
        """Batch normalisation stays home."""
        return Partition.of(model, personal=batch_norms(model))

    def payload(self, site: str, shared: Tensors, view: ServerView) -> tuple[Tensors, Tensors]:
        """The site's own model."""
        return shared | self.models.get(site, {}), {}

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """Mix the amplitudes of kernels, average the rest."""
        s, mean = self.settings, weighted_mean(shared, updates)
        rate = s.start + min(1.0, view.round / (s.ramp or view.num_rounds)) * (s.end - s.start)
        sent = {update.site: update.shared for update in updates}
        sizes = [update.num_samples for update in updates]
        moving = moved(updates, lambda site: self.payload(site, shared, view)[0])
        for name in moving:
            mixed = [mean[name].clone() for _ in sent]
            if mean[name].ndim > 1:
                mixed = mix_amplitudes([weights[name] for weights in sent.values()], sizes, rate)
            for site, own in zip(sent, mixed, strict=True):
                self.models.setdefault(site, {})[name] = own
        return shared | {name: mean[name] for name in moving}

    def server_state(self) -> tuple[Tensors, dict[str, object]]:
        """Every site's model."""
        return prefixed(**self.models), {}

    def restore(self, tensors: Tensors, record: dict[str, object]) -> None:
        """Invert `server_state`."""
        self.models = to_sites(tensors)


def mix_amplitudes(kernels: Sequence[Tensor], sizes: Sequence[int], rate: float) -> list[Tensor]:
    """Give each kernel the weighted mean of all amplitudes at frequencies up to `rate` times the highest.

    Args:
        kernels: one per site, (out, in) or (out, in, *space), all of one shape.
        sizes: training cases per site.
        rate: in [0, 1].
    """
    spectra = torch.stack([torch.fft.fft2(_as_matrix(kernel.double())) for kernel in kernels])
    rows, columns = (torch.fft.fftfreq(side).abs() <= rate / 2 for side in spectra.shape[1:])
    low = rows[:, None] & columns
    shares = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    average = torch.einsum("n,nhw->hw", shares, spectra.abs())
    mixed = torch.polar(torch.where(low, average, spectra.abs()), spectra.angle())
    return [_as_kernel(torch.fft.ifft2(one).real, kernels[0]) for one in mixed]


def _as_matrix(kernel: Tensor) -> Float[Tensor, "h w"]:
    """(out, in, *space, last) as (in * space, last * out); a matrix as it is."""
    if kernel.ndim == 2:
        return kernel
    return kernel.movedim(0, -1).reshape(math.prod(kernel.shape[1:-1]), -1)


def _as_kernel(matrix: Float[Tensor, "h w"], like: Tensor) -> Tensor:
    """Invert `_as_matrix`."""
    if like.ndim > 2:
        matrix = matrix.reshape(*like.shape[1:], like.shape[0]).movedim(-1, 0)
    return matrix.to(like.dtype).contiguous()
