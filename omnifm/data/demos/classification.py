"""Demo data for classification: pictures with a solid, a ring-like or a clustered finding, one modality per site."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped
from scipy.ndimage import gaussian_filter

from omnifm.data.datalist import DEMO_NAME
from omnifm.data.demos import generator, site_number
from omnifm.data.site_folder import write_datalist
from omnifm.records import Json

CONTRAST = (0.15, 1.0)
"""Contrast of a finding as a share of its modality's; the weakest are lost in the noise, so no model is perfect."""
CASES_PER_SPLIT = {"training": 150, "validation": 30, "test": 60}
FINDINGS = ("solid", "ring", "cluster")
SIDE = 28
"""Side of a picture in pixels."""
FINE = 4
"""Pictures are drawn with FINE x FINE points per pixel."""


@dataclass(frozen=True)
class Look:
    """How one modality shows a finding.

    Attributes:
        modality: DICOM code.
        tissue: brightness of the tissue, 0 to 1: one number (grey) or three (RGB).
        finding: brightness of the finding, likewise.
        grain: strength of the texture, as a share of the brightness.
        speckle: whether the grain is multiplied (as in ultrasound) or added.
        shadow: how much darker the picture is below the finding, 0 to 1.
    """

    modality: str
    tissue: tuple[float, ...]
    finding: tuple[float, ...]
    grain: float
    speckle: bool
    shadow: float


LOOKS = (
    Look("MG", (0.35,), (0.75,), grain=0.12, speckle=False, shadow=0.0),
    Look("XC", (0.85, 0.66, 0.56), (0.48, 0.30, 0.22), grain=0.06, speckle=False, shadow=0.0),
    Look("US", (0.60,), (0.22,), grain=0.15, speckle=True, shadow=0.3),
)


def make(folder: Path, site: str, seed: int) -> None:
    """Write one clinic: skin photographs, ultrasound images or mammograms, as small pictures in one npz file."""
    number = site_number(site)
    number = int(generator("look", site, seed).integers(len(LOOKS))) if number is None else number
    look = LOOKS[number % len(LOOKS)]
    content: Json = {
        "name": DEMO_NAME,
        "description": "made by omnifm.data.demos; findings are drawn, nobody was examined",
        "modality": {"0": look.modality},
        "labels": {str(value): name for value, name in enumerate(FINDINGS)},
    }
    pictures: list[Shaped[np.ndarray, "rows columns *c"]] = []
    for split, count in CASES_PER_SPLIT.items():
        content[split] = []
        for index in range(count):
            name = f"{split}-{index:02d}"
            label = index % len(FINDINGS)
            content[split].append({"image": f"images.npz#{len(pictures)}", "label": label, "patient": name})
            pictures.append(_picture(look, label, generator("case", site, seed, name)))
    np.savez_compressed(folder / "images.npz", images=np.stack(pictures))
    write_datalist(folder, content)


def _picture(look: Look, label: int, random: np.random.Generator) -> Shaped[np.ndarray, "rows columns *c"]:
    """A picture of one finding in this modality, uint8."""
    side = SIDE * FINE
    inside = gaussian_filter(_finding(label, random), 0.4 * FINE)[..., None]
    tissue, finding = (np.array(colour) * random.uniform(0.85, 1.15) for colour in (look.tissue, look.finding))
    light = 1 + 0.08 * gaussian_filter(random.normal(size=(side, side)), side / 6)[..., None] * side / 3
    below = np.maximum.accumulate(inside, axis=0) * (1 - inside)
    clean = (tissue + (finding - tissue) * inside) * light * (1 - look.shadow * below)
    grain = look.grain * gaussian_filter(random.normal(size=(side, side)), FINE / 3)[..., None] * FINE / 3 * 3.5
    shown = clean * (1 + grain) if look.speckle else clean + grain
    pixels = shown.reshape(SIDE, FINE, SIDE, FINE, -1).mean(axis=(1, 3))
    return (255 * np.clip(pixels, 0, 1)).astype(np.uint8).squeeze()


def _finding(label: int, random: np.random.Generator) -> Float[np.ndarray, "rows columns"]:
    """0 outside the finding, up to 1 inside: a blob, a blob with a hole, or several small blobs."""
    side = SIDE * FINE
    centre = side * random.uniform(0.4, 0.6, 2)
    radius = side * random.uniform(0.18, 0.28)
    blob = _blob(centre, radius, random)
    if FINDINGS[label] == "ring":
        blob *= 1 - _blob(centre, radius * random.uniform(0.35, 0.6), random)
    elif FINDINGS[label] == "cluster":
        places = centre + radius * random.uniform(-1, 1, (int(random.integers(4, 9)), 2))
        blob = np.max([_blob(place, radius * random.uniform(0.25, 0.4), random) for place in places], axis=0)
    return blob * random.uniform(*CONTRAST)


def _blob(centre: np.ndarray, radius: float, random: np.random.Generator) -> Float[np.ndarray, "rows columns"]:
    """1 inside an irregular ellipse, 0 outside."""
    y, x = np.mgrid[: SIDE * FINE, : SIDE * FINE] - centre[:, None, None]
    angle = np.arctan2(y, x) + random.uniform(0, 2 * np.pi)
    stretch = random.uniform(0.8, 1.25)
    wave = 0.1 * np.sin(2 * angle) + 0.08 * np.sin(3 * angle)
    return (np.hypot(x * stretch, y / stretch) < radius * (1 + wave)).astype(np.float64)
