"""Sample pictures of a data check: slices with the outlines of masks, for the site's own staff only."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image
from skimage.morphology import isotropic_dilation
from skimage.segmentation import find_boundaries

from omnifm.data.datalist import Datalist
from omnifm.data.items import IMAGE_KEYS, Item
from omnifm.data.volume import Volume
from omnifm.quality.findings import Case, Place, modality_of
from omnifm.quality.things import PICTURED
from omnifm.report.elements import COLOURS

NUM_PICTURES = 12
NUM_ODD = 2
"""Number of pictures of one kind of finding."""
SIDE = 260
"""Longest side of a picture, pixels."""
BORDER = 3
"""Width of a mask's outline, pixels."""


class Pictures:
    """Draws a few cases, spread evenly over modalities and classes; the next case replaces a refused one.

    Attributes:
        drawn: PNG files by caption.  A picture of a finding has its kind before the caption, as `captioned` writes it.
    """

    def __init__(self, datalist: Datalist) -> None:
        self.ranks: dict[Place, int] = {}
        sizes: Counter[object] = Counter()
        for item in (item for items in datalist.splits().values() for item in items):
            self.ranks[item["origin"]] = sizes[_kind(item)]
            sizes[_kind(item)] += 1
        each = max(1, NUM_PICTURES // len(sizes))
        kinds = sorted(sizes, key=str)[:NUM_PICTURES]
        self.due = {kind: [i * sizes[kind] // each for i in range(min(each, sizes[kind]))] for kind in kinds}
        self.labels = datalist.labels
        self.drawn: dict[str, bytes] = {}
        self.num_odd: Counter[str] = Counter()

    def see(self, item: Item, case: Case, kinds: Sequence[str] = ()) -> None:
        """Draw the case if it is one of the sample, or one of the first of its kinds of findings."""
        due = self.due.get(_kind(item), [])
        is_due = bool(due) and self.ranks[item["origin"]] >= due[0]
        wanted = [kind for kind in kinds if kind in PICTURED and self.num_odd[kind] < NUM_ODD]
        volumes = [case.images[item[key]] for key in IMAGE_KEYS if key in item and item[key] in case.images]
        if not volumes or not (is_due or wanted):  # or it asks another question about an image that is already drawn
            return
        caption, png = self._draw(item, case, volumes)
        if is_due:
            due.pop(0)
            self.drawn[caption] = png
        for kind in wanted:
            self.num_odd[kind] += 1
            self.drawn[captioned(kind, caption)] = png

    def _draw(self, item: Item, case: Case, volumes: Sequence[Volume]) -> tuple[str, bytes]:
        name, position = item["origin"]
        depth = volumes[0].array.shape[2]
        z = depth // 2 if case.mask is None or not case.mask.any() else int((case.mask > 0).sum((0, 1)).argmax())
        words = [f"{name} {position}", " | ".join(modality_of(item, key) for key in IMAGE_KEYS if key in item)]
        words += [f"z {z}/{depth}"] if depth > 1 else []
        if isinstance(label := item.get("label"), int):
            words.append(self.labels.get(label, f"class {label}"))
        panels = [_slice(volume, case.mask, min(z, volume.array.shape[2] - 1)) for volume in volumes]
        return " · ".join(words), _png(panels)


def captioned(kind: str, caption: str) -> str:
    """The caption of a picture of a finding.

    >>> captioned("tiny_mask", "training 3")
    'tiny mask: training 3'
    """
    return f"{kind.replace('_', ' ')}: {caption}"


def _kind(item: Item) -> object:
    """Return the modalities and the class of an item: the sample is spread over these."""
    label = item.get("label")
    return *(modality_of(item, key) for key in IMAGE_KEYS if key in item), None if isinstance(label, Path) else label


def _slice(volume: Volume, mask: Int[np.ndarray, "x y z"] | None, z: int) -> UInt8[np.ndarray, "rows columns 3"]:
    """Draw one slice with the outlines of its classes, in its true proportions; anterior is up, except in pictures."""
    rows = 1 if volume.is_picture else -1
    plane = _upright(volume.array, z, rows)
    if plane.ndim == 2:
        plane = plane[..., None]
    elif plane.shape[2] != 3:
        plane = plane[..., :1]
    low, high = (0, 255) if plane.shape[2] == 3 and plane.max() <= 255 else np.percentile(plane, (1, 99))
    grey = (255 * np.clip((plane - low) / max(float(high - low), 1e-6), 0, 1)).astype(np.uint8)
    sides = np.multiply(plane.shape[1::-1], volume.spacing_mm[:2])
    width, height = np.maximum(1, np.round(SIDE * sides / sides.max())).astype(int).tolist()
    rgb = Image.fromarray(np.broadcast_to(grey, (*plane.shape[:2], 3)).copy())
    drawn = np.array(rgb.resize((width, height)))
    if mask is not None:
        classes = Image.fromarray(_upright(mask, z, rows).astype(np.int32)).resize(
            (width, height), Image.Resampling.NEAREST
        )
        _outline(drawn, np.array(classes))
    return drawn


def _upright(array: Shaped[np.ndarray, "x y z *c"], z: int, rows: int) -> Shaped[np.ndarray, "y x *c"]:
    """Return slice z; its rows are in the order of y (`rows` 1) or in the opposite order (-1)."""
    return np.swapaxes(array[:, :, z], 0, 1)[::rows]


def _outline(pixels: UInt8[np.ndarray, "rows columns 3"], classes: Int[np.ndarray, "rows columns"]) -> None:
    """Draw the inner border of each class, in the colour of its number."""
    edge = isotropic_dilation(find_boundaries(classes, mode="inner"), BORDER - 1) & (classes > 0)
    pixels[edge] = _palette()[(classes[edge] - 1) % len(COLOURS)]


def _palette() -> UInt8[np.ndarray, "n 3"]:
    return np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS], np.uint8)


def _png(panels: Sequence[np.ndarray]) -> bytes:
    """Put panels side by side, each in the middle of a black square."""
    sheet = Image.new("RGB", (len(panels) * SIDE, SIDE))
    for i, panel in enumerate(panels):
        rows, columns = panel.shape[:2]
        sheet.paste(Image.fromarray(panel), (i * SIDE + (SIDE - columns) // 2, (SIDE - rows) // 2))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()
