"""The results of `omnifm bench spectra`: tables in Markdown, and one self-contained page like the paper's figure 4."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from omnifm.bench.tables.markdown import grid
from omnifm.report.elements import COLOURS, Picture, Table
from omnifm.report.render import render

GROUPS = {"site": "same site", "modality": "same modality, other site", "across": "across modalities"}
HEADERS = (
    "spectrum",
    "low / full",
    "if spread evenly",
    "apart, low",
    "apart, full",
    "full - low [95 % CI]",
    "low band brings together",
)
READING = (
    "low / full: mean over pairs of different modalities of their distance in the low band by that in the full "
    "spectrum; if spread evenly: what that would be if the difference lay evenly over all frequencies, so that a "
    "larger value means a difference concentrated in the low band; apart: distance across modalities by distance "
    "within a site, 1 if modality did not matter; CI: bootstrap over each site's images."
)


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return one row for each spectrum, with the cells of `HEADERS`."""
    shown = []
    for name, found in result["spectra"].items():
        low, high = found["nearer"]
        nearer = found["apart_full"] - found["apart_low"]
        shown.append(
            [
                name,
                f"{found['low_over_full']:.3f}",
                f"{found['even']:.3f}",
                f"{found['apart_low']:.3f}",
                f"{found['apart_full']:.3f}",
                f"{nearer:+.3f} [{low:+.3f}, {high:+.3f}]",
                _verdict(low, high),
            ]
        )
    return shown


def _verdict(low: float, high: float) -> str:
    """Say whether the low band brings modalities together, from the interval of full - low."""
    if low > 0:
        return "yes"
    return "no, further apart" if high < 0 else "cannot be told"


def head(result: Mapping[str, Any]) -> str:
    """Describe what was measured, in a sentence."""
    sites = ", ".join(f"{name} ({row['modality']}, {row['num_images']})" for name, row in result["sites"].items())
    return (
        f"Amplitude spectra on {result['data']}: training images of {sites}; squares of {result['side']} pixels; low "
        f"band: radius {result['keep']} of Nyquist, {result['low_share_of_frequencies']:.1%} of the frequencies"
    )


def distance_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the mean distance of each spectrum and group of pairs."""
    return [
        [name, GROUPS[group], f"{row['low']:.4g}", f"{row['full']:.4g}"]
        for name, found in result["spectra"].items()
        for group, row in found["groups"].items()
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """Return all tables as Markdown."""
    names = list(result["sites"])
    lines = [head(result), "", READING, "", *grid(HEADERS, rows(result)), ""]
    lines += grid(("spectrum", "pairs of", "low", "full"), distance_rows(result))
    for when in ("before", "after"):
        lines += ["", f"Cosines of sites' mean low-band log spectra {when} subtracting the mean over sites", ""]
        matrix = result["cosines"][when]
        cells = [[n, *(f"{v:.3f}" for v in row)] for n, row in zip(names, matrix, strict=True)]
        lines += grid(("", *names), cells)
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class SpectraPage:
    """The page; `cosines` holds a table for `before` and `after` subtracting the mean over sites."""

    title: str
    measured: str
    figure: Picture
    reading: str
    inequality: Table
    distances: Table
    cosines: Mapping[str, Table]


def page(result: Mapping[str, Any], pictures: Mapping[str, Tensor]) -> bytes:
    """Return the page.  It shows no image of a patient.

    Args:
        result: what `spectra.run` measured.
        pictures: site -> mean log spectrum (s, s // 2 + 1) in the order of the FFT.
    """
    names = list(result["sites"])
    content = SpectraPage(
        title=f"Spectra of {result['data']}",
        measured=head(result),
        figure=Picture("mean log spectra of each site", _figure(result, pictures)),
        reading=READING,
        inequality=Table(HEADERS, rows(result)),
        distances=Table(("spectrum", "pairs of", "low", "full"), distance_rows(result), (0, 1)),
        cosines={when: _cosines(names, result["cosines"][when]) for when in ("before", "after")},
    )
    return render("spectra.html.j2", content)


def _cosines(names: list[str], matrix: list[list[float]]) -> Table:
    cells = [[name, *(f"{value:.3f}" for value in row)] for name, row in zip(names, matrix, strict=True)]
    return Table(["", *names], cells)


def _figure(result: Mapping[str, Any], pictures: Mapping[str, Tensor]) -> bytes:
    """Draw each site's mean spectrum with the edge of the low band; below, radial profiles and distances."""
    figure = Figure(figsize=(11.0, 6.2), layout="constrained")
    halves = figure.subfigures(2, 1)
    assert isinstance(halves, np.ndarray)
    upper, lower = halves
    planes = {name: _plane(half) for name, half in pictures.items()}
    _draw_planes(upper, planes, result)
    profile, bars = lower.subplots(1, 2)
    _draw_profiles(profile, planes, result["keep"])
    _draw_distances(bars, result["spectra"])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _draw_planes(upper: SubFigure, planes: Mapping[str, Tensor], result: Mapping[str, Any]) -> None:
    top = max(float(plane.max()) for plane in planes.values())
    angles = torch.linspace(0, 2 * math.pi, 200)
    keep = result["keep"]
    for axes, (name, plane) in zip(upper.subplots(1, len(planes), squeeze=False)[0], planes.items(), strict=True):
        axes.imshow(plane.numpy(), cmap="magma", vmin=0, vmax=top, extent=(-1, 1, -1, 1))
        axes.plot(keep * angles.cos(), keep * angles.sin(), color="white", linewidth=1)
        axes.set_title(f"{name} ({result['sites'][name]['modality']})", fontsize=10)
        axes.set_axis_off()


def _draw_profiles(axes: Axes, planes: Mapping[str, Tensor], keep: float) -> None:
    for index, (name, plane) in enumerate(planes.items()):
        radii, means = _profile(plane)
        axes.plot(radii, means, color=COLOURS[index % len(COLOURS)], linewidth=1.4, label=name)
    axes.axvline(keep, color="#56636f", linestyle=":")
    axes.set_xlabel("radius, share of Nyquist")
    axes.set_ylabel("mean log1p magnitude")
    axes.legend(fontsize=8, frameon=False)


def _draw_distances(axes: Axes, spectra: Mapping[str, Any]) -> None:
    for offset, band in enumerate(("low", "full")):
        values = [found[f"apart_{band}"] for found in spectra.values()]
        places = [row + 0.4 * offset for row in range(len(spectra))]
        axes.barh(places, values, height=0.38, color=COLOURS[offset], label=band)
    axes.set_yticks([row + 0.2 for row in range(len(spectra))], list(spectra), fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1.0, color="#56636f", linestyle=":")
    axes.set_xlabel("distance across modalities / within a site")
    axes.legend(fontsize=8, frameon=False)


def _plane(half: Tensor) -> Tensor:
    """Return the whole centred spectrum from the half that a real FFT gives: the other half mirrors it."""
    side = half.shape[0]
    left = half[:, 1 : (side + 1) // 2].flip(1)
    return torch.fft.fftshift(torch.cat([half, left.roll(-1, 0).flip(0)], dim=1))


def _profile(plane: Tensor) -> tuple[list[float], list[float]]:
    """Return radii as shares of Nyquist, and the mean over each ring one frequency wide."""
    side = plane.shape[0]
    axis = torch.fft.fftshift(torch.fft.fftfreq(side)) * side
    ring = (axis[:, None] ** 2 + axis**2).sqrt().round().long()
    top = side // 2
    means = [float(plane[ring == radius].mean()) for radius in range(top + 1)]
    return [radius / (side / 2) for radius in range(top + 1)], means
