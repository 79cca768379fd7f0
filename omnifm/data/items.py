"""One item of `dataset.json`: its fields are checked, and its files become absolute paths inside the site's folder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnifm.data.refusal import ONE_INPUT

IMAGE_KEYS = ("image", "image_a", "image_b")
MAX_CLASSES = 10_000
MODALITY = re.compile(r"[A-Z0-9_ ]{1,16}")
"""What a DICOM modality code looks like."""

Item = dict[str, Any]
"""A case: its keys depend on the task, and `datalist.Datalist` says which values they hold."""


@dataclass(frozen=True)
class ItemReader:
    """Reads the items of one site.  Every mistake is a `ValueError` that names the item, the rule and the value.

    Attributes:
        root: the site's folder, an absolute path without links.
        allowed_roots: other folders in which files may lie, in the same form.
        labels: label value -> name.
        modality: channel number -> DICOM code; channel "0" is the default of an item's "modality".
        burned_in_text: default of an item's "burned_in_text".
        required: keys that every item must have.
    """

    root: Path
    allowed_roots: tuple[Path, ...]
    labels: dict[int, str]
    modality: dict[str, str]
    burned_in_text: str | list[list[int]]
    required: tuple[str, ...]

    def read_all(self, split: str, raw: Sequence[object]) -> tuple[Item, ...]:
        """The checked items of one split.

        Raises:
            ValueError: an item breaks a rule.
        """
        return tuple(self._read(split, position, item) for position, item in enumerate(raw))

    def _read(self, split: str, position: int, raw: object) -> Item:
        where = f"item {position} of '{split}'"
        if not isinstance(raw, dict):
            raise ValueError(f"{where} must be an object; got {type(raw).__name__}")
        missing = [key for key in self.required if key not in raw]
        if missing:
            raise ValueError(f"{where} must have {', '.join(self.required)}; missing {', '.join(missing)}")
        defaults = {"modality": self.modality["0"], "burned_in_text": self.burned_in_text}
        item = {**defaults, **raw, "origin": (split, position)}
        check_burned_in(item["burned_in_text"], f"'burned_in_text' of {where}")
        for key in ("modality", "modality_a", "modality_b"):
            if key in item:
                check_modality(item[key], f"'{key}' of {where}")
        if "patient" in item:
            item["patient"] = self._patient(item["patient"], where)
        for key in IMAGE_KEYS:
            if key in item:
                item[key] = self._path(item[key], f"'{key}' of {where}")
        if "label" in item:
            item["label"] = self._label(item["label"], f"'label' of {where}")
        return item

    def _patient(self, patient: object, where: str) -> str:
        if isinstance(patient, bool) or not isinstance(patient, (str, int)) or patient == "":
            rule = "must be a text that is not empty, or a whole number"
            raise ValueError(f"'patient' of {where} {rule}; got {type(patient).__name__}")
        return str(patient)

    def _label(self, label: object, where: str) -> Path | int:
        """A class number; for the declared name of a class its number; else the path of a mask."""
        if isinstance(label, int) and not isinstance(label, bool):
            # A class may have no name: federations number their classes together, and a site may name only some.
            if not 0 <= label < MAX_CLASSES:
                raise ValueError(f"{where} must be a class number, 0 to {MAX_CLASSES - 1}; got {label}")
            return label
        if isinstance(label, str) and label in self.labels.values():
            return next(number for number, name in self.labels.items() if name == label)
        return self._path(label, where)

    def _path(self, text: object, where: str) -> Path:
        if isinstance(text, list):
            raise ValueError(f"{where} must be the path of one file; got a list: {ONE_INPUT}")
        if not isinstance(text, str):
            raise ValueError(f"{where} must be the path of a file; got {type(text).__name__}")
        if not text or "\0" in text:
            raise ValueError(f"{where} must be the path of a file; it is empty or holds a NUL character")
        relative = Path(text)
        try:
            resolved = (self.root / file_of(relative)).resolve()
        except (OSError, RuntimeError):  # the name is too long, or links form a circle
            raise ValueError(
                f"{where} must be a path this system can follow; it is too long or its links form a circle"
            ) from None
        is_plain = not relative.is_absolute() and ".." not in relative.parts
        is_inside = is_plain and resolved.is_relative_to(self.root)
        if not is_inside and not any(resolved.is_relative_to(root) for root in self.allowed_roots):
            kind = "an absolute path" if relative.is_absolute() else "'..' or a link"
            raise ValueError(f"{where} must be a plain path inside the site's folder; got {kind}")
        return resolved.with_name(resolved.name + index_of(relative))


def check_modality(code: object, where: str) -> None:
    """Refuse what is no DICOM modality code.  Modalities travel to the server, and free text may name a patient.

    Raises:
        ValueError: the message begins with `where`.

    >>> check_modality("MR", "'modality' in dataset.json")
    """
    if not isinstance(code, str) or not MODALITY.fullmatch(code):
        rule = "must be a DICOM code such as MR (capital letters, digits, at most 16 characters)"
        raise ValueError(f"{where} {rule}; it is not: for every sequence of MR (T1w, T2w, FLAIR) write MR")


def check_burned_in(value: object, where: str) -> str | list[list[int]]:
    """Return the value if it is "unknown", "none" or a list of boxes [left, top, right, bottom] in pixels.

    Raises:
        ValueError: it is something else; the message begins with `where`.

    >>> check_burned_in([[0, 0, 120, 16]], "'burned_in_text' of item 0 of 'training'")
    [[0, 0, 120, 16]]
    """
    if isinstance(value, str) and value in ("unknown", "none"):
        return value
    if isinstance(value, list) and value and all(_is_box(box) for box in value):
        return value
    rule = "must be 'unknown', 'none' or a list of boxes [left, top, right, bottom] in pixels"
    raise ValueError(f"{where} {rule}; it is not")


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(type(n) is int and n >= 0 for n in value)


def index_of(path: Path) -> str:
    """The index of an image in an npz file, with its mark; "" for any other path.

    >>> index_of(Path("images.npz#7"))
    '#7'
    """
    name, mark, index = path.name.rpartition("#")
    return f"#{index}" if mark and name.lower().endswith(".npz") else ""


def file_of(path: Path) -> Path:
    """The file on disk that holds an image: its path without the index in an npz file.

    >>> file_of(Path("site/images.npz#7")).name
    'images.npz'
    """
    return path.with_name(path.name.removesuffix(index_of(path))) if index_of(path) else path
