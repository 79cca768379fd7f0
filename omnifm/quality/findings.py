"""What a site's images and labels look like, collected while each case is read once.

Only numbers are kept: counts, shapes, a limited sample of intensities, a hash of each image.

Letters: x y z voxel axes, c channel.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from omnifm.data.datalist import Datalist
from omnifm.data.items import IMAGE_KEYS, Item
from omnifm.data.reader import READER
from omnifm.data.refusal import RefusedImage
from omnifm.data.volume import Volume
from omnifm.quality import things
from omnifm.quality.records import ImagesReport, LabelCount, PlaceRecord, SplitReport, Spread

SAMPLE = 1_000_000
"""Number of intensities kept per site.  Each image gives the same number, so that large images do not count more."""
BINS = 48
NOTES_BYTES = 256 * 2**20
"""Memory for reading a header, bytes."""
PERCENTILES = (0, 1, 25, 50, 75, 99, 100)
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
    """Let a task read an item, and return the images and the mask that it read.

    The check therefore sees what the task sees, whichever task it is, and reads each file once.
    """
    images: dict[Path, Volume] = {}
    masks: list[Int[np.ndarray, "x y z"]] = []
    with READER.recording() as reads:
        read(item)
    for path, request, facts, array in reads:
        affine = np.array(facts.get("affine", request.get("affine")))
        volume = Volume(array, affine, facts.get("modality", "")).in_ras()
        if request["what"] == "image":
            images[path] = volume
        else:
            masks.append(volume.array)
    return Case(images, masks[0] if masks else None)


class Content(NamedTuple):
    """Digests of what one case holds, whatever its files are called.  They stay at the site.

    Attributes:
        images: of the voxels of each image, without images that hold one value everywhere.
        whole: of all images, the label, and the texts of the item.
    """

    images: tuple[str, ...]
    whole: str


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

    def report(self) -> ImagesReport:
        """Return numbers for JSON: shapes in voxels, spacing in mm, intensities in the modality's unit."""
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
        """Return the images whose range of intensities is far from most (see `things.SCALE_GAP`)."""
        widths = np.array([np.subtract(*np.percentile(sample, (99, 1))) for sample in self.sample])
        middle = np.median(widths)
        odd = (widths > things.SCALE_GAP * middle) | (widths * things.SCALE_GAP < middle)
        return [place for place, is_odd in zip(self.places, odd, strict=True) if is_odd]

    def odd_spacings(self) -> list[Place]:
        """Return the images whose spacing is far from most (see `things.SPACING_GAP`)."""
        spacings = np.array(self.spacings_mm)
        ratio = spacings / np.median(spacings, axis=0)
        odd = ((ratio > things.SPACING_GAP) | (ratio * things.SPACING_GAP < 1)).any(axis=1)
        return [place for place, is_odd in zip(self.places, odd, strict=True) if is_odd]


@dataclass
class Split:
    """What one split holds."""

    cases: int = 0
    patients: set[str] = field(default_factory=set)
    nameless: int = 0
    """Cases that name no patient."""
    modalities: Counter[str] = field(default_factory=Counter)
    label_cases: Counter[int] = field(default_factory=Counter)
    label_voxels: Counter[int] = field(default_factory=Counter)

    def report(self) -> SplitReport:
        """Return numbers for JSON; of patients only how many there are."""
        return {
            "cases": self.cases,
            "patients": len(self.patients),
            "modalities": dict(self.modalities),
            "labels": {str(value): self._label(value) for value in sorted(self.label_cases)},
        }

    def _label(self, value: int) -> LabelCount:
        if self.label_voxels:
            voxels = self.label_voxels[value]
            share = voxels / self.label_voxels.total()
            return {"cases": self.label_cases[value], "voxels": voxels, "share": round(share, 6)}
        return {"cases": self.label_cases[value]}


class Findings:
    """Everything that was found; `see` adds one case.

    Attributes:
        split_of: place of a case -> name of its split.
        splits: what each split holds.
        images: modality -> its images.  Each file counts once, even if several questions are asked about it.
        odd: places of cases by kind of finding, a key of `things.THINGS`; the values of a place are not used.
        num_2d: number of 2-D images that are pictures without patient axes (True) and that are not (False).
        contents: digests by case.
    """

    def __init__(self, datalist: Datalist) -> None:
        self.split_of = {item["origin"]: name for name, items in datalist.splits().items() for item in items}
        self.per_image = max(64, SAMPLE // max(1, 2 * len(self.split_of)))
        self.generator = np.random.default_rng(0)
        self.splits = {name: Split() for name in datalist.splits()}
        self.images: dict[str, Images] = {}
        self.odd: dict[str, dict[Place, None]] = {}
        self.num_2d: Counter[bool] = Counter()
        self.known: dict[Path, bytes] = {}
        self.uniform: set[Path] = set()
        self.noted: set[Path] = set()
        self.masks: dict[bytes, list[tuple[Place, object]]] = {}
        self.contents: dict[Place, Content] = {}
        self.is_asked = any("question" in item for items in datalist.splits().values() for item in items)
        self.same: dict[bytes, list[tuple[Place, Path]]] = {}

    def see(self, item: Item, case: Case) -> None:
        """Add one case.

        Raises:
            TypeError: the task did not read an image of the case.  This is a mistake in the task's program: the image
                would not be checked.
        """
        split, origin = self.splits[self.split_of[item["origin"]]], item["origin"]
        split.cases += 1
        split.patients |= {item["patient"]} if "patient" in item else set()
        split.nameless += "patient" not in item
        for key in (key for key in IMAGE_KEYS if key in item):
            path, modality = item[key], modality_of(item, key)
            split.modalities[modality] += 1
            if path not in self.known:
                if path not in case.images:
                    raise TypeError(f"a task must read {key!r} with read_volume; it did not")
                self.known[path] = digest(case.images[path].array)
                self._look(origin, modality, path, case.images[path])
            if path not in self.uniform:  # two black pictures are equal, but that does not make them one patient's
                self.same.setdefault(self.known[path], []).append((origin, path))
        if case.mask is not None:
            self._see_mask(split, item, case.mask)
        elif isinstance(label := item.get("label"), int):  # a path is a mask, which this task does not read
            split.label_cases[label] += 1
        self.contents[origin] = self._content(item, case)
        self._note_headers(item)

    def kinds_of(self, place: Place) -> list[str]:
        """The kinds of findings at a case, as far as they are known."""
        return [kind for kind, places in self.odd.items() if place in places]

    def _content(self, item: Item, case: Case) -> Content:
        paths = [item[key] for key in IMAGE_KEYS if key in item]
        images = [self.known[path].hex() for path in paths]
        told = {key: value for key, value in item.items() if key != "origin" and not isinstance(value, Path)}
        whole = hashlib.blake2b(json.dumps([images, told], sort_keys=True, default=str).encode(), digest_size=16)
        if case.mask is not None:
            whole.update(digest(case.mask))
        varied = (self.known[path].hex() for path in paths if path not in self.uniform)
        return Content(tuple(varied), whole.hexdigest())

    def duplicates(self) -> tuple[list[list[PlaceRecord]], list[list[PlaceRecord]]]:
        """Return groups of equal images: those in several splits, and those more than once within one split.

        Several questions about one file are not duplicates.  Nor are the two images of one case.
        """
        across, within = [], []
        for places in self.same.values():
            if len({self.split_of[place] for place, _ in places}) > 1:
                across.append(self._group(places))
            elif len({path if self.is_asked else origin for origin, path in places}) > 1:
                within.append(self._group(places))
        return across, within

    def _group(self, places: list[tuple[Place, Path]]) -> list[PlaceRecord]:
        found = sorted({place for place, _ in places})
        return [{"split": self.split_of[at], "list": at[0], "position": at[1]} for at in found]

    def _look(self, origin: Place, modality: str, path: Path, volume: Volume) -> None:
        """Add an image that is seen for the first time."""
        array, images = volume.array, self.images.setdefault(modality, Images())
        low, high = float(array.min()), float(array.max())
        images.places.append(origin)
        images.shapes.append(array.shape[:3])
        images.spacings_mm.append(volume.spacing_mm)
        images.channels[array.shape[3] if array.ndim == 4 else 1] += 1
        images.sample.append(self._sample(array))
        self.num_2d[volume.is_picture] += array.shape[2] == 1
        images.low, images.high = min(images.low, low), max(images.high, high)
        if volume.modality not in ("", modality):
            self._note("header_modality", origin)
        if low == high:
            self._note("flat", origin)
            self.uniform.add(path)
        elif np.count_nonzero(array == low) > things.PADDED * array.size:
            self._note("padding", origin)

    def _sample(self, array: Float[np.ndarray, "x y z *c"]) -> Float[np.ndarray, " n"]:
        values = array.reshape(-1)
        if values.size > self.per_image:
            values = values[self.generator.integers(values.size, size=self.per_image)]
        return values.astype(np.float32)

    def _see_mask(self, split: Split, item: Item, mask: Int[np.ndarray, "x y z"]) -> None:
        origin = item["origin"]
        counts: Counter[int] = Counter()
        for plane in mask:  # one plane at a time, because bincount copies its input to a wider type
            found = np.bincount(plane.reshape(-1))
            counts.update({value: int(number) for value, number in enumerate(found) if number})
        split.label_voxels.update(counts)
        split.label_cases.update(counts.keys())
        foreground = counts.total() - counts[0]
        if foreground == 0:
            self._note("empty_mask", origin)
        elif foreground < things.TINY:
            self._note("tiny_mask", origin)
        elif foreground > things.COVERED * counts.total():
            self._note("large_mask", origin)
        if foreground:
            self._compare_masks(origin, item, mask)

    def _compare_masks(self, origin: Place, item: Item, mask: Int[np.ndarray, "x y z"]) -> None:
        """Note a mask that another patient has too, voxel by voxel."""
        owner = item.get("patient", item.get("image"))
        same = self.masks.setdefault(digest(mask), [])
        others = [place for place, other in same if other != owner]
        if others and item.get("label") is not None:
            for place in [*others, origin]:
                self._note("equal_masks", place)
        same.append((origin, owner))

    def _note_headers(self, item: Item) -> None:
        """Look at the headers of a case's files, image and mask."""
        for path in [item[key] for key in (*IMAGE_KEYS, "label") if isinstance(item.get(key), Path)]:
            if path in self.noted:
                continue
            self.noted.add(path)
            try:
                told, _ = READER.ask(path, what="notes", max_bytes=NOTES_BYTES)
            except RefusedImage:  # it was read before, so that its header is only unusual
                continue
            if told.get("transforms_apart", 0) > things.APART:
                self._note("two_transforms", item["origin"])
            if "exif" in told:
                self._note("orientation_tag", item["origin"])

    def _note(self, kind: str, place: Place) -> None:
        self.odd.setdefault(kind, {})[place] = None


def modality_of(item: Item, key: str) -> str:
    """Return the modality that dataset.json gives to one image of an item."""
    return str(item.get(key.replace("image", "modality"), item["modality"]))


def digest(array: Shaped[np.ndarray, "x y z *c"]) -> bytes:
    """Return a hash of the voxels alone: a copy in another format or under another name has the same hash."""
    if array.ndim == 4 and (array.shape[3] == 1 or (array == array[..., :1]).all()):
        array = array[..., 0]  # a grey image that is stored in colour
    content = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    content.update(np.ascontiguousarray(array, dtype=np.float32).data)
    return content.digest()


def _spread(rows: Sequence[tuple[int | float, ...]]) -> Spread:
    """Return the smallest, the median and the largest value along each axis."""
    table = np.array(rows, dtype=float)
    return {
        "min": np.round(table.min(axis=0), 4).tolist(),
        "median": np.round(np.median(table, axis=0), 4).tolist(),
        "max": np.round(table.max(axis=0), 4).tolist(),
    }
