"""Cases that cannot be used are refused with a reason, and the run continues without them."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from omnifm.data.datalist import Datalist, without
from omnifm.data.items import Item
from omnifm.data.refusal import RefusedImage
from omnifm.state import write_atomic

SMALL = 20
"""With fewer cases than this, one refusal is more than 5 % and would always stop the site: one is allowed."""


@dataclass(frozen=True)
class Refusal:
    """One refused case.

    Attributes:
        split: list in dataset.json that holds the case ("training", ...).
        position: in that list, counted from 0.
        reason: a key of `refusal.REASONS`.
        message: one line for the site's own staff, without the name of a patient and without a path.
    """

    split: str
    position: int
    reason: str
    message: str


class TooManyRefused(ValueError):
    """Too many cases were refused, so that the site cannot train; `refusals` says which and why."""

    def __init__(self, message: str, refusals: tuple[Refusal, ...]) -> None:
        super().__init__(message)
        self.refusals = refusals


def check_cases(
    datalist: Datalist, read: Callable[[Item], object], max_refused_fraction: float = 0.05
) -> tuple[Datalist, tuple[Refusal, ...]]:
    """Read every case once and leave out those that are refused.

    Args:
        datalist: of the site.
        read: reads one item as the task will, and raises `RefusedImage` if it cannot; its result is not used.
        max_refused_fraction: largest share of all cases that may be refused, in [0, 1].  If more are refused, the
            site cannot train.  Exception: one refusal among fewer than 20 cases is always allowed, unless this is 0.

    Returns:
        the datalist without the refused cases, and the refusals.

    Raises:
        ValueError: the fraction is out of range.
        TooManyRefused: more cases were refused than allowed, or no training case is left.
    """
    if not 0 <= max_refused_fraction <= 1:
        raise ValueError(f"max_refused_fraction must be in [0, 1]; got {max_refused_fraction}")
    items = [item for split in datalist.splits().values() for item in split]
    refusals = tuple(refusal for item in items if (refusal := _refusal_of(item, read)) is not None)
    allowed = max_refused_fraction * len(items) + 1e-9
    if len(items) < SMALL and max_refused_fraction > 0:
        allowed = max(allowed, 1)
    if len(refusals) > allowed:
        share = 100 * len(refusals) / len(items)
        counts = Counter(refusal.reason for refusal in refusals)
        reasons = ", ".join(f"{number} {reason}" for reason, number in counts.most_common())
        raise TooManyRefused(
            f"{len(refusals)} of {len(items)} cases ({share:.1f} %) cannot be used; at most "
            f"{100 * max_refused_fraction:g} % may: {reasons}. Repair those that omnifm check lists, or change "
            "max_refused_fraction in local/omnifm_site.json",
            refusals,
        )
    kept = without(datalist, {(r.split, r.position) for r in refusals})
    if not kept.training:
        message = f"'training' must keep at least one case; all {len(datalist.training)} were refused"
        raise TooManyRefused(message, refusals)
    return kept, refusals


def write_quarantine(path: Path, refusals: Sequence[Refusal]) -> None:
    """Write the refusals as JSON.  The file is whole or missing, even after a power failure."""
    write_atomic(path, json.dumps({"refused": [asdict(refusal) for refusal in refusals]}, indent=1).encode())


def _refusal_of(item: Item, read: Callable[[Item], object]) -> Refusal | None:
    try:
        read(item)
    except RefusedImage as refusal:
        split, position = item["origin"]
        return Refusal(split, position, refusal.reason, str(refusal))
    return None
