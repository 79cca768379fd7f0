"""Lists for the hospital's own staff, written beside the sites: what an import left out, and what it renamed.

They hold the hospital's own names of files.  Nothing of ours sends them anywhere, and only their owner can read them.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from omnifm.data.refusal import REASONS
from omnifm.state import write_atomic

LEFT_OUT = "left-out.txt"
NAMES = "names.txt"
SHOWN = 20
"""Number of names that are shown on the screen; `left-out.txt` has them all."""
WHERE = f"Names are in {LEFT_OUT} in the destination folder; it stays in the hospital."


class LeftOut(NamedTuple):
    """One thing that an import leaves out.

    Attributes:
        reason: a key of `refusal.REASONS`.
        name: its file or folder in the source, for `left-out.txt` only; "" if it has none, like a line of a list.
        message: what exactly was wrong, without a name or a path; "" if the reason says all.
    """

    reason: str
    name: str = ""
    message: str = ""


def by_reason(rows: Sequence[LeftOut]) -> dict[str, list[LeftOut]]:
    """The rows of each reason; the most frequent reason comes first."""
    found: dict[str, list[LeftOut]] = {}
    for row in rows:
        found.setdefault(row.reason, []).append(row)
    return dict(sorted(found.items(), key=lambda pair: (-len(pair[1]), pair[0])))


def in_words(rows: Sequence[LeftOut]) -> str:
    """The most frequent reason, the first such case and what to do, in one line without names; the others are counted.

    >>> in_words([LeftOut("truncated")])
    '1 truncated: the file holds fewer or more bytes than its header promises. Export or copy the file again.'
    """
    first, *others = in_lines(rows)
    if len(found := by_reason(rows)) < 2:
        return " ".join([first, *others])
    counts = ", ".join(f"{len(more)} {reason}" for reason, more in list(found.items())[1:])
    return " ".join([first, f"Also {counts}.", *others[len(found) - 1 :]])


def in_lines(rows: Sequence[LeftOut]) -> list[str]:
    """A line for each reason: how many, what the first of them is, and what to do; then where their names are."""
    lines = []
    for reason, found in by_reason(rows).items():
        meaning, advice = REASONS[reason]
        detail = next((f" (first: {row.message})" for row in found if row.message), "")
        lines.append(f"{len(found)} {reason}: {meaning}{detail}. {advice}")
    return [*lines, WHERE] if any(row.name for row in rows) else lines


def on_screen(rows: Sequence[LeftOut]) -> list[str]:
    """Lines with the names of what is left out, for the screen of whoever runs the import, and never for a log."""
    named = [row for found in by_reason(rows).values() for row in found if row.name]
    lines = [f"  {row.reason}: {_printable(row.name)}" for row in named[:SHOWN]]
    return [*lines, f"  and {len(named) - SHOWN} more, see {LEFT_OUT}"] if len(named) > SHOWN else lines


def write_left_out(destination: Path, rows: Sequence[LeftOut]) -> None:
    """Append the rows that have a name to `left-out.txt`, in groups by reason, each with its meaning and advice."""
    when = time.strftime("%Y-%m-%d %H:%M")
    lines = [f"Left out on {when}.  This list holds your own names: keep it in the hospital."]
    for reason, found in by_reason([row for row in rows if row.name]).items():
        meaning, advice = REASONS[reason]
        lines += ["", f"{reason}: {meaning}.", f"What to do: {advice}"]
        lines += [f"  {_printable(row.name)}" + (f"  ({row.message})" if row.message else "") for row in found]
    if len(lines) > 1:
        _append(destination / LEFT_OUT, [*lines, ""])


def write_names(destination: Path, renamed: Iterable[tuple[str, str]]) -> None:
    """Append (new name, the hospital's own name) to `names.txt`, so that a case can be found again."""
    lines = [f"{new}\t{_printable(own)}" for new, own in renamed]
    if lines:
        _append(destination / NAMES, lines)


def _append(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = file.read_bytes() if file.exists() else b""
    write_atomic(file, before + "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))


def _printable(name: str) -> str:
    return name.replace("\n", "?").replace("\t", "?")
