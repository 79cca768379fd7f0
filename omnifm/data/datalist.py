"""A site's `dataset.json`: which cases it has and which of them teach, steer and judge.

What is wrong with the list stops the site with one line; what is wrong with one image is found by reading it.
"Item 17 of 'training'" counts from 0, in the file's order.  No message names a path or a patient.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from omnifm.data.items import IMAGE_KEYS, Item, ItemReader, check_burned_in, check_modality, file_of
from omnifm.data.partition import SHARES, split_by_patient

SPLITS = ("training", "validation", "test")
DEMO_NAME = "synthetic demo (not patients)"
"""A dataset of this name is the embedded demo; runs on it say so."""
MAX_JSON_BYTES = 256 * 2**20
# What the Medical Segmentation Decathlon writes beside the keys we use ("relase" is its own spelling).
NOTES = {"description", "reference", "licence", "license", "release", "relase", "tensorImageSize"}
DECATHLON_COUNTS = {"numTraining", "numValidation", "numTest"}
KEYS = {"name", "modality", "labels", "burned_in_text", *SPLITS, *NOTES, *DECATHLON_COUNTS}


@dataclass(frozen=True)
class Datalist:
    """A site's cases.

    Attributes:
        name: of the data set.
        modality: channel number -> DICOM code, e.g. {"0": "MR"}.
        labels: value -> meaning, values 0, 1, 2...; empty for tasks without labels.
        training, validation, test: items as in the file; files are absolute paths, "modality" is filled in,
            a class's name is its number, and "origin" is (list in the file, position in it counted from 0).
        root: the site's folder.
        source: "demo" for the embedded synthetic data.
    """

    name: str
    modality: dict[str, str]
    labels: dict[int, str]
    training: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]
    root: Path
    source: Literal["demo", "site"]

    def splits(self) -> dict[str, tuple[Item, ...]]:
        return {"training": self.training, "validation": self.validation, "test": self.test}


def read_datalist(
    path: Path | str, *, required: tuple[str, ...], allowed_roots: Sequence[Path] = (), seed: int = 0
) -> Datalist:
    """Read and check a site's list.  Files are not opened, and a missing one is not an error yet.

    Args:
        path: the site's folder, or the JSON file in it.
        required: keys every item must have, e.g. ("image", "label").
        allowed_roots: folders outside the site's own that its configuration permits.
        seed: of the split by patient that replaces missing (or empty) "validation" and "test".

    Raises:
        ValueError: the list breaks a rule; the message names thing, rule and value.
    """
    file = Path(path) / "dataset.json" if Path(path).is_dir() else Path(path)
    content = _load(file)
    root = file.parent.resolve()
    _check_keys(content)
    labels = _labels(content.get("labels", {}), needed="label" in required)
    roots = tuple(Path(allowed).resolve() for allowed in allowed_roots)
    burned_in_text = check_burned_in(content.get("burned_in_text", "unknown"), "'burned_in_text' in dataset.json")
    reader = ItemReader(root, roots, labels, content["modality"], burned_in_text, required)
    splits = {name: reader.read_all(name, content.get(name, [])) for name in SPLITS}
    _check_patients(splits)
    splits = _fill_splits(splits, root, seed)
    return Datalist(
        name=content["name"],
        modality=dict(content["modality"]),
        labels=labels,
        training=splits["training"],
        validation=splits["validation"],
        test=splits["test"],
        root=root,
        source="demo" if content["name"] == DEMO_NAME else "site",
    )


def owners(items: Sequence[Item], root: Path) -> list[str]:
    """Whom each item belongs to: its patient, or where none is given its own image(s), however often it is listed.

    Items that share a patient or an image have one owner, and so have those that others link: of the pairs (a, b) and
    (a, c) and the patient of c all are one.

    Args:
        items: of a site, as `read_datalist` returns them.
        root: the site's folder.

    Returns:
        of each item its group's name, equal within a group: that of the group's first item.
    """
    known: dict[object, int] = {}
    nearer = list(range(len(items)))  # an item of the same group that is not further down the list

    def first(position: int) -> int:
        while nearer[position] != position:
            nearer[position] = nearer[nearer[position]]
            position = nearer[position]
        return position

    for position, item in enumerate(items):
        for key in _keys(item):
            one, other = sorted((first(known.setdefault(key, position)), first(position)))
            nearer[other] = one
    return [_group(items[first(position)], root) for position in range(len(items))]


def fingerprint(datalist: Datalist) -> str:
    """SHA-256 over the list and its files' names, sizes and times: changes when an old check is stale."""
    digest = hashlib.sha256()
    head = [datalist.name, datalist.modality, sorted(datalist.labels.items())]
    digest.update(json.dumps(head, sort_keys=True).encode())
    for split, items in datalist.splits().items():
        for item in items:
            row = {key: _relative(value, datalist.root) for key, value in item.items()}
            digest.update(json.dumps([split, row], sort_keys=True, default=str).encode())
    for file in sorted(_files(datalist)):
        digest.update(json.dumps([_relative(file, datalist.root), _stamp(file)]).encode())
    return digest.hexdigest()


def _load(file: Path) -> dict[str, Any]:
    if not file.parent.is_dir():
        raise ValueError("a site's data must be a folder with dataset.json; the folder does not exist")
    if not file.is_file():
        raise ValueError("a site's folder must hold dataset.json; it does not")
    try:
        size = file.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ValueError(f"dataset.json must be at most {MAX_JSON_BYTES} bytes; got {size}")
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise ValueError(f"dataset.json must be JSON; {where}: {error.msg}") from None
    except UnicodeDecodeError:
        raise ValueError("dataset.json must be UTF-8 text; it is not") from None
    except RecursionError:
        raise ValueError("dataset.json must be a flat list of items; it is nested too deeply") from None
    except OSError as error:
        raise ValueError(f"dataset.json must be readable; got {type(error).__name__}") from None
    if not isinstance(content, dict):
        raise ValueError(f"dataset.json must be an object; got {type(content).__name__}")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):  # of two values one would be dropped unsaid; a key may be anything: not repeated
        raise ValueError("a key must stand once in an object of dataset.json; one stands twice")
    return content


def _check_keys(content: dict[str, Any]) -> None:
    missing = {"name", "modality", "training"} - content.keys()
    unknown = content.keys() - KEYS
    if missing or unknown:
        got = f"missing {sorted(missing)}, {len(unknown)} unknown"  # a stray key may be anything: it is not repeated
        raise ValueError(f"dataset.json must have name, modality, training and no unknown key; {got}")
    if not isinstance(content["name"], str) or not content["name"]:
        raise ValueError("'name' in dataset.json must be a text; it is not")
    modality = content["modality"]
    if not isinstance(modality, dict) or "0" not in modality:
        raise ValueError('\'modality\' in dataset.json must be an object like {"0": "MR"}; it is not')
    for code in modality.values():
        check_modality(code, "'modality' in dataset.json")
    for split in SPLITS:
        if not isinstance(content.get(split, []), list):
            raise ValueError(f"'{split}' in dataset.json must be a list; got {type(content[split]).__name__}")
    if not content["training"]:
        raise ValueError("'training' in dataset.json must hold at least one item; got 0")


def _labels(raw: object, *, needed: bool) -> dict[int, str]:
    if not isinstance(raw, dict) or not all(isinstance(meaning, str) for meaning in raw.values()):
        raise ValueError('\'labels\' in dataset.json must be an object like {"0": "background"}; it is not')
    if not raw and needed:
        raise ValueError("'labels' in dataset.json must name every label value; it is missing or empty")
    if sorted(raw) != sorted(str(value) for value in range(len(raw))):
        raise ValueError(f"keys of 'labels' must be '0', '1', ... without gaps; got {len(raw)} others")
    if len(set(raw.values())) < len(raw):
        raise ValueError(f"names in 'labels' must differ; got {len(set(raw.values()))} names for {len(raw)} values")
    return {value: raw[str(value)] for value in range(len(raw))}


def _group(item: Item, root: Path) -> str:
    """Whom an item belongs to: its patient, or where none is given its own image."""
    if "patient" in item:
        return f"patient {item['patient']}"
    images = [_relative(item[key], root) for key in IMAGE_KEYS if key in item]
    return f"image {images}" if images else f"item {item['origin']}"


def _keys(item: Item) -> list[object]:
    """What no other split may have too: the item's patient and its images."""
    patient = [f"patient {item['patient']}"] if "patient" in item else []
    return [*patient, *(item[key] for key in IMAGE_KEYS if key in item)]


def _check_patients(splits: dict[str, tuple[Item, ...]]) -> None:
    seen: dict[object, tuple[str, int]] = {}
    for item in (item for items in splits.values() for item in items):
        split, position = item["origin"]
        for key in _keys(item):
            first = seen.setdefault(key, (split, position))
            if first[0] != split:
                pair = f"item {first[1]} of '{first[0]}' and item {position} of '{split}'"
                raise ValueError(f"a patient (or image) must be in one split only; {pair} share one")


def _fill_splits(splits: dict[str, tuple[Item, ...]], root: Path, seed: int) -> dict[str, tuple[Item, ...]]:
    """Cut what is missing out of "training", whole patients and images at a time."""
    wanted = [name for name in SPLITS if name == "training" or not splits[name]]
    if len(wanted) == 1:
        return splits
    items = splits["training"]
    # With two patients and no split at all, a test is worth more than a validation.
    ranked = sorted(wanted, key=("training", "test", "validation").index)
    shares = [SHARES[SPLITS.index(name)] for name in ranked]
    parts = split_by_patient(owners(items, root), shares, seed)
    return splits | {name: tuple(items[i] for i in part) for name, part in zip(ranked, parts, strict=True)}


def _files(datalist: Datalist) -> set[Path]:
    values = (value for items in datalist.splits().values() for item in items for value in item.values())
    return {file_of(value) for value in values if isinstance(value, Path)}


def _relative(value: Any, root: Path) -> Any:
    if not isinstance(value, Path):
        return value
    return value.relative_to(root).as_posix() if value.is_relative_to(root) else str(value)


def _stamp(file: Path) -> list[Any]:
    """Size and time of a file, or of every file in a series folder; empty if it is not there."""
    try:
        if file.is_dir():
            return [[part.name, *_stamp(part)] for part in sorted(file.iterdir())]
        stat = file.stat()
        return [stat.st_size, stat.st_mtime_ns]
    except OSError:
        return []


def without(datalist: Datalist, refused: set[tuple[str, int]]) -> Datalist:
    """The same list without the items of these origins."""

    def kept(items: tuple[Item, ...]) -> tuple[Item, ...]:
        return tuple(item for item in items if item["origin"] not in refused)

    return replace(
        datalist,
        training=kept(datalist.training),
        validation=kept(datalist.validation),
        test=kept(datalist.test),
    )
