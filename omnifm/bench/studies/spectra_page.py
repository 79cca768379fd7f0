"""What `omnifm bench spectra` shows people: tables in Markdown, and one self-contained page like figure 4."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from omnifm.bench.tables.markdown import grid
from omnifm.report.page import COLOURS, Html, document, image, section, table, tag

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
    """One row per spectrum, as `HEADERS`."""
    shown = []
    for name, found in result["spectra"].items():
        low, high = found["nearer"]
        verdict = "yes" if low > 0 else "no, further apart" if high < 0 else "cannot be told"
        nearer = found["apart_full"] - found["apart_low"]
        shown.append(
            [
                name,
                f"{found['low_over_full']:.3f}",
                f"{found['even']:.3f}",
                f"{found['apart_low']:.3f}",
                f"{found['apart_full']:.3f}",
                f"{nearer:+.3f} [{low:+.3f}, {high:+.3f}]",
                verdict,
            ]
        )
    return shown


def head(result: Mapping[str, Any]) -> str:
    """What was measured, in a sentence."""
    sites = ", ".join(f"{name} ({row['modality']}, {row['num_images']})" for name, row in result["sites"].items())
    return (
        f"Amplitude spectra on {result['data']}: training images of {sites}; squares of {result['side']} pixels; low "
        f"band: radius {result['keep']} of Nyquist, {result['low_share_of_frequencies']:.1%} of the frequencies"
    )


def distance_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Mean distances of each spectrum and group of pairs."""
    return [
        [name, GROUPS[group], f"{row['low']:.4g}", f"{row['full']:.4g}"]
        for name, found in result["spectra"].items()
        for group, row in found["groups"].items()
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """All tables for people."""
    names = list(result["sites"])
    lines = [head(result), "", READING, "", *grid(HEADERS, rows(result)), ""]
    lines += grid(("spectrum", "pairs of", "low", "full"), distance_rows(result))
    for when in ("before", "after"):
        lines += ["", f"Cosines of sites' mean low-band log spectra {when} subtracting the mean over sites", ""]
        matrix = result["cosines"][when]
        cells = [[n, *(f"{v:.3f}" for v in row)] for n, row in zip(names, matrix, strict=True)]
        lines += grid(("", *names), cells)
    return "\n".join(lines) + "\n"


def page(result: Mapping[str, Any], pictures: Mapping[str, Tensor]) -> bytes:
    """The page; `pictures` are sites' mean log spectra (s, s // 2 + 1) in FFT order.  No patient's image is on it."""
    names = list(result["sites"])
    title = f"Spectra of {result['data']}"
    panels = [
        tag("header", tag("div", "OmniFM-FLARE spectra", class_="soft over"), tag("h1", title), tag("p", head(result))),
        section("Mean log amplitude spectra", image(_figure(result, pictures), "mean log spectra of each site")),
        section("The inequality", tag("p", READING, class_="soft"), table(HEADERS, rows(result))),
        section("Mean distances", table(("spectrum", "pairs of", "low", "full"), distance_rows(result), (0, 1))),
    ]
    both = [
        tag("div", tag("h3", f"{when} subtracting the mean over sites"), _cosines(names, result["cosines"][when]))
        for when in ("before", "after")
    ]
    panels.append(section("Cosines of sites' mean low-band log spectra", tag("div", *both, class_="two")))
    return document(title, *panels)


def _cosines(names: list[str], matrix: list[list[float]]) -> Html:
    return table(["", *names], [[n, *(f"{v:.3f}" for v in row)] for n, row in zip(names, matrix, strict=True)])


def _figure(result: Mapping[str, Any], pictures: Mapping[str, Tensor]) -> bytes:
    """Above, each site's mean spectrum with the low band's edge; below, its radial profile and the distances apart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 6.2), layout="constrained")
    halves: Any = figure.subfigures(2, 1)
    upper, lower = halves
    planes = {name: _plane(half) for name, half in pictures.items()}
    top = max(float(plane.max()) for plane in planes.values())
    for axes, (name, plane) in zip(upper.subplots(1, len(planes), squeeze=False)[0], planes.items(), strict=True):
        axes.imshow(plane.numpy(), cmap="magma", vmin=0, vmax=top, extent=(-1, 1, -1, 1))
        turns = torch.linspace(0, 2 * math.pi, 200)
        axes.plot(result["keep"] * turns.cos(), result["keep"] * turns.sin(), color="white", linewidth=1)
        axes.set_title(f"{name} ({result['sites'][name]['modality']})", fontsize=10)
        axes.set_axis_off()
    profile, bars = lower.subplots(1, 2)
    for number, (name, plane) in enumerate(planes.items()):
        radii, means = _profile(plane)
        profile.plot(radii, means, color=COLOURS[number % len(COLOURS)], linewidth=1.4, label=name)
    profile.axvline(result["keep"], color="#56636f", linestyle=":")
    profile.set_xlabel("radius, share of Nyquist")
    profile.set_ylabel("mean log1p magnitude")
    profile.legend(fontsize=8, frameon=False)
    spectra = result["spectra"]
    for offset, band in enumerate(("low", "full")):
        values = [found[f"apart_{band}"] for found in spectra.values()]
        places = [row + 0.4 * offset for row in range(len(spectra))]
        bars.barh(places, values, height=0.38, color=COLOURS[offset], label=band)
    bars.set_yticks([row + 0.2 for row in range(len(spectra))], list(spectra), fontsize=8)
    bars.invert_yaxis()
    bars.axvline(1.0, color="#56636f", linestyle=":")
    bars.set_xlabel("distance across modalities / within a site")
    bars.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _plane(half: Tensor) -> Tensor:
    """The full centred plane of a half spectrum: the left half mirrors the right one."""
    side = half.shape[0]
    left = half[:, 1 : (side + 1) // 2].flip(1)
    return torch.fft.fftshift(torch.cat([half, left.roll(-1, 0).flip(0)], dim=1))


def _profile(plane: Tensor) -> tuple[list[float], list[float]]:
    """Mean over rings one frequency wide, up to Nyquist."""
    side = plane.shape[0]
    axis = torch.fft.fftshift(torch.fft.fftfreq(side)) * side
    ring = (axis[:, None] ** 2 + axis**2).sqrt().round().long()
    top = side // 2
    means = [float(plane[ring == radius].mean()) for radius in range(top + 1)]
    return [radius / (side / 2) for radius in range(top + 1)], means
