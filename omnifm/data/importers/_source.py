"""Reading a data set's own files: nothing outside its folder is touched, and one bad case stops nothing.

Messages count; they never repeat a name, a path or a text that was read.
"""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from omnifm.data.raster import SUFFIXES
from omnifm.data.refusal import RefusedImage

MAX_LEFT_OUT = 0.05
"""Share of entries or images that may be left out; a data set with more is not what the importer takes it for."""
MAX_JSON_BYTES = 256 * 2**20
MALFORMED = "malformed"
"""The reason, beside those of `refusal.REASONS`, for an entry that lacks a field or holds what it must not."""

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def inside(source: Path, text: str, what: str) -> Path:
    """The file that a data set's own list names.

    Args:
        source: the data set's folder.
        text: a path relative to it, as the list gives it.
        what: said in the message, e.g. "image of entry 17".

    Raises:
        ValueError: the path is absolute, holds "..", or leads out of the folder through a link.
    """
    relative = Path(text)
    plain = bool(text) and "\0" not in text and not relative.is_absolute() and ".." not in relative.parts
    try:
        if plain and (source / relative).resolve().is_relative_to(source.resolve()):
            return source / relative
    except (OSError, RuntimeError):  # a name too long, a circle of links
        pass
    raise ValueError(f"{what} must be a plain path inside the source's folder; it is not")


def pictures(source: Path, pattern: str = "*") -> list[Path]:
    """Every PNG, JPEG, TIFF or BMP below the source whose name fits the pattern, in the order of their paths."""
    named = (file for file in source.rglob(pattern) if file.suffix.lower() in SUFFIXES)
    found = sorted(file for file in named if file.is_file() and not file.name.startswith("."))  # "._a.jpg" of macOS
    return [inside(source, file.relative_to(source).as_posix(), "every picture") for file in found]


def read_entries(file: Path) -> list[Any]:
    """A JSON file that holds a list.

    Raises:
        ValueError: it does not.
    """
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{file.name} must be at most {MAX_JSON_BYTES} bytes; got {file.stat().st_size}")
        entries = json.loads(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        raise ValueError(f"{file.name} must be a JSON list; it is not")
    return entries


def readable(images: Sequence[T], key: Callable[[T], K], read: Callable[[T], object]) -> list[T]:
    """The cases whose images can be read, after reading each image once.

    Args:
        images: cases.
        key: what tells one case's images from another's; cases of the same key share one reading.
        read: reads a case's images, raising `RefusedImage`.

    Raises:
        ValueError: see `report_left_out`.
    """
    first = {key(case): case for case in reversed(images)}
    refused: dict[K, str] = {}
    for name, case in tqdm(first.items(), desc="reading images", unit="image", disable=None, leave=False):
        try:
            read(case)
        except RefusedImage as refusal:
            refused[name] = refusal.reason
    report_left_out("images", len(first), refused.values())
    return [case for case in images if key(case) not in refused]


def report_left_out(what: str, total: int, reasons: Iterable[str]) -> None:
    """Say what is left out and why, or stop if that is too much.

    Args:
        what: is counted, e.g. "images".
        total: how many there were.
        reasons: one for each that is left out.

    Raises:
        ValueError: more than `MAX_LEFT_OUT` of them (a single one is let pass), or all.
    """
    counts = Counter(reasons)
    number, allowed = counts.total(), max(MAX_LEFT_OUT * total, 1)
    said = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
    if total == 0 or number == total or number > allowed:
        rule = f"source must hold usable {what}, at most {MAX_LEFT_OUT:.0%} of them left out"
        raise ValueError(f"{rule}; got {total}, left out {number}" + (f" ({said})" if said else ""))
    if number:
        print(f"left out {number} of {total} {what}: {said}")
