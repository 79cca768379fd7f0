"""Read the files of a data set.  Nothing outside its folder is read, and one unreadable case does not stop the import.

Messages give numbers only: they never repeat a name, a path or a text that was read from the data set.  Names of what
is left out are in `left-out.txt`, see `local_lists`.
"""

import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from tqdm import tqdm

from omnifm.data.importers._sites import Case
from omnifm.data.local_lists import LeftOut, in_words, write_left_out
from omnifm.data.raster import SUFFIXES
from omnifm.data.refusal import RefusedImage

MAX_LEFT_OUT = 0.05
"""Largest share of entries or images that may be left out.  With more, the source is probably another data set."""
MAX_JSON_BYTES = 256 * 2**20
MALFORMED = LeftOut("malformed")
"""An entry that lacks a field or has a wrong value, where entries have no names of their own."""


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


def readable(
    cases: Sequence[Case], key: Callable[[Case], Hashable], read: Callable[[Case], object], destination: Path
) -> list[Case]:
    """The cases whose images can be read, in their order.  Cases that are left out are counted and reported.

    Args:
        cases: all cases.
        key: identifies a case's images; cases with the same key share their images, which are read once.
        read: reads the images of a case; raises `RefusedImage` if it cannot.
        destination: as for `report_left_out`.

    Raises:
        ValueError: too many images cannot be read; see `report_left_out`.
    """
    first_with = {key(case): case for case in reversed(cases)}
    refused: dict[Hashable, LeftOut] = {}
    for name, case in tqdm(first_with.items(), desc="reading images", unit="image", disable=None, leave=False):
        try:
            read(case)
        except RefusedImage as refusal:
            files = " and ".join(map(str, case.files.values()))
            refused[name] = LeftOut(refusal.reason, files, str(refusal))
    report_left_out("images", len(first_with), sorted(refused.values()), destination)
    return [case for case in cases if key(case) not in refused]


def report_left_out(what: str, total: int, rows: Sequence[LeftOut], destination: Path) -> None:
    """Print how many things are left out, why and what to do, or stop if they are too many.

    Args:
        what: the things that are counted, e.g. "images".
        total: number of things found.
        rows: one for each thing that is left out.
        destination: folder for `left-out.txt`, which lists those that have a name.

    Raises:
        ValueError: nothing is left, or more than `MAX_LEFT_OUT` is left out (a single one is always allowed).
    """
    number = len(rows)
    if total == 0:
        raise ValueError(f"source must hold usable {what}; it holds none")
    write_left_out(destination, rows)
    if number == total or number > max(MAX_LEFT_OUT * total, 1):
        rule = f"source must hold usable {what}, at most {MAX_LEFT_OUT:.0%} of them left out"
        raise ValueError(f"{rule}; got {total}, left out {number}. {in_words(rows)}")
    if number:
        print(f"left out {number} of {total} {what}. {in_words(rows)}")
