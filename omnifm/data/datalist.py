"""A site's `dataset.json`: the list of its cases, split into training, validation and test.

A mistake in the list stops the site with one message.  A mistake in an image is found later, when it is read.
Messages call an item "item 17 of 'training'": positions count from 0 in the order of the file.  No message names a path
or a patient.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from scipy.cluster.hierarchy import DisjointSet

from omnifm.data.items import IMAGE_KEYS, Item, ItemReader, check_burned_in, check_modality, file_of
from omnifm.data.partition import split_of

SPLITS = ("training", "validation", "test")
DEMO_NAME = "synthetic demo (not patients)"
"""A data set of this name is the demo that comes with the package.  Reports of its runs say that it is no real data."""
MAX_JSON_BYTES = 256 * 2**20
# The Medical Segmentation Decathlon writes these keys beside those we use ("relase" is its own spelling).
NOTES = {"description", "reference", "licence", "license", "release", "relase", "tensorImageSize"}
DECATHLON_COUNTS = {"numTraining", "numValidation", "numTest"}
KEYS = {"name", "modality", "labels", "burned_in_text", *SPLITS, *NOTES, *DECATHLON_COUNTS}


@dataclass(frozen=True)
class Datalist:
    """A site's cases.

    Attributes:
        name: name of the data set.
        modality: channel number -> DICOM code, e.g. {"0": "MR"}.
        labels: label value -> meaning, with values 0, 1, 2...; empty for tasks without labels.
        training, validation, test: the items of the file, with these changes: files are absolute paths, "modality" is
            filled in, the name of a class is replaced by its number, and "origin" says where the item stands: (split in
            the file, position in that split counted from 0).
        root: the site's folder.
        source: "demo" for the synthetic demo data, "site" for a hospital's own.
        automatic: the splits among which patients are divided, because the file leaves some of them to us; empty if it
            has all three.  Such a split may be empty at a small site, until `splits.settle` fills it.
    """

    name: str
    modality: dict[str, str]
    labels: dict[int, str]
    training: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]
    root: Path
    source: Literal["demo", "site"]
    automatic: tuple[str, ...] = ()

    def splits(self) -> dict[str, tuple[Item, ...]]:
        """The items by the name of their split."""
        return {"training": self.training, "validation": self.validation, "test": self.test}


def read_datalist(
    path: Path | str, *, required: tuple[str, ...], allowed_roots: Sequence[Path] = (), seed: int = 0
) -> Datalist:
    """Read and check a site's list.  Image files are not opened, and a missing one is no error here.

    Args:
        path: the site's folder, or the JSON file in it.
        required: keys that every item must have, e.g. ("image", "label").
        allowed_roots: folders outside the site's own from which its configuration allows files.
        seed: seed of the hash that divides the patients, where "validation" or "test" is missing or empty.  A patient's
            split depends on nothing else, see `partition.split_of`.

    Raises:
        ValueError: the list breaks a rule; the message names the thing, the rule and the value.
    """
    file = Path(path) / "dataset.json" if Path(path).is_dir() else Path(path)
    content = _load(file)
    root = file.parent.resolve()
    _check_keys(content)
    name = _name(content["name"])
    modality = _modality(content["modality"])
    raw = {split: _raw_items(content.get(split, []), split) for split in SPLITS}
    if not raw["training"]:
        raise ValueError("'training' in dataset.json must hold at least one item; got 0")
    labels = _labels(content.get("labels", {}), needed="label" in required)
    roots = tuple(Path(allowed).resolve() for allowed in allowed_roots)
    burned_in_text = check_burned_in(content.get("burned_in_text", "unknown"), "'burned_in_text' in dataset.json")
    reader = ItemReader(root, roots, labels, modality, burned_in_text, required)
    splits = {split: reader.read_all(split, items) for split, items in raw.items()}
    _check_patients(splits)
    source: Literal["demo", "site"] = "demo" if name == DEMO_NAME else "site"
    wanted = tuple(split for split in SPLITS if split == "training" or not splits[split])
    automatic = wanted if len(wanted) > 1 else ()
    if automatic:
        splits |= _divided(splits["training"], root, automatic, seed)
    return Datalist(name, modality, labels, **splits, root=root, source=source, automatic=automatic)


def without(datalist: Datalist, refused: set[tuple[str, int]]) -> Datalist:
    """The same list without the items of these origins, each (split, position) as in `Datalist`."""
    kept = {
        split: tuple(item for item in items if item["origin"] not in refused)
        for split, items in datalist.splits().items()
    }
    return replace(datalist, training=kept["training"], validation=kept["validation"], test=kept["test"])


def owners(items: Sequence[Item], root: Path) -> list[str]:
    """The group of each item.  Items that share a patient or an image are in one group, directly or through others.

    With the pairs of images (a, b) and (a, c), and c of a named patient, all of them are one group.

    Args:
        items: items of a site, as `read_datalist` returns them.
        root: the site's folder.

    Returns:
        the name of each item's group, which is made from the patient or the images of the group's first item.
    """
    names = [""] * len(items)
    for group in groups(items, root):
        for position in group.positions:
            names[position] = _own_name(items[min(group.positions)], root)
    return names


class Group(NamedTuple):
    """Items that must stay in one split, because they share a patient or an image, directly or through others.

    Attributes:
        name: the first of its patients in alphabetical order, or of its images if it has no patient.
        patients: names of its patients.
        images: its images, relative to the site's folder where they lie in it.
        positions: of its items.
    """

    name: str
    patients: tuple[str, ...]
    images: tuple[str, ...]
    positions: tuple[int, ...]


def groups(items: Sequence[Item], root: Path) -> list[Group]:
    """The groups of a site's items; the order of the items has no influence on their names.

    Args:
        items: as `read_datalist` returns them.
        root: the site's folder.
    """
    sets = DisjointSet(range(len(items)))
    first_with: dict[object, int] = {}
    for position, item in enumerate(items):
        for key in _patient_and_images(item):
            sets.merge(position, first_with.setdefault(key, position))
    return [_group(items, sorted(positions), root) for positions in sets.subsets()]


def _group(items: Sequence[Item], positions: Sequence[int], root: Path) -> Group:
    own = [items[position] for position in positions]
    patients = sorted({item["patient"] for item in own if "patient" in item})
    images = sorted({str(_relative(item[key], root)) for item in own for key in IMAGE_KEYS if key in item})
    name = next(iter([*patients, *images]), f"item {own[0]['origin']}")
    return Group(name, tuple(patients), tuple(images), tuple(positions))


def fingerprint(datalist: Datalist) -> str:
    """SHA-256 of the list and of the names, sizes and times of its files.

    An earlier check of the data still holds if and only if the fingerprint is unchanged.
    """
    digest = hashlib.sha256()
    head: list[object] = [datalist.name, datalist.modality, sorted(datalist.labels.items())]
    digest.update(json.dumps(head, sort_keys=True).encode())
    for split, items in datalist.splits().items():
        for item in items:
            row = {key: _relative(value, datalist.root) for key, value in item.items()}
            digest.update(json.dumps([split, row], sort_keys=True, default=str).encode())
    for file in sorted(_files(datalist)):
        digest.update(json.dumps([_relative(file, datalist.root), _size_and_time(file)]).encode())
    return digest.hexdigest()


def _load(file: Path) -> dict[str, object]:
    if not file.parent.is_dir():
        raise ValueError("a site's data must be a folder with dataset.json; the folder does not exist")
    if not file.is_file():
        raise ValueError("a site's folder must hold dataset.json; it does not")
    try:
        size = file.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ValueError(f"dataset.json must be at most {MAX_JSON_BYTES} bytes; got {size}")
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_reject_duplicate_keys)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise ValueError(f"dataset.json must be JSON; {where}: {error.msg}") from None
    except UnicodeDecodeError:
        raise ValueError("dataset.json must be UTF-8 text; it is not: save it again with this encoding") from None
    except RecursionError:
        raise ValueError("dataset.json must be a flat list of items; it is nested too deeply") from None
    except OSError as error:
        raise ValueError(f"dataset.json must be readable; got {type(error).__name__}") from None
    if not isinstance(content, dict):
        raise ValueError(f"dataset.json must be an object; got {type(content).__name__}")
    return content


def _reject_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(
        pairs
    ):  # json would silently keep the last value; the key may be anything, so it is not shown
        raise ValueError("a key must appear only once in an object of dataset.json; one appears twice: delete one")
    return content


def _check_keys(content: Mapping[str, object]) -> None:
    missing = {"name", "modality", "training"} - content.keys()
    unknown = content.keys() - KEYS
    if missing or unknown:
        # An unknown key may be anything, even a name: the message only counts them.
        got = f"missing {', '.join(sorted(missing)) or 'none'}, {len(unknown)} unknown"
        raise ValueError(f"dataset.json must have name, modality, training and no unknown key; {got}")


def _name(raw: object) -> str:
    if not isinstance(raw, str) or not raw:
        raise ValueError("'name' in dataset.json must be a text that is not empty; it is not")
    return raw


def _modality(raw: object) -> dict[str, str]:
    if not isinstance(raw, dict) or "0" not in raw:
        raise ValueError('\'modality\' in dataset.json must be an object like {"0": "MR"}; it is not')
    for code in raw.values():
        check_modality(code, "'modality' in dataset.json")
    return dict(raw)


def _raw_items(raw: object, split: str) -> list[object]:
    if not isinstance(raw, list):
        raise ValueError(f"'{split}' in dataset.json must be a list; got {type(raw).__name__}")
    return raw


def _labels(raw: object, *, needed: bool) -> dict[int, str]:
    if not isinstance(raw, dict) or not all(isinstance(meaning, str) for meaning in raw.values()):
        raise ValueError('\'labels\' in dataset.json must be an object like {"0": "background"}; it is not')
    if not raw and needed:
        raise ValueError("'labels' in dataset.json must name every label value; it is missing or empty")
    if sorted(raw) != sorted(str(value) for value in range(len(raw))):
        raise ValueError(f"'labels' must have the keys '0', '1', ... without gaps; its {len(raw)} keys are others")
    if len(set(raw.values())) < len(raw):
        raise ValueError(f"names in 'labels' must differ; got {len(set(raw.values()))} names for {len(raw)} values")
    return {value: raw[str(value)] for value in range(len(raw))}


def _own_name(item: Item, root: Path) -> str:
    """A name made from the item's patient, or else from its images."""
    if "patient" in item:
        return f"patient {item['patient']}"
    images = [_relative(item[key], root) for key in IMAGE_KEYS if key in item]
    return f"image {images}" if images else f"item {item['origin']}"


def _patient_and_images(item: Item) -> list[object]:
    """What an item must not share with an item of another split."""
    patient = [f"patient {item['patient']}"] if "patient" in item else []
    return [*patient, *(item[key] for key in IMAGE_KEYS if key in item)]


def _check_patients(splits: Mapping[str, tuple[Item, ...]]) -> None:
    seen: dict[object, tuple[str, int]] = {}
    for item in (item for items in splits.values() for item in items):
        split, position = item["origin"]
        for key in _patient_and_images(item):
            first = seen.setdefault(key, (split, position))
            if first[0] != split:
                pair = f"item {first[1]} of '{first[0]}' and item {position} of '{split}'"
                raise ValueError(f"a patient (or image) must be in one split only; {pair} share one")


def _divided(items: Sequence[Item], root: Path, wanted: Sequence[str], seed: int) -> dict[str, tuple[Item, ...]]:
    """Divide items among splits, all items of a patient or an image together."""
    split_of_item = [""] * len(items)
    for group in groups(items, root):
        for position in group.positions:
            split_of_item[position] = split_of(group.name, seed, wanted)
    pairs = list(zip(items, split_of_item, strict=True))
    return {split: tuple(item for item, own in pairs if own == split) for split in wanted}


def _files(datalist: Datalist) -> set[Path]:
    values = (value for items in datalist.splits().values() for item in items for value in item.values())
    return {file_of(value) for value in values if isinstance(value, Path)}


def _relative(value: object, root: Path) -> object:
    """A path as text, relative to the root where it lies below it; any other value unchanged."""
    if not isinstance(value, Path):
        return value
    return value.relative_to(root).as_posix() if value.is_relative_to(root) else str(value)


def _size_and_time(file: Path) -> list[object]:
    """Size and time of a file, or of every file in a series folder; empty if it does not exist."""
    try:
        if file.is_dir():
            return [[part.name, *_size_and_time(part)] for part in sorted(file.iterdir())]
        stat = file.stat()
        return [stat.st_size, stat.st_mtime_ns]
    except OSError:
        return []
