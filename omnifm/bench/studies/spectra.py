"""Measure the paper's motivating inequality (figure 4) on a federation: do modalities share low frequencies?

    || P_LP F(x_i) - P_LP F(x_j) ||  <<  || F(x_i) - F(x_j) ||    for x_i, x_j of different modalities

A projection never lengthens a difference, so "<=" holds for any images.  "<<" can fail, and so can the paper's
conclusion.  Two references stand beside every distance: its value if the difference were spread evenly over all
frequencies, and the distance between images of one site.  The low band brings modalities together only if, relative to
the distance within a site, they are nearer to each other there than in the full spectrum.

Letters: n images, s side in pixels, f frequencies of the half spectrum, k sites.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from omnifm.bench.inputs import federation, out_folder, site_names
from omnifm.bench.studies.spectra_page import markdown, page
from omnifm.bench.studies.spectra_records import Compared, Described, Measured, Numbers, Result, SiteImages, When
from omnifm.data.datalist import read_datalist
from omnifm.data.volume import RefusedImage, read_volume
from omnifm.parts.spectral import EDGE, low_band, radial_bands
from omnifm.state import write_atomic

MAX_SIDE = 128
"""Images are shrunk to squares of the smallest side among them, at most this many pixels.  They are never enlarged,
which would leave nothing in the high band."""
NUM_BANDS = 32
"""Rings of the low band whose means are compared by their cosines."""
RESAMPLES = 300
"""Bootstrap samples for the interval `nearer`."""
SPECTRA = {
    "raw": "magnitude of the intensities as read",
    "standardised": "magnitude of the image with mean 0 and standard deviation 1",
    "log": "log1p of the raw magnitude",
    "unit": "raw magnitude, to unit length within the band",
    "standardised log": "log1p of the standardised image's magnitude",
    "standardised log, unit": "the same, to unit length within the band; nearest to what OmniFM's tokenizer reads",
}
"""The spectra that are compared, by name."""


def run(data: Path, out: Path, *, limit: int = 40, keep: float = 0.25, seed: int = 0) -> Result:
    """Measure a federation, and write spectra.json, spectra.md and spectra.html.

    Args:
        data: federation folder, one `<site>/dataset.json` per site; only training images are used.
        out: folder of the results.
        limit: most images of a site, at least 2; they are drawn with `seed`.
        keep: radius of the low band as a share of the Nyquist frequency, in (0, 1).

    Raises:
        ValueError: the folder has fewer than two sites, a site has fewer than two readable images, all sites have the
            same modality, or an argument is out of its range.
    """
    if limit < 2 or not 0 < keep < 1:
        raise ValueError(f"limit must be at least 2 and keep in (0, 1); got {limit} and {keep}")
    data, out = federation(data), out_folder(out)
    read = {name: read_site(data / name, limit, seed) for name in site_names(data, 2)}
    found = measure({name: images for name, (images, _) in read.items()}, {n: m for n, (_, m) in read.items()}, keep)
    result: Result = {
        "schema": 1,
        "data": data.name,
        "keep": keep,
        "limit": limit,
        "seed": seed,
        **found.numbers,
    }
    write_atomic(out / "spectra.json", json.dumps(result, indent=1).encode())
    write_atomic(out / "spectra.md", markdown(result).encode())
    write_atomic(out / "spectra.html", page(result, found.pictures))
    return result


def read_site(folder: Path, limit: int, seed: int) -> tuple[list[Tensor], str]:
    """At most `limit` training images of a site, each in grey (height, width), and the site's modality.

    A volume gives its middle slice; channels are averaged.  Images that the reader refuses are passed over.

    Raises:
        ValueError: fewer than two images are readable.
    """
    datalist = read_datalist(folder, required=("image",))
    items = list(datalist.training)
    random.Random(seed).shuffle(items)
    images: list[Tensor] = []
    for item in items:
        try:
            volume = read_volume(item["image"], burned_in_text=item["burned_in_text"]).in_ras()
        except RefusedImage:
            continue
        slice_ = torch.as_tensor(volume.array[:, :, volume.array.shape[2] // 2]).float()
        images.append(slice_.mean(dim=2) if slice_.ndim == 3 else slice_)
        if len(images) == limit:
            break
    if len(images) < 2:
        raise ValueError(f"a site must hold at least 2 readable training images; {folder.name!r} has {len(images)}")
    return images, datalist.modality["0"]


def measure(images: Mapping[str, Sequence[Tensor]], modalities: Mapping[str, str], keep: float) -> Measured:
    """Compare the images of a federation in every spectrum.

    Args:
        images: grey images (height, width) of each site.
        modalities: code of each site.
        keep: radius of the low band as a share of the Nyquist frequency.
    """
    side = min(MAX_SIDE, *(min(image.shape) for owned in images.values() for image in owned))
    squares = torch.stack([square(image, side) for owned in images.values() for image in owned])
    site = torch.tensor([row for row, owned in enumerate(images.values()) for _ in owned])
    modality = [modalities[name] for name in images]
    inside, count = low_disc(side, keep)
    share = float(count[inside].sum() / count.sum())
    spectra: dict[str, Described] = {
        name: {"what": what, **compare(squares, name, inside, count, site, modality)} for name, what in SPECTRA.items()
    }
    bands = [
        radial_bands(standardised(squares[site == k])[:, None], NUM_BANDS, keep)[:, 1:] for k in range(len(images))
    ]
    shown: dict[str, SiteImages] = {
        name: {"modality": modalities[name], "num_images": len(owned)} for name, owned in images.items()
    }
    means = torch.stack([band.mean(dim=0) for band in bands])
    numbers: Numbers = {
        "side": side,
        "low_share_of_frequencies": share,
        "sites": shown,
        "spectra": spectra,
        "cosines": cosines(means),
    }
    logs = magnitude(squares, "standardised log")
    pictures = {name: logs[site == k].mean(dim=0) for k, name in enumerate(images)}
    return Measured(numbers, pictures)


def square(image: Float[Tensor, "h w"], side: int) -> Float[Tensor, "s s"]:
    """The middle square of an image, shrunk to `side` pixels with an anti-aliasing filter where it is larger."""
    size = min(image.shape)
    top, left = ((length - size) // 2 for length in image.shape)
    middle = image[None, None, top : top + size, left : left + size]
    if size == side:
        return middle[0, 0]
    return F.interpolate(middle, (side, side), mode="bilinear", antialias=True)[0, 0]


def standardised(images: Float[Tensor, "n s s"]) -> Float[Tensor, "n s s"]:
    """Each image with mean 0 and standard deviation 1; a constant image becomes 0."""
    centred = images - images.mean(dim=(1, 2), keepdim=True)
    spread = centred.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return centred / torch.where(spread > 0, spread, 1.0)


def magnitude(images: Float[Tensor, "n s s"], name: str) -> Float[Tensor, "n s h"]:
    """The magnitude spectrum that `SPECTRA` describes; `distances` makes its bands unit length."""
    values = low_band((standardised(images) if "standardised" in name else images)[:, None], keep=1.0)[:, 0]
    return torch.log1p(values) if "log" in name else values


def low_disc(side: int, keep: float) -> tuple[Bool[Tensor, "s h"], Float[Tensor, "s h"]]:
    """Which frequencies of `low_band(..., keep=1)` have radius <= keep, and how often each occurs in the full plane."""
    rows = torch.fft.fftfreq(side, dtype=torch.float64) * 2
    columns = torch.arange(side // 2 + 1, dtype=torch.float64) * 2 / side
    inside = (rows[:, None] ** 2 + columns**2).sqrt() <= keep * (1 + EDGE)
    twice = (columns > 0) & (columns < 1 - EDGE)  # their mirror images are not in the half spectrum
    return inside, torch.where(twice, 2.0, 1.0).expand(side, -1).float()


def compare(
    images: Float[Tensor, "n s s"],
    name: str,
    inside: Bool[Tensor, "s h"],
    count: Float[Tensor, "s h"],
    site: Tensor,
    modality: Sequence[str],
) -> Compared:
    """Mean distances of pairs in the low band and in the full spectrum, and what they say of the inequality.

    Every pair of sites, and every site with itself, has the same weight, however many images it has.

    Args:
        name: key of `SPECTRA`.
        inside, count: from `low_disc`.
        site: number of each image's site.
        modality: code of each site.

    Raises:
        ValueError: all sites have the same modality.
    """
    if len(set(modality)) < 2:
        raise ValueError("data must hold at least 2 modalities; all sites have the same")
    values = magnitude(images, name) * count.sqrt()
    unit = name.endswith("unit")
    low, full = (distances(values[:, kept], unit) for kept in (inside, torch.ones_like(inside)))
    owned = F.one_hot(site, len(modality)).double()
    found = {band: grouped(block_means(d, owned), modality) for band, d in (("low", low), ("full", full))}
    ratios = block_means(torch.where(full > 0, low / full, 0.0), owned)
    draws = torch.Generator().manual_seed(0)
    samples = [_resampled(owned, draws) for _ in range(RESAMPLES)]
    nearer = torch.tensor([_apart(full, w, modality) - _apart(low, w, modality) for w in samples])
    return {
        "groups": {group: {band: found[band][group] for band in found} for group in found["low"]},
        "low_over_full": grouped(ratios, modality)["across"],
        "even": 1.0 if unit else math.sqrt(float(count[inside].sum() / count.sum())),
        "apart_low": _apart(low, owned, modality),
        "apart_full": _apart(full, owned, modality),
        "nearer": torch.quantile(nearer, nearer.new_tensor([0.025, 0.975])).tolist(),
    }


def block_means(values: Float[Tensor, "n n"], owned: Float[Tensor, "n k"]) -> Float[Tensor, "k k"]:
    """For every pair of sites, the mean over pairs of their images; no image is paired with itself.

    Args:
        values: a value per pair of images; 0 on the diagonal.
        owned: how often each image counts for each site.
    """
    pairs = torch.outer(owned.sum(dim=0), owned.sum(dim=0)) - owned.T @ owned
    return owned.T @ values @ owned / pairs


def grouped(blocks: Float[Tensor, "k k"], modality: Sequence[str]) -> dict[str, float]:
    """Mean over sites, over pairs of sites of one modality, and over pairs across modalities; no group is empty."""
    found: dict[str, list[float]] = {"site": [], "modality": [], "across": []}
    for i, mine in enumerate(modality):
        for j, other in enumerate(modality[: i + 1]):
            group = "modality" if mine == other else "across"
            found["site" if i == j else group].append(float(blocks[i, j]))
    return {group: sum(values) / len(values) for group, values in found.items() if values}


def _apart(distance: Tensor, owned: Tensor, modality: Sequence[str]) -> float:
    """Distance across modalities, as a multiple of the distance within a site."""
    groups = grouped(block_means(distance, owned), modality)
    return groups["across"] / groups["site"]


def _resampled(owned: Tensor, draws: torch.Generator) -> Tensor:
    """A bootstrap sample: how often each image is drawn when every site draws as many images as it has."""
    sites = []
    for column in owned.T:
        drawn = torch.zeros(1)
        while bool((drawn == drawn[0]).all()):  # a site's distances need two different images
            drawn = torch.multinomial(column, int(column.sum()), replacement=True, generator=draws)
        sites.append(torch.bincount(drawn, minlength=len(column)).double())
    return torch.stack(sites, dim=1)


def distances(values: Float[Tensor, "n f"], unit: bool) -> Float[Tensor, "n n"]:
    """Euclidean distance of every pair; with `unit`, between vectors of unit length."""
    directions = F.normalize(values.double(), dim=1) if unit else values.double()
    return torch.cdist(directions, directions, compute_mode="donot_use_mm_for_euclid_dist")


def cosines(means: Float[Tensor, "k r"]) -> dict[When, list[list[float]]]:
    """Cosines between sites' mean bands, before and after subtracting the mean over sites."""
    centred = means - means.mean(dim=0)
    return {"before": _cosine_matrix(means), "after": _cosine_matrix(centred)}


def _cosine_matrix(rows: Tensor) -> list[list[float]]:
    unit = F.normalize(rows, dim=1)
    found: list[list[float]] = (unit @ unit.T).tolist()
    return found
