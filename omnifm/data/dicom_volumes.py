"""Several volumes in one series: over echoes, diffusion weightings or time.  One of them can be chosen.

Slices are grouped by place.  Every place must hold the same number of slices.  At each place they are ordered by b
value, echo, temporal position, acquisition and instance; volume k is the k-th slice of every place.  Within a volume,
b value, echo and temporal position must be equal.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from omnifm.data.dicom_file import text
from omnifm.data.dicom_geometry import SAME_PLACE_MM, in_plane, is_section
from omnifm.data.dicom_kinds import B_VALUE, all_equal, check_one_kind
from omnifm.data.dicom_slices import Slice
from omnifm.data.refusal import RefusedImage

FIRST = "first"
NAMES = ("b", "echo", "time")
CHOICE = re.compile(r"(b|echo|time)=(\d+(?:\.\d+)?)")
ORDERED_BY = (B_VALUE, "EchoNumbers", "EchoTime", "EffectiveEchoTime", "TemporalPositionIdentifier")
TIMES = ("TemporalPositionIdentifier", "TemporalPositionIndex")
EQUAL_WITHIN = (*ORDERED_BY, "TemporalPositionIndex")
MAY_DIFFER = frozenset({*EQUAL_WITHIN, "DimensionIndexValues"})
"""What volumes of one series may differ in; volumes of different kinds, e.g. magnitude and phase, are not listed."""
SHOWN = 12
"""Volumes of a series that a message lists one by one."""


class Part(NamedTuple):
    """One volume of a series.

    Attributes:
        names: what tells it from the others: some of "b" (s/mm2), "echo" and "time" (both counted from 1).
        slices: one at each place.
    """

    names: dict[str, float]
    slices: list[Slice]

    def __str__(self) -> str:
        return " ".join(f"{name}={value:g}" for name, value in self.names.items())


def check_choice(choice: str) -> None:
    """Refuse a choice of a volume that is not written as one.

    Raises:
        ValueError: it is not "first", and not like "b=1000", "echo=2", "time=3" or "b=1000 time=2".

    >>> check_choice("b=1000 time=2")
    """
    if choice not in ("", FIRST) and not all(CHOICE.fullmatch(part) for part in re.split(r"[ ,]+", choice)):
        rule = "volume must be first, b=NUMBER, echo=NUMBER or time=NUMBER"
        raise ValueError(f"{rule}, or several of these with a blank between them; got {choice!r}")


def one_volume(slices: list[Slice], choice: str) -> list[Slice]:
    """The slices of the chosen volume.

    Args:
        slices: of one series.
        choice: as in `check_choice`; "" accepts a series of one volume only.

    Raises:
        RefusedImage: `several_volumes` or `duplicate_slices`: there are several and none is chosen, the choice fits
            none or more than one, or the slices cannot be assigned to volumes.
    """
    places = _places(slices)
    if not places or max(map(len, places)) == 1:
        if choice not in ("", FIRST) and not _fits(_parsed(choice), _own_names(slices)):
            raise RefusedImage("several_volumes", f"the chosen volume must be there; this series is one, not {choice}")
        return slices
    parts = _parts(places)
    if not choice:
        raise RefusedImage("several_volumes", f"this series holds {_listed(parts)}. Choose one with --volume")
    found = parts[:1] if choice == FIRST else [part for part in parts if _fits(_parsed(choice), part.names)]
    if len(found) != 1:
        rule = f"--volume {choice} must choose one volume; it fits {len(found)}"
        raise RefusedImage("several_volumes", f"{rule}: this series holds {_listed(parts)}")
    return found[0].slices


def count_places(slices: list[Slice]) -> int:
    """Number of different places of slices; slices without a place count one each."""
    return len(_places(slices)) or len(slices)


def _places(slices: list[Slice]) -> list[list[Slice]]:
    """The slices at each place; empty if they have none, or no common orientation."""
    if len(slices) < 2 or not all(map(is_section, slices)):
        return []
    try:
        row, column = in_plane(slices)
    except RefusedImage:  # `placed` refuses them with a better word
        return []
    heights = np.array([piece.position_mm for piece in slices]) @ np.cross(row, column)
    order = np.argsort(heights, kind="stable")
    starts = np.flatnonzero(np.diff(heights[order], prepend=-np.inf) > SAME_PLACE_MM)
    return [[slices[index] for index in group] for group in np.split(order, starts[1:])]


def _parts(places: list[list[Slice]]) -> list[Part]:
    counts = [len(place) for place in places]
    slices = [piece for place in places for piece in place]
    got = f"got {len(slices)} slices at {len(places)} {'place' if len(places) == 1 else 'places'}"
    identities = {(text(piece.file.header, "SOPInstanceUID"), piece.frame) for piece in slices}
    if len(identities) < len(slices) or np.mean(np.array(counts) > 1) <= 0.5:
        raise RefusedImage("duplicate_slices", f"every slice must lie at a place of its own; {got}")
    if len(places) == 1:
        raise RefusedImage("several_volumes", f"a series must be one volume; {got}: it is one slice over time")
    if len(set(counts)) > 1:
        rule = f"every volume of a series must have all its slices; {got}, {min(counts)} to {max(counts)} at each"
        raise RefusedImage("several_volumes", f"{rule}: some are missing, export the whole series again")
    check_one_kind([{fact: piece.facts[fact] for fact in piece.facts.keys() - MAY_DIFFER} for piece in slices])
    ordered = [sorted(place, key=_order) for place in places]
    if any(_order(one) == _order(other) for place in ordered for one, other in pairwise(place)):
        rule = f"slices at one place must differ in echo, b value, time or number; {got}"
        raise RefusedImage("several_volumes", f"{rule}: split the series into one folder for each volume")
    volumes = [list(volume) for volume in zip(*ordered, strict=True)]
    for volume in volumes:
        _check_within(volume, got)
    return _named(volumes)


def _order(piece: Slice) -> tuple[float, ...]:
    return (*(_number(piece, fact) for fact in EQUAL_WITHIN), *piece.order)


def _number(piece: Slice, fact: str) -> float:
    try:
        return float(piece.facts[fact])
    except ValueError:
        return -1.0


def _check_within(volume: list[Slice], got: str) -> None:
    for fact in EQUAL_WITHIN:
        values = {piece.facts[fact] for piece in volume}
        if len(values) > 1 and not all_equal(values):
            rule = f"the slices of each volume of a series must agree in {fact}; {got}, and they do not"
            raise RefusedImage("several_volumes", f"{rule}: some are missing, export the whole series again")


def _named(volumes: list[list[Slice]]) -> list[Part]:
    """The volumes with what tells them apart; the time counts among those of one b value and echo."""
    weights = [_number(volume[0], B_VALUE) for volume in volumes]
    echoes = _ranks([_echo(volume[0]) for volume in volumes])
    pairs = list(zip(weights, echoes, strict=True))
    times = [_time(volume[0]) for volume in volumes]
    if len(set(zip(pairs, times, strict=True))) < len(volumes) or -1 in times:
        times = [float(1 + pairs[:index].count(pair)) for index, pair in enumerate(pairs)]
    parts = []
    for volume, weight, echo, time in zip(volumes, weights, echoes, times, strict=True):
        names = {"b": weight, "echo": echo, "time": time}
        shown = {"b": len(set(weights)) > 1, "echo": len(set(echoes)) > 1, "time": len(set(pairs)) < len(pairs)}
        parts.append(Part({name: names[name] for name in NAMES if shown[name] and names[name] >= 0}, volume))
    return parts


def _own_names(slices: list[Slice]) -> dict[str, float]:
    """The names of the only volume of a series, as far as its headers say them."""
    first = slices[0]
    found = {"b": _number(first, B_VALUE), "echo": _number(first, "EchoNumbers"), "time": _time(first)}
    return {name: value for name, value in found.items() if value >= 0}


def _echo(piece: Slice) -> float:
    return max(_number(piece, "EchoTime"), _number(piece, "EffectiveEchoTime"), -1.0)


def _time(piece: Slice) -> float:
    return max(_number(piece, fact) for fact in TIMES)


def _ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest value, 2 for the next, and so on."""
    order = sorted(set(values))
    return [float(1 + order.index(value)) for value in values]


def _parsed(choice: str) -> dict[str, float]:
    return {name: float(value) for name, value in CHOICE.findall(choice)}


def _fits(wanted: dict[str, float], names: dict[str, float]) -> bool:
    return all(names.get(name) == value for name, value in wanted.items())


def _listed(parts: list[Part]) -> str:
    shown = [str(part) for part in parts]
    if len(shown) > SHOWN:
        counts = Counter(re.sub(r" ?time=.*", "", name) for name in shown)
        shown = [f"{name} time=1 to {number}".strip() if number > 1 else name for name, number in counts.items()]
    if len(shown) > SHOWN:
        shown = [*shown[:SHOWN], f"and {len(shown) - SHOWN} more"]
    return f"{len(parts)} volumes: {', '.join(shown)}"
