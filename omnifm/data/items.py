"""One item of `dataset.json`: its files made absolute and kept inside the site's folder, its fields checked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGE_KEYS = ("image", "image_a", "image_b")
MAX_CLASSES = 10_000
MODALITY = re.compile(r"[A-Z0-9_ ]{1,16}")

Item = dict[str, Any]


@dataclass(frozen=True)
class ItemReader:
    """Reads the items of one site; every refusal is a `ValueError` naming item, rule and value."""

    root: Path
    allowed_roots: tuple[Path, ...]
    labels: dict[int, str]
    modality: dict[str, str]
    burned_in_text: Any
    required: tuple[str, ...]

    def read_all(self, split: str, raw: Sequence[object]) -> tuple[Item, ...]:
        return tuple(self._read(split, position, item) for position, item in enumerate(raw))

    def _read(self, split: str, position: int, raw: object) -> Item:
        where = f"item {position} of '{split}'"
        if not isinstance(raw, dict):
            raise ValueError(f"{where} must be an object; got {type(raw).__name__}")
        missing = [key for key in self.required if key not in raw]
        if missing:
            raise ValueError(f"{where} must have {list(self.required)}; missing {missing}")
        said = {"modality": self.modality["0"], "burned_in_text": self.burned_in_text}
        item = {**said, **raw, "origin": (split, position)}
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
            raise ValueError(f"'patient' of {where} must be a text or a number; got {type(patient).__name__}")
        return str(patient)

    def _label(self, label: object, where: str) -> Path | int:
        """A class number, that of a declared class name, or else the path of a mask."""
        if isinstance(label, int) and not isinstance(label, bool):
            # A class may lack its name: real federations number their classes together and name only some.
            if not 0 <= label < MAX_CLASSES:
                raise ValueError(f"{where} must be a class number, 0 to {MAX_CLASSES - 1}; got {label}")
            return label
        if isinstance(label, str) and label in self.labels.values():
            return next(number for number, name in self.labels.items() if name == label)
        return self._path(label, where)

    def _path(self, text: object, where: str) -> Path:
        if not isinstance(text, str):
            raise ValueError(f"{where} must be the path of a file; got {type(text).__name__}")
        if not text or "\0" in text:
            raise ValueError(f"{where} must be the path of a file; it is empty or holds a NUL")
        relative = Path(text)
        try:
            resolved = (self.root / file_of(relative)).resolve()
        except (OSError, RuntimeError):  # a name too long, a circle of links
            raise ValueError(f"{where} must be a path this system can follow; it is not") from None
        plain = not relative.is_absolute() and ".." not in relative.parts
        at_home = plain and resolved.is_relative_to(self.root)
        if not at_home and not any(resolved.is_relative_to(root) for root in self.allowed_roots):
            kind = "an absolute path" if relative.is_absolute() else "'..' or a link"
            raise ValueError(f"{where} must be a plain path inside the site's folder; got {kind}")
        return resolved.with_name(resolved.name + index_of(relative))


def check_modality(code: object, where: str) -> None:
    """Refuse what is no DICOM code: modalities travel to the server, and free text may name a patient."""
    if not isinstance(code, str) or not MODALITY.fullmatch(code):
        raise ValueError(f"{where} must be a DICOM code such as MR (capitals, digits, at most 16); it is not")


def check_burned_in(said: object, where: str) -> Any:
    """Refuse what is not "unknown", "none" or a list of boxes [left, top, right, bottom] in pixels; return it."""
    boxes = said if isinstance(said, list) and said else [None]
    is_box = [isinstance(box, list) and len(box) == 4 and all(type(n) is int and n >= 0 for n in box) for box in boxes]
    if said not in ("unknown", "none") and not all(is_box):
        raise ValueError(f"{where} must be 'unknown', 'none' or a list of [left, top, right, bottom]; it is not")
    return said


def index_of(path: Path) -> str:
    """The "#7" of "images.npz#7", else nothing."""
    name, mark, index = path.name.rpartition("#")
    return f"#{index}" if mark and name.lower().endswith(".npz") else ""


def file_of(path: Path) -> Path:
    """The file on disk behind an image's path: without the "#7" of an npz."""
    return path.with_name(path.name.removesuffix(index_of(path))) if index_of(path) else path
