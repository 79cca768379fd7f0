"""What a site's images and labels look like, collected while each case is read once.

Only numbers stay: counts, shapes, a bounded sample of intensities, a digest per image.  Letters: x y z voxel axes, c
channel.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from omnifm.data.datalist import Datalist
from omnifm.data.items import IMAGE_KEYS, Item
from omnifm.data.reader import READER, Reply
from omnifm.data.volume import Volume

SAMPLE = 1_000_000
"""Intensities held per site, dealt equally to its images: each counts the same, however large it is."""
BINS = 48
PERCENTILES = (0, 1, 25, 50, 75, 99, 100)
SCALE_GAP = 10.0
"""An image whose range of intensities is this many times wider or narrower than its modality's median is odd."""
SPACING_GAP = 3.0
"""So is one whose spacing along an axis differs by this factor."""
Place = tuple[str, int]
"""List in dataset.json and position in it, counted from 0."""


@dataclass(frozen=True)
class Case:
    """What was read of one case, in RAS.

    Attributes:
        images: path -> volume.
        mask: class values, or None.
    """

    images: dict[Path, Volume]
    mask: Int[np.ndarray, "x y z"] | None


def record_reads(read: Callable[[Item], object], item: Item) -> Case:
    """Let a task read an item and keep what passed through the reader: every task is seen alike, and reads once."""
    ask, images, masks = READER.ask, dict[Path, Volume](), []

    def noted(path: Path, seconds: float | None = None, **request: Any) -> Reply:
        facts, array = ask(path, seconds, **request)
        affine = np.array(facts.get("affine", request.get("affine")))
        volume = Volume(array, affine, facts.get("modality", "")).in_ras()
        if request["what"] == "image":
            images[path] = volume
        else:
            masks.append(volume.array)
        return facts, array

    READER.ask = noted  # type: ignore[method-assign]
    try:
        read(item)
    finally:
        del READER.ask  # the class's own is back
    return Case(images, masks[0] if masks else None)


@dataclass
class Images:
    """The images of one modality; one entry per image in each list."""

    places: list[Place] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    spacings_mm: list[tuple[float, ...]] = field(default_factory=list)
    channels: Counter[int] = field(default_factory=Counter)
    sample: list[Float[np.ndarray, " n"]] = field(default_factory=list)
    low: float = np.inf
    high: float = -np.inf

    def report(self) -> dict[str, Any]:
        """Numbers for JSON: shapes in voxels, spacing in mm, intensities in the modality's unit."""
        dims = Counter("3-D" if shape[2] > 1 else "2-D" for shape in self.shapes)
        values = np.concatenate(self.sample)
        edges = np.percentile(values, (0.1, 99.9)).astype(float)
        counts, _ = np.histogram(np.clip(values, *edges), BINS, (edges[0], edges[1]))
        levels = [self.low, *np.percentile(values, PERCENTILES[1:-1]).tolist(), self.high]
        return {
            "num_images": len(self.places),
            "dims": dict(dims),
            "channels": {str(number): count for number, count in sorted(self.channels.items())},
            "shape": _spread(self.shapes),
            "spacing_mm": _spread(self.spacings_mm),
            "intensity": {str(p): round(level, 4) for p, level in zip(PERCENTILES, levels, strict=True)},
            "histogram": {"low": float(edges[0]), "high": float(edges[1]), "counts": counts.tolist()},
        }

    def odd_scales(self) -> list[Place]:
        """Images whose intensities span another order of magnitude than most."""
        widths = np.array([np.subtract(*np.percentile(sample, (99, 1))) for sample in self.sample])
        middle = np.median(widths)
        odd = (widths > SCALE_GAP * middle) | (widths * SCALE_GAP < middle)
        return [place for place, is_odd in zip(self.places, odd, strict=True) if is_odd]

    def odd_spacings(self) -> list[Place]:
        """Images whose spacing is far from most."""
        spacings = np.array(self.spacings_mm)
        ratio = spacings / np.median(spacings, axis=0)
        odd = ((ratio > SPACING_GAP) | (ratio * SPACING_GAP < 1)).any(axis=1)
        return [place for place, is_odd in zip(self.places, odd, strict=True) if is_odd]


@dataclass
class Split:
    """What one split holds."""

    cases: int = 0
    patients: set[str] = field(default_factory=set)
    modalities: Counter[str] = field(default_factory=Counter)
    label_cases: Counter[int] = field(default_factory=Counter)
    label_voxels: Counter[int] = field(default_factory=Counter)

    def report(self) -> dict[str, Any]:
        """Numbers for JSON; of patients only how many."""
        labels = {
            str(value): {"cases": self.label_cases[value]}
            | ({"voxels": self.label_voxels[value]} if self.label_voxels else {})
            for value in sorted(self.label_cases)
        }
        patients = len(self.patients)
        return {"cases": self.cases, "patients": patients, "modalities": dict(self.modalities), "labels": labels}


class Findings:
    """Filled by `see`, case by case.

    Attributes:
        splits: what each split holds.
        images: modality -> its images, each file once however many questions are asked about it.
        flat: images of one value.
        empty: masks without foreground.
        header: images whose header names another modality than dataset.json.
        flats: 2-D images by whether they are pictures, which know no patient axes.
    """

    def __init__(self, datalist: Datalist) -> None:
        self.split_of = {item["origin"]: name for name, items in datalist.splits().items() for item in items}
        self.per_image = max(64, SAMPLE // max(1, 2 * len(self.split_of)))
        self.generator = np.random.default_rng(0)
        self.splits = {name: Split() for name in datalist.splits()}
        self.images: dict[str, Images] = {}
        self.flat: list[Place] = []
        self.empty: list[Place] = []
        self.header: list[Place] = []
        self.flats: Counter[bool] = Counter()
        self.known: dict[Path, bytes] = {}
        self.is_asked = any("question" in item for items in datalist.splits().values() for item in items)
        self.same: dict[bytes, list[tuple[Place, Path]]] = {}

    def see(self, item: Item, case: Case) -> None:
        """Take note of one case.

        Raises:
            TypeError: an image was not read, which is a task's mistake and would leave its data unchecked.
        """
        split, origin = self.splits[self.split_of[item["origin"]]], item["origin"]
        split.cases += 1
        split.patients |= {item["patient"]} if "patient" in item else set()
        for key in (key for key in IMAGE_KEYS if key in item):
            path, modality = item[key], modality_of(item, key)
            split.modalities[modality] += 1
            if path not in self.known:
                if path not in case.images:
                    raise TypeError(f"a task must read {key!r} with read_volume; it did not")
                self.known[path] = self._look(origin, modality, case.images[path])
            if self.known[path]:
                self.same.setdefault(self.known[path], []).append((origin, path))
        if case.mask is not None:
            self._see_mask(split, origin, case.mask)
        elif isinstance(label := item.get("label"), int):  # not the mask of another task
            split.label_cases[label] += 1

    def duplicates(self) -> tuple[list[list[dict[str, Any]]], list[list[dict[str, Any]]]]:
        """Groups of equal images: those in several splits, and those that stand several times within one.

        Several questions about one file are no duplicates, nor are the two images of one case.
        """
        across, within = [], []
        for places in self.same.values():
            if len({self.split_of[place] for place, _ in places}) > 1:
                across.append(self._group(places))
            elif len({path if self.is_asked else origin for origin, path in places}) > 1:
                within.append(self._group(places))
        return across, within

    def _group(self, places: list[tuple[Place, Path]]) -> list[dict[str, Any]]:
        return [{"split": self.split_of[at], "list": at[0], "position": at[1]} for at in sorted({p for p, _ in places})]

    def _look(self, origin: Place, modality: str, volume: Volume) -> bytes:
        """Note an image seen for the first time; return its digest, or nothing for one that is empty."""
        array, images = volume.array, self.images.setdefault(modality, Images())
        low, high = float(array.min()), float(array.max())
        images.places.append(origin)
        images.shapes.append(array.shape[:3])
        images.spacings_mm.append(volume.spacing_mm)
        images.channels[array.shape[3] if array.ndim == 4 else 1] += 1
        images.sample.append(self._sample(array))
        self.flats[volume.is_picture] += array.shape[2] == 1
        images.low, images.high = min(images.low, low), max(images.high, high)
        if volume.modality not in ("", modality):
            self.header.append(origin)
        if low == high:  # black pictures are equal, but no patient's
            self.flat.append(origin)
            return b""
        return digest(array)

    def _sample(self, array: Float[np.ndarray, "x y z *c"]) -> Float[np.ndarray, " n"]:
        values = array.reshape(-1)
        if values.size > self.per_image:
            values = values[self.generator.integers(values.size, size=self.per_image)]
        return values.astype(np.float32)

    def _see_mask(self, split: Split, origin: Place, mask: Int[np.ndarray, "x y z"]) -> None:
        counts: Counter[int] = Counter()
        for plane in mask:  # bincount widens what it counts: a plane at a time
            found = np.bincount(plane.reshape(-1))
            counts.update({value: int(number) for value, number in enumerate(found) if number})
        split.label_voxels.update(counts)
        split.label_cases.update(counts.keys())
        if set(counts) == {0}:
            self.empty.append(origin)


def modality_of(item: Item, key: str) -> str:
    """What dataset.json says of one image of an item."""
    return str(item.get(key.replace("image", "modality"), item["modality"]))


def digest(array: Shaped[np.ndarray, "x y z *c"]) -> bytes:
    """Digest of the voxels alone: one for a picture and its copy in another format or under another name."""
    if array.ndim == 4 and (array.shape[3] == 1 or (array == array[..., :1]).all()):
        array = array[..., 0]  # grey, stored as colour
    content = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    content.update(np.ascontiguousarray(array, dtype=np.float32).data)
    return content.digest()


def _spread(rows: list[tuple[Any, ...]]) -> dict[str, list[float]]:
    """Smallest, middle and largest along each axis."""
    table = np.array(rows, dtype=float)
    spread = {"min": table.min(axis=0), "median": np.median(table, axis=0), "max": table.max(axis=0)}
    return {name: np.round(values, 4).tolist() for name, values in spread.items()}
