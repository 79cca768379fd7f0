"""Data that changed during a run, in words."""

from __future__ import annotations

from collections.abc import Sequence

from omnifm.records import DataChange, Summary
from omnifm.report.elements import Note

KINDS = ("new", "gone", "with changed files", "in another split of dataset.json than before")


def in_words(change: DataChange) -> str:
    """One sentence about a site whose data changed.

    >>> in_words({"site": "a", "before_round": 2, "new": 1, "gone": 0, "changed": 0, "moved": 0})
    'a: the data changed before round 2 (patients: 1 new). Every known patient keeps the split of this run'
    """
    counts = (change["new"], change["gone"], change["changed"], change["moved"])
    return sentence(f"{change['site']}: the data changed before round {change['before_round']}", counts)


def sentence(what: str, counts: Sequence[int]) -> str:
    """Say how data changed.

    Args:
        what: the beginning: whose data, and when.
        counts: number of patients of each of `KINDS`.
    """
    told = ", ".join(f"{count:,} {kind}" for count, kind in zip(counts, KINDS, strict=True) if count)
    patients = f" (patients: {told})" if told else ""
    return f"{what}{patients}. Every known patient keeps the split of this run"


def note(summary: Summary) -> Note | None:
    """The note of the report; None if no data changed."""
    lines = [in_words(change) for change in summary.get("data_changes", [])]
    return Note(". ".join(lines), "Data changed") if lines else None
