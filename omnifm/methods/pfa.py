"""PFA: progressive Fourier aggregation, the server's part of PRR-FL (Chen et al. 2021, arXiv 2110.00394)."""

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
    """The method section of a job that uses PFA."""

    start: Rate = 0.7
    """Share of each frequency axis whose amplitudes are averaged at the start of the run, in [0, 1].  0 averages only
    the mean value of a kernel; 1 all amplitudes."""
    end: Rate = 0.95
    """The share at the end, in [0, 1]; it grows linearly.  At 1 all amplitudes are common, and only phases stay a
    site's own; at 0 kernels stay almost personal."""
    ramp: Count | None = None
    """Number of rounds over which the share grows from `start` to `end`, >= 1; a small value reaches `end` early.  Null
    is the paper's choice, all rounds of the run."""


class PFA(FedAvg):
    """Each site's kernels keep phases and high-frequency amplitudes, and get the average low-frequency amplitudes.

    Biases and other vectors are averaged; batch normalisation is personal.  The local part of PRR-FL (deputy models) is
    left out.  Sites count by n_k / N, and the band is symmetric, so that a real kernel stays real.  The published code
    divides by a fixed number of four sites, and drops the imaginary part that its asymmetric band produces.  The server
    keeps the model of every site: the size of the shared part for each.  A site that misses a round keeps its model; a
    new site gets the average.
    """

    Settings = Settings
    travels = "Everything that is trained except batch normalisation."
    when = "Choose it where sites' images differ in style and each should keep filters of its own."

    def __init__(self, settings: Capacity) -> None:
        super().__init__(settings)
        self.models: dict[str, Tensors] = {}

    def partition(self, model: Model) -> Partition:
        """Batch normalisation is personal."""
        return Partition.of(model, personal=batch_norms(model))

    def payload(self, site: str, shared: Tensors, view: ServerView) -> tuple[Tensors, Tensors]:
        """The site's own model."""
        return shared | self.models.get(site, {}), {}

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """Mix the amplitudes of kernels and matrices; average everything else."""
        s = self.settings
        mean = weighted_mean(shared, updates)
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
        """The model of every site."""
        return prefixed(**self.models), {}

    def restore(self, tensors: Tensors, record: dict[str, object]) -> None:
        """Invert `server_state`."""
        self.models = to_sites(tensors)


def mix_amplitudes(kernels: Sequence[Tensor], sizes: Sequence[int], rate: float) -> list[Tensor]:
    """Give each kernel the weighted mean of all amplitudes at frequencies up to `rate` times the highest.

    >>> mix_amplitudes([torch.ones(2, 2), 3 * torch.ones(2, 2)], sizes=[1, 1], rate=0.0)[0]  # equal means
    tensor([[2., 2.],
            [2., 2.]])

    Args:
        kernels: one per site, (out, in) or (out, in, *space), all of one shape.
        sizes: number of training cases of each site.
        rate: share of each frequency axis, in [0, 1]; 0 averages the mean value only, 1 all amplitudes.

    Returns:
        One kernel per site, of the given shape and type.
    """
    spectra = torch.stack([torch.fft.fft2(_as_matrix(kernel.double())) for kernel in kernels])
    rows, columns = (torch.fft.fftfreq(side).abs() <= rate / 2 for side in spectra.shape[1:])
    low = rows[:, None] & columns
    shares = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    average = torch.einsum("n,nhw->hw", shares, spectra.abs())
    mixed = torch.polar(torch.where(low, average, spectra.abs()), spectra.angle())
    return [_as_kernel(torch.fft.ifft2(one).real, kernels[0]) for one in mixed]


def _as_matrix(kernel: Tensor) -> Float[Tensor, "h w"]:
    """Reshape (out, in, *space, last) to (in * space, last * out); a matrix stays as it is."""
    if kernel.ndim == 2:
        return kernel
    return kernel.movedim(0, -1).reshape(math.prod(kernel.shape[1:-1]), -1)


def _as_kernel(matrix: Float[Tensor, "h w"], like: Tensor) -> Tensor:
    """Invert `_as_matrix`."""
    if like.ndim > 2:
        matrix = matrix.reshape(*like.shape[1:], like.shape[0]).movedim(-1, 0)
    return matrix.to(like.dtype).contiguous()
