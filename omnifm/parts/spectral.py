"""The spectral token: the low spatial frequencies of an image, which modalities share, as one unit vector.

Letters: b batch, c channel, *space two or three spatial axes, *low the kept frequencies of each axis, r radial bands,
d token width.  Paper: arXiv 2603.21660, sec. 3.2, eq. (3).  "Our decision" marks a choice where the paper is silent.
"""

import math
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

EDGE = 1e-9
"""Relative tolerance at the edge of the band, so that rounding of keep * size does not exclude a frequency."""


def low_band(image: Float[Tensor, "b c *space"], keep: float) -> Float[Tensor, "b c *low"]:
    """Magnitude of the lowest spatial frequencies, P_LP(|FFT(image)|) with norm="ortho".

    The transform takes one axis at a time and crops it before the next axis.  Measured at 64^3 to 160^3 voxels, this
    is faster than rfftn followed by a crop, and than a truncated DFT by matrix products.

    >>> low_band(torch.ones(1, 1, 4, 4), keep=0.5)  # only the mean, times sqrt(16)
    tensor([[[[4., 0.],
              [0., 0.],
              [0., 0.]]]])

    Args:
        image: intensities, with two or three spatial axes of any size; half precision is computed in float32.
        keep: share of each frequency axis up to Nyquist, in (0, 1]: frequencies |k| <= keep * size / 2 are kept.

    Returns:
        The kept frequencies in FFT order: 0, 1 .. K, -K .. -1 on every axis except the last, which is 0 .. K (rfft).

    Raises:
        ValueError: `keep` is outside (0, 1], or the image does not have two or three spatial axes.
    """
    _check_axes(image)
    _check_keep(keep)
    return _low_magnitude(image, tuple(_reach(size, keep) for size in image.shape[2:]))


def radial_bands(
    image: Float[Tensor, "b c *space"],
    num_bands: int = 32,
    keep: float = 0.25,
    spacing_mm: tuple[float, ...] | None = None,
    keep_per_mm: float | None = None,
) -> Float[Tensor, "b r"]:
    """Low-frequency spectrum as a vector of fixed length, for any image size, number of channels and dimension.

    Band 0 is the DC term (frequency 0).  Bands 1 .. r-1 are means of the log1p magnitude over rings around DC, up to
    the radius `keep`; they are averaged over channels and divided by their root mean square.

    Our decisions: log1p and a separate DC band, because DC and the intensity unit dominate raw magnitudes; rings
    instead of boxes, so that all directions count equally.

    >>> image = torch.tensor([[1.0, 1.0, -1.0, -1.0]] * 4)[None, None]  # one wave along the last axis
    >>> radial_bands(image, num_bands=2, keep=0.5)
    tensor([[0., 1.]])

    Args:
        image: normalised intensities (no unit).
        num_bands: r, at least 2.
        keep: radius that is kept, as a share of Nyquist, in (0, 1]; not used if `keep_per_mm` is given.
        spacing_mm: voxel size of each spatial axis, mm; needed with `keep_per_mm`.
        keep_per_mm: radius that is kept, cycles/mm; positive, at most the Nyquist frequency of the finest axis.
            Magnitudes are then multiplied by sqrt(voxel volume), so that two scanners give the same bands for the
            same object.

    Returns:
        Bands in float32, without gradient.  A constant image gives zeros after band 0, up to rounding.

    Raises:
        ValueError: an argument is out of its range, or the image is too small to have a frequency within `keep`.
    """
    _check_axes(image)
    shape = tuple(image.shape[2:])
    if num_bands < 2:
        raise ValueError(f"num_bands must be at least 2; got {num_bands}")
    if keep_per_mm is None:
        _check_keep(keep)
        # In units of Nyquist an axis of n pixels has the frequencies 0, 2/n, 4/n ...
        steps = tuple(2.0 / size for size in shape)
        limit = keep
        scale = 1.0
    else:
        spacing = _checked_spacing(spacing_mm, len(shape), keep_per_mm)
        steps = tuple(1.0 / (size * mm) for size, mm in zip(shape, spacing, strict=True))
        limit = keep_per_mm
        scale = math.sqrt(math.prod(spacing))
    return _bands_within(image, steps, limit, scale, num_bands)


class SpectralTokenizer(nn.Module):
    """s = unit(Pool(W2 . GELU(W1 . FreqMix(bands)))): one unit vector per image (eq. 3).

    The parameters do not depend on the number of channels, pixels and spatial axes.  One tokenizer serves 2-D colour
    images and 3-D MR, and can be averaged across sites.

    Our decisions: every band has a learned position, because the mean over bands would otherwise lose which band a
    value came from.  W2 has no activation after it: one would make every cosine >= 0, so that retrieval could hardly
    tell prototypes apart.

    Args:
        dim: d, width of the token, at least 1.
        num_bands: r, at least 2.
        keep: share of Nyquist that is kept, in (0, 1], for `low_pass="nyquist"`.
        hidden: width between W1 and W2, at least 1.
        low_pass: "nyquist", or "physical" if every image comes with its spacing.
        keep_per_mm: cycles/mm that are kept, positive; only for `low_pass="physical"`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int = 64,
        num_bands: int = 32,
        keep: float = 0.25,
        hidden: int = 64,
        low_pass: Literal["nyquist", "physical"] = "nyquist",  # noqa: S107  (a filter, no password)
        keep_per_mm: float | None = None,
    ) -> None:
        super().__init__()
        _check_keep(keep)
        if dim < 1 or hidden < 1 or num_bands < 2:
            sizes = f"{dim}, {hidden}, {num_bands}"
            raise ValueError(f"dim and hidden must be at least 1 and num_bands at least 2; got {sizes}")
        if low_pass not in ("nyquist", "physical"):
            raise ValueError(f"low_pass must be 'nyquist' or 'physical'; got {low_pass!r}")
        if (low_pass == "physical") != (keep_per_mm is not None):
            raise ValueError(f"keep_per_mm must come with low_pass 'physical' alone; got {keep_per_mm}")
        if keep_per_mm is not None:
            _check_per_mm(keep_per_mm)
        self.dim = dim
        self.num_bands = num_bands
        self.keep = keep
        self.keep_per_mm = keep_per_mm
        # FreqMix is bands + mix . bands: with zeros it starts as the identity.
        self.mix = nn.Parameter(torch.zeros(num_bands, num_bands))
        # No biases: that of W1 would repeat the position, that of W2 would add the same vector to every token.
        self.w1 = nn.Linear(1, hidden, bias=False)
        self.position = nn.Parameter(torch.randn(num_bands, hidden))
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(
        self, image: Float[Tensor, "b c *space"], spacing_mm: tuple[float, ...] | None = None
    ) -> Float[Tensor, "b d"]:
        """Tokens of unit length; gradients reach the tokenizer, never the image.

        Args:
            image: normalised intensities (no unit).
            spacing_mm: voxel size of each spatial axis, mm; needed and used only for `low_pass="physical"`.

        Raises:
            ValueError: `radial_bands` refuses the image or its spacing.
        """
        bands = radial_bands(image, self.num_bands, self.keep, spacing_mm, self.keep_per_mm)
        bands = bands.to(self.mix.dtype)
        mixed = bands + F.linear(bands, self.mix)
        elements = F.gelu(self.w1(mixed[..., None]) + self.position)  # b r hidden
        # W2 is linear, so pooling before it gives the same result as after it, at 1/r of the cost.
        return F.normalize(self.w2(elements.mean(dim=1)).float(), dim=-1)


def _low_magnitude(image: Tensor, reach: tuple[int, ...]) -> Tensor:
    """|FFT| at frequencies -reach .. reach of each axis.

    The last axis is transformed first, because its values are real and contiguous.
    """
    values = image if image.dtype == torch.float64 else image.float()
    spectrum = torch.fft.rfft(values, dim=-1, norm="ortho")[..., : reach[-1] + 1]
    for axis in range(image.ndim - 2, 1, -1):
        spectrum = torch.fft.fft(spectrum, dim=axis, norm="ortho")
        size, top = image.shape[axis], reach[axis - 2]
        if 2 * top + 1 < size:
            edges = spectrum.narrow(axis, 0, top + 1), spectrum.narrow(axis, size - top, top)
            spectrum = torch.cat(edges, dim=axis)
    return spectrum.abs()


@torch.no_grad()
def _bands_within(
    image: Float[Tensor, "b c *space"], steps: tuple[float, ...], limit: float, scale: float, num_bands: int
) -> Float[Tensor, "b r"]:
    """DC and radial means of the log magnitude up to radius `limit`.

    Args:
        steps: distance of neighbouring frequencies on each axis, in the unit of `limit`.
        scale: factor on all magnitudes.
    """
    shape = tuple(image.shape[2:])
    if limit * (1 + EDGE) < min(steps):
        raise ValueError(
            f"the low band must reach a frequency beyond DC, {min(steps):.4g} for {shape} pixels; got {limit}. "
            "Use larger images (a larger patch_size, a smaller scale) or a larger keep"
        )
    reach = tuple(min(math.floor(limit / step + EDGE), size // 2) for step, size in zip(steps, shape, strict=True))
    weights = _radial_weights(shape, reach, steps, limit, num_bands, image.device)
    magnitude = _low_magnitude(image.float(), reach) * scale
    constant = magnitude.flatten(2)[..., 0].mean(dim=1)
    # Automatic mixed precision would round the bands to three digits.
    with torch.autocast(image.device.type, enabled=False):
        bands = torch.log1p(magnitude).mean(dim=1).flatten(1) @ weights
    rms = bands[:, 1:].square().mean(dim=1).sqrt()
    # Below the rounding error of the transform there is only noise, which division would enlarge.
    return bands / torch.where(rms > 1e-7 * constant, rms, 1.0)[:, None]


@lru_cache(maxsize=16)
def _radial_weights(
    shape: tuple[int, ...],
    reach: tuple[int, ...],
    steps: tuple[float, ...],
    limit: float,
    num_bands: int,
    device: torch.device,
) -> Float[Tensor, "n r"]:
    """Columns of weights that average the n flattened low frequencies into r bands; each column sums to one.

    Band j > 0 is a triangle around the radius limit * j / (r - 1).  Its half-width is the distance between bands.  If
    the frequencies are further apart than that (a 28-pixel image has fewer radii than bands), it is their distance.
    """
    kept = [min(2 * top + 1, size) for top, size in zip(reach, shape, strict=True)]
    axes = [torch.fft.fftfreq(n, d=1 / n, dtype=torch.float64) * step for n, step in zip(kept, steps, strict=True)]
    axes[-1] = torch.arange(reach[-1] + 1, dtype=torch.float64) * steps[-1]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0).flatten()
    # The half spectrum omits the mirror image of every frequency except those at 0 and at Nyquist.
    mirrored = torch.full((reach[-1] + 1,), 2.0, dtype=torch.float64)
    mirrored[0] = 1.0
    if 2 * reach[-1] == shape[-1]:
        mirrored[-1] = 1.0
    count = mirrored.repeat(radius.numel() // mirrored.numel())
    count[(radius > limit * (1 + EDGE)) | (radius == 0)] = 0.0

    spacing = limit / (num_bands - 1)
    width = max(spacing, min(step for step, top in zip(steps, reach, strict=True) if top > 0))
    centre = spacing * torch.arange(1, num_bands, dtype=torch.float64)
    weights = count[:, None] * (1 - (radius[:, None] - centre).abs() / width).clamp_min(0)
    dc = torch.zeros_like(radius)
    dc[0] = 1.0
    weights = torch.cat([dc[:, None], weights / weights.sum(dim=0)], dim=1)
    return weights.to(device=device, dtype=torch.float32)


def _reach(size: int, keep: float) -> int:
    """Index of the highest frequency kept on an axis of `size` pixels."""
    return math.floor(keep * size / 2 + EDGE)


def _check_axes(image: Tensor) -> None:
    if image.ndim not in (4, 5) or 0 in image.shape[1:]:
        raise ValueError(f"image must be (b, c, h, w[, d]) and not empty; got {tuple(image.shape)}")


def _check_keep(keep: float) -> None:
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1]; got {keep}")


def _check_per_mm(keep_per_mm: float) -> None:
    if not 0 < keep_per_mm < math.inf:
        raise ValueError(f"keep_per_mm must be positive and finite; got {keep_per_mm}")


def _checked_spacing(spacing: tuple[float, ...] | None, num_axes: int, keep_per_mm: float) -> tuple[float, ...]:
    _check_per_mm(keep_per_mm)
    if spacing is None or len(spacing) != num_axes or not all(0 < mm < math.inf for mm in spacing):
        raise ValueError(f"spacing_mm must be {num_axes} positive numbers with keep_per_mm; got {spacing}")
    nyquist = 0.5 / min(spacing)
    if keep_per_mm > nyquist * (1 + EDGE):
        # The image holds no frequencies beyond Nyquist, so the highest bands would have nothing to average.
        raise ValueError(f"keep_per_mm must be at most Nyquist, {nyquist:.4g} here; got {keep_per_mm}")
    return tuple(spacing)
