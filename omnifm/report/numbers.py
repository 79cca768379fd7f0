"""Numbers as people read them: scores, sizes, durations, counts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TypeGuard

NONE = "–"
"""Stands for a value that does not exist."""
Score = int | float | None
"""A number; None, NaN and infinity mean that it is not defined."""


def defined(value: Score) -> TypeGuard[int | float]:
    """Return whether `value` is a finite number."""
    return value is not None and math.isfinite(value)


def number(value: Score) -> str:
    """Write a score or a loss with about four digits; a dash where it is not defined.

    >>> number(0.51234), number(12.3), number(0.0001), number(None)
    ('0.512', '12.30', '1.0e-04', '–')
    """
    if not defined(value):
        return NONE
    if 0 < abs(value) < 0.0005:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.2f}"


def size(num_bytes: Score) -> str:
    """Write a number of bytes in the decimal unit that fits.

    >>> size(1_500_000)
    '1.50 MB'
    """
    if not defined(num_bytes):
        return NONE
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    power = min(int(math.log10(num_bytes) / 3 + 1e-9), 4)
    return f"{num_bytes / 1000**power:.2f} {' kMGT'[power]}B"


def duration(seconds: Score) -> str:
    """Write a time in seconds, minutes or hours.

    >>> duration(90), duration(600)
    ('90.0 s', '10.0 min')
    """
    if not defined(seconds):
        return NONE
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def counted(count: int, noun: str) -> str:
    """Write a count with its noun.

    >>> counted(1, "round"), counted(2, "round")
    ('1 round', '2 rounds')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers, consecutive ones as a range.

    >>> ranges([1, 3, 4, 5])
    '1, 3–5'
    """
    runs: list[list[int]] = []
    for value in numbers:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}{NONE}{run[-1]}" for run in runs)


def natural(name: str) -> list[int | str]:
    """Return a sorting key that puts site-2 before site-10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
