"""Demo data for super-resolution: microscope pictures of stained tissue, or MR slices of a brain; sites take turns."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from omnifm.data.datalist import DEMO_NAME
from omnifm.data.demos import generator, site_number
from omnifm.data.site_folder import write_datalist
from omnifm.records import Json

CASES_PER_SPLIT = {"training": 24, "validation": 6, "test": 8}
SIDES = (96, 113)
"""Range of a side in pixels (the upper limit is excluded); sides may be odd, as those of real pictures."""
FINE = 2
"""Pictures are drawn with FINE x FINE points per pixel."""


def make(folder: Path, site: str, seed: int) -> None:
    """Write one laboratory (microscope pictures, RGB) or one institution (MR slices, grey)."""
    number = site_number(site)
    number = int(generator("look", site, seed).integers(2)) if number is None else number
    modality, draw = (("MR", _brain), ("SM", _tissue))[number % 2]
    content: Json = {
        "name": DEMO_NAME,
        "description": "made by omnifm.data.demos; pictures are drawn, nobody was examined",
        "modality": {"0": modality},
    }
    (folder / "images").mkdir()
    for split, count in CASES_PER_SPLIT.items():
        content[split] = []
        for index in range(count):
            name = f"{split}-{index:02d}"
            random = generator("case", site, seed, name)
            drawn = draw(int(random.integers(*SIDES)), int(random.integers(*SIDES)), random)
            pixels = (255 * np.clip(drawn, 0, 1)).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
            content[split].append({"image": f"images/{name}.png", "patient": name})
    write_datalist(folder, content)


def _tissue(rows: int, columns: int, random: np.random.Generator) -> Float[np.ndarray, "rows columns 3"]:
    """Pink fibres with white gaps, and violet nuclei with dark rims and grains; RGB, about 0 to 1."""
    shape = (rows * FINE, columns * FINE)
    fibres = _noise(shape, (random.uniform(1.5, 3), random.uniform(8, 14)), random)
    gaps = _noise(shape, (9.0, 9.0), random) > 1.1
    colour = np.array([0.87, 0.62, 0.76]) + 0.07 * fibres[..., None] * np.array([0.6, 1.0, 0.7])
    colour[gaps] = (0.95, 0.93, 0.95)
    grains = _noise(shape, (1.0, 1.0), random) > 1.6
    for _ in range(int(shape[0] * shape[1] / random.uniform(400, 700))):
        _draw_nucleus(colour, grains, random)
    return _imaged(colour, 0.6, 0.01, random)


def _draw_nucleus(
    colour: Float[np.ndarray, "y x 3"], grains: Bool[np.ndarray, "y x"], random: np.random.Generator
) -> None:
    """Draw one nucleus, an ellipse at a random place, into `colour`."""
    rows, columns = grains.shape
    row = int(random.integers(rows))
    column = int(random.integers(columns))
    box = (slice(max(0, row - 14), row + 14), slice(max(0, column - 14), column + 14))
    y, x = np.mgrid[box] - np.array([row, column])[:, None, None]
    radius = random.uniform(4, 8)
    angle = random.uniform(0, np.pi)
    stretch = random.uniform(1.0, 1.7)
    along = y * np.sin(angle) + x * np.cos(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    depth = np.hypot(along / stretch, across * stretch) / radius
    depth = depth[: rows - box[0].start, : columns - box[1].start]  # the box may reach beyond the picture
    part = colour[box]
    part[depth < 1] = np.array([0.45, 0.30, 0.60]) * random.uniform(0.8, 1.2)
    part[(depth > 0.8) & (depth < 1)] *= 0.7
    part[(depth < 0.75) & grains[box]] *= 0.6


def _brain(rows: int, columns: int, random: np.random.Generator) -> Float[np.ndarray, "rows columns"]:
    """A cross-section of a head: skin, skull, grey matter with folds around white matter, and fluid; about 0 to 1."""
    shape = (rows * FINE, columns * FINE)
    y, x = np.mgrid[: shape[0], : shape[1]]
    middle = np.array(shape)[:, None, None] / 2
    depth = np.hypot(*((np.stack([y, x]) - middle) / middle)) / random.uniform(0.85, 0.95)
    depth = depth * (1 + 0.04 * _noise(shape, (25.0, 25.0), random))
    folds = np.abs(_noise(shape, (random.uniform(4.0, 6.0),) * 2, random))
    level = np.zeros(shape)
    for limit, value in ((1.0, 0.75), (0.93, 0.12), (0.84, 0.2)):  # skin, skull, fluid
        level[depth < limit] = value
    brain = (depth < 0.8) & ((folds > 0.12) | (depth < 0.35))
    level[brain] = 0.5
    level[brain & (folds > 0.5) | (depth < 0.45)] = 0.72
    level[np.hypot((y - middle[0]) / 30, (np.abs(x - middle[1]) - 14) / 8) < 1] = 0.18
    shaded = level * (1 + 0.05 * _noise(shape, (30.0, 30.0), random))
    return _imaged(shaded[..., None], 0.8, 0.02, random)[..., 0]


def _noise(shape: tuple[int, int], sigma: tuple[float, float], random: np.random.Generator) -> np.ndarray:
    """A smooth random field of mean about 0 and standard deviation about 1."""
    coarse = max(1, int(min(sigma) / 2))  # a smooth field can be drawn on a coarse grid and enlarged
    size = [side // coarse + 2 for side in shape]
    field = gaussian_filter(random.normal(size=size), [s / coarse for s in sigma])
    return zoom(field / field.std(), coarse, order=1)[: shape[0], : shape[1]]


def _imaged(
    fine: np.ndarray, blur: float, noise: float, random: np.random.Generator
) -> Float[np.ndarray, "rows columns c"]:
    """The picture that a camera takes of the fine drawing: blurred, reduced to pixels, with noise."""
    blurred = gaussian_filter(fine, (blur * FINE, blur * FINE, 0))
    rows, columns, channels = (fine.shape[0] // FINE, fine.shape[1] // FINE, fine.shape[2])
    pixels = blurred.reshape(rows, FINE, columns, FINE, channels).mean(axis=(1, 3))
    return pixels + random.normal(0, noise, pixels.shape)
