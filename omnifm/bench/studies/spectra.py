"""Are low frequencies what modalities share?  The paper's motivating inequality (figure 4), measured on a federation.

    || P_LP F(x_i) - P_LP F(x_j) ||  <<  || F(x_i) - F(x_j) ||    for x_i, x_j of different modalities

A projection never lengthens a difference, so that "<=" holds of any images; what can fail is "<<" and what the paper
concludes from it.  Beside every distance stands what it would be if the difference lay evenly over all frequencies, and
the same distance between images of one site: the low band brings modalities together only if they are less far apart in
it, measured by that, than in the full spectrum.

Letters: n images, s side in pixels, f frequencies of the half spectrum, k sites.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from omnifm.bench.inputs import federation, out_folder, site_names
from omnifm.bench.studies.spectra_page import markdown, page
from omnifm.data.datalist import read_datalist
from omnifm.data.volume import RefusedImage, read_volume
from omnifm.parts.spectral import EDGE, low_band, radial_bands
from omnifm.state import write_atomic

MAX_SIDE = 128
"""Images become squares of the smallest side among them, at most this: an enlarged one has nothing in its high band."""
NUM_BANDS = 32
RESAMPLES = 300
SPECTRA = {
    "raw": "magnitude of the intensities as read",
    "standardised": "magnitude of the image with mean 0 and standard deviation 1",
    "log": "log1p of the raw magnitude",
    "unit": "raw magnitude, to unit length within the band",
    "standardised log": "log1p of the standardised image's magnitude",
    "standardised log, unit": "the same, to unit length within the band; nearest to what OmniFM's tokenizer reads",
}
"""What is compared, by name."""


def run(data: Path, out: Path, *, limit: int = 40, keep: float = 0.25, seed: int = 0) -> dict[str, Any]:
    """Measure a federation and write spectra.json, spectra.md and spectra.html.

    Args:
        data: federation folder, one `<site>/dataset.json` per site; training images only are looked at.
        out: folder of the results.
        limit: most images of a site, drawn with `seed`, at least 2.
        keep: radius of the low band as a share of Nyquist, in (0, 1).

    Returns:
        The content of spectra.json.

    Raises:
        ValueError: the folder holds fewer than two sites, a site fewer than two readable images, or an argument is out
            of its range.
    """
    if limit < 2 or not 0 < keep < 1:
        raise ValueError(f"limit must be at least 2 and keep in (0, 1); got {limit} and {keep}")
    data, out = federation(data), out_folder(out)
    read = {name: read_site(data / name, limit, seed) for name in site_names(data, 2)}
    found = measure({name: images for name, (images, _) in read.items()}, {n: m for n, (_, m) in read.items()}, keep)
    result = {"schema": 1, "data": data.name, "keep": keep, "limit": limit, "seed": seed} | found["numbers"]
    write_atomic(out / "spectra.json", json.dumps(result, indent=1).encode())
    write_atomic(out / "spectra.md", markdown(result).encode())
    write_atomic(out / "spectra.html", page(result, found["pictures"]))
    return result


def read_site(folder: Path, limit: int, seed: int) -> tuple[list[Tensor], str]:
    """At most `limit` of a site's training images, each (height, width) in grey, and the site's modality.

    Of a volume with depth the middle slice; channels are averaged.  Images that reading refuses are passed over.
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


def measure(images: Mapping[str, Sequence[Tensor]], modalities: Mapping[str, str], keep: float) -> dict[str, Any]:
    """All numbers, and each site's mean log spectrum for the figure.

    Args:
        images: grey images (height, width) of each site.
        modalities: code of each site.
        keep: radius of the low band as a share of Nyquist.
    """
    side = min(MAX_SIDE, *(min(image.shape) for owned in images.values() for image in owned))
    squares = torch.stack([square(image, side) for owned in images.values() for image in owned])
    site = torch.tensor([row for row, owned in enumerate(images.values()) for _ in owned])
    modality = [modalities[name] for name in images]
    inside, count = low_disc(side, keep)
    share = float(count[inside].sum() / count.sum())
    spectra = {name: compare(squares, name, inside, count, site, modality) for name in SPECTRA}
    bands = [
        radial_bands(standardised(squares[site == k])[:, None], NUM_BANDS, keep)[:, 1:] for k in range(len(images))
    ]
    shown = {name: {"modality": modalities[name], "num_images": len(owned)} for name, owned in images.items()}
    means = torch.stack([band.mean(dim=0) for band in bands])
    numbers = {
        "side": side,
        "low_share_of_frequencies": share,
        "sites": shown,
        "spectra": {name: {"what": SPECTRA[name]} | row for name, row in spectra.items()},
        "cosines": cosines(means),
    }
    logs = magnitude(squares, "standardised log")
    pictures = {name: logs[site == k].mean(dim=0) for k, name in enumerate(images)}
    return {"numbers": numbers, "pictures": pictures}


def square(image: Float[Tensor, "h w"], side: int) -> Float[Tensor, "s s"]:
    """The middle square, shrunk to `side` pixels with a filter against aliasing; an image of that size is returned."""
    size = min(image.shape)
    top, left = ((length - size) // 2 for length in image.shape)
    middle = image[None, None, top : top + size, left : left + size]
    if size == side:
        return middle[0, 0]
    return F.interpolate(middle, (side, side), mode="bilinear", antialias=True)[0, 0]


def standardised(images: Float[Tensor, "n s s"]) -> Float[Tensor, "n s s"]:
    """Each image with mean 0 and standard deviation 1; a constant one is 0."""
    centred = images - images.mean(dim=(1, 2), keepdim=True)
    spread = centred.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return centred / torch.where(spread > 0, spread, 1.0)


def magnitude(images: Float[Tensor, "n s s"], name: str) -> Float[Tensor, "n s h"]:
    """|FFT| as `SPECTRA` says; unit length is left to the band."""
    values = low_band((standardised(images) if "standardised" in name else images)[:, None], keep=1.0)[:, 0]
    return torch.log1p(values) if "log" in name else values


def low_disc(side: int, keep: float) -> tuple[Bool[Tensor, "s h"], Float[Tensor, "s h"]]:
    """Which frequencies of `low_band(..., keep=1)` have radius <= keep, and how often each stands in the full plane."""
    rows = torch.fft.fftfreq(side, dtype=torch.float64) * 2
    columns = torch.arange(side // 2 + 1, dtype=torch.float64) * 2 / side
    inside = (rows[:, None] ** 2 + columns**2).sqrt() <= keep * (1 + EDGE)
    twice = (columns > 0) & (columns < 1 - EDGE)  # the half spectrum leaves out their mirror images
    return inside, torch.where(twice, 2.0, 1.0).expand(side, -1).float()


def compare(
    images: Float[Tensor, "n s s"],
    name: str,
    inside: Bool[Tensor, "s h"],
    count: Float[Tensor, "s h"],
    site: Tensor,
    modality: Sequence[str],
) -> dict[str, Any]:
    """Mean distance of pairs per group in the low band and in the full spectrum, and what they say of the inequality.

    Every pair of sites, and every site with itself, counts the same, however many images it has.

    Args:
        inside, count: of `low_disc`; site: number of each image's site; modality: code of each site.

    Returns:
        `groups`: {group: {"low", "full"}}, groups without a pair left out; `low_over_full`: mean over pairs across
        modalities of their low by their full distance; `even`: what that would be if differences lay evenly over
        frequencies (1 where each band has its own unit length); `apart_low`, `apart_full`: distance across modalities
        by distance within a site; `nearer`: apart_full - apart_low, > 0 where the low band brings modalities together,
        as [2.5 %, 97.5 %] of `RESAMPLES` bootstrap samples of each site's images.

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
    """Mean over pairs of images of every pair of sites; no image is paired with itself, whose value must be 0.

    Args:
        owned: how often each image counts for each site.
    """
    pairs = torch.outer(owned.sum(dim=0), owned.sum(dim=0)) - owned.T @ owned
    return owned.T @ values @ owned / pairs


def grouped(blocks: Float[Tensor, "k k"], modality: Sequence[str]) -> dict[str, float]:
    """Mean over sites, over pairs of sites of one modality, and over pairs of different ones; as far as there are."""
    found: dict[str, list[float]] = {"site": [], "modality": [], "across": []}
    for i, mine in enumerate(modality):
        for j, other in enumerate(modality[: i + 1]):
            found["site" if i == j else "modality" if mine == other else "across"].append(float(blocks[i, j]))
    return {group: sum(values) / len(values) for group, values in found.items() if values}


def _apart(distance: Tensor, owned: Tensor, modality: Sequence[str]) -> float:
    groups = grouped(block_means(distance, owned), modality)
    return groups["across"] / groups["site"]


def _resampled(owned: Tensor, draws: torch.Generator) -> Tensor:
    """How often each image is drawn when every site draws as many of its images as it has, with replacement."""
    sites = []
    for column in owned.T:
        drawn = torch.zeros(1)
        while bool((drawn == drawn[0]).all()):  # a site's distances need two different images
            drawn = torch.multinomial(column, int(column.sum()), replacement=True, generator=draws)
        sites.append(torch.bincount(drawn, minlength=len(column)).double())
    return torch.stack(sites, dim=1)


def distances(values: Float[Tensor, "n f"], unit: bool) -> Float[Tensor, "n n"]:
    """Euclidean distance of every pair; with `unit` of the vectors' directions."""
    directions = F.normalize(values.double(), dim=1) if unit else values.double()
    return torch.cdist(directions, directions, compute_mode="donot_use_mm_for_euclid_dist")


def cosines(means: Float[Tensor, "k r"]) -> dict[str, list[list[float]]]:
    """Cosines between sites' mean bands, as they are and after subtracting the mean over sites."""
    centred = means - means.mean(dim=0)
    return {
        when: (F.normalize(rows, dim=1) @ F.normalize(rows, dim=1).T).tolist()
        for when, rows in (("before", means), ("after", centred))
    }
