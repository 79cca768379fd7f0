"""Read the files of a data set.  Nothing outside its folder is read, and one unreadable case does not stop the import.

Messages give numbers only: they never repeat a name, a path or a text that was read from the data set.
"""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from omnifm.data.raster import SUFFIXES
from omnifm.data.refusal import RefusedImage

MAX_LEFT_OUT = 0.05
"""Largest share of entries or images that may be left out.  With more, the source is probably another data set."""
MAX_JSON_BYTES = 256 * 2**20
MALFORMED = "malformed"
"""Reason for leaving out an entry that lacks a field or has a wrong value (other reasons: `refusal.REASONS`)."""

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def inside(source: Path, text: str, what: str) -> Path:
    """The path of a file that the data set names, if it lies inside the data set's folder.

    Args:
        source: the data set's folder.
        text: a path relative to `source`, as the data set gives it.
        what: the thing that has this path, for the message, e.g. "image of entry 17".

    Raises:
        ValueError: the path is empty or absolute, contains "..", or leads out of the folder through a link.
    """
    relative = Path(text)
    is_plain = bool(text) and "\0" not in text and not relative.is_absolute() and ".." not in relative.parts
    try:
        if is_plain and (source / relative).resolve().is_relative_to(source.resolve()):
            return source / relative
    except (OSError, RuntimeError):  # the name is too long, or links form a circle
        pass
    raise ValueError(f"{what} must be a plain path inside the source's folder; it is not")


def pictures(source: Path, pattern: str = "*") -> list[Path]:
    """All PNG, JPEG, TIFF and BMP files below `source` whose name matches `pattern`, sorted by path.

    Hidden files are skipped, for example the "._a.jpg" that macOS leaves beside "a.jpg".

    Raises:
        ValueError: a file leads out of the source through a link.
    """
    candidates = (file for file in source.rglob(pattern) if file.suffix.lower() in SUFFIXES)
    found = sorted(file for file in candidates if file.is_file() and not file.name.startswith("."))
    return [inside(source, file.relative_to(source).as_posix(), "every picture") for file in found]


def read_entries(file: Path) -> list[object]:
    """The entries of a JSON file that holds one list; the entries themselves are not checked.

    Raises:
        ValueError: the file is larger than `MAX_JSON_BYTES`, or does not hold a JSON list.
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


def readable(cases: Sequence[T], key: Callable[[T], K], read: Callable[[T], object]) -> list[T]:
    """The cases whose images can be read, in their order.  Cases that are left out are counted and reported.

    Args:
        cases: all cases.
        key: identifies a case's images; cases with the same key share their images, which are read once.
        read: reads the images of a case; raises `RefusedImage` if it cannot.

    Raises:
        ValueError: too many images cannot be read; see `report_left_out`.
    """
    first_with = {key(case): case for case in reversed(cases)}
    refused: dict[K, str] = {}
    for name, case in tqdm(first_with.items(), desc="reading images", unit="image", disable=None, leave=False):
        try:
            read(case)
        except RefusedImage as refusal:
            refused[name] = refusal.reason
    report_left_out("images", len(first_with), refused.values())
    return [case for case in cases if key(case) not in refused]


def report_left_out(what: str, total: int, reasons: Iterable[str]) -> None:
    """Print how many things are left out and why, or stop if they are too many.

    Args:
        what: the things that are counted, e.g. "images".
        total: number of things found.
        reasons: one reason per thing that is left out.

    Raises:
        ValueError: nothing is left, or more than `MAX_LEFT_OUT` is left out (a single one is always allowed).
    """
    counts = Counter(reasons)
    number = counts.total()
    allowed = max(MAX_LEFT_OUT * total, 1)
    by_reason = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
    if total == 0 or number == total or number > allowed:
        rule = f"source must hold usable {what}, at most {MAX_LEFT_OUT:.0%} of them left out"
        detail = f" ({by_reason})" if by_reason else ""
        raise ValueError(f"{rule}; got {total}, left out {number}{detail}")
    if number:
        print(f"left out {number} of {total} {what}: {by_reason}")
