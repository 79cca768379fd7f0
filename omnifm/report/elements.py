"""What the pages are made of: tables, cards, notes, pictures, legends.  `templates/macros.html.j2` draws each of them.

They hold plain text.  The templates escape it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from omnifm.report.numbers import natural

MAX_ROWS = 400
"""Largest number of rows of one table, so that the page of any run stays small enough to mail."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7a5195")
"""The palette of Okabe and Ito, which colour-blind readers can tell apart, without its yellow: too faint on white."""
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}
"""Marker of matplotlib -> the character that looks like it."""


@dataclass(frozen=True)
class Card:
    """One number with its title above it and a note below it."""

    title: str
    value: str
    note: str


@dataclass(frozen=True)
class Note:
    """A message in a coloured box: `lead` is bold, `severe` makes the box red."""

    text: str
    lead: str = ""
    severe: bool = False


@dataclass(frozen=True)
class Bar:
    """A horizontal bar that fills `share` of its cell, in [0, 1]."""

    kind: ClassVar[str] = "bar"
    share: float

    @property
    def percent(self) -> str:
        """Width for the style sheet."""
        return f"{100 * self.share:.0f}"


@dataclass(frozen=True)
class Strong:
    """Bold text in a cell."""

    kind: ClassVar[str] = "strong"
    text: str


@dataclass(frozen=True)
class Code:
    """A hash or another text for machines in a cell."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Stacked:
    """A cell of two lines; the second is small."""

    kind: ClassVar[str] = "stacked"
    text: str
    small: str = ""


@dataclass(frozen=True)
class ScoreCell:
    """A site's score before and after local training.

    Attributes:
        change: the difference; empty where it is not defined.
        direction: `up` (better), `down` (worse) or empty (unknown).
        notes: number of cases and the like, in words.
        is_worst: whether no other site has a worse score.
        others: one line for each trivial rival.
        interval: 95 % interval of the score after local training; empty if unknown.
    """

    kind: ClassVar[str] = "score"
    before: str
    after: str
    change: str
    direction: str
    notes: str
    is_worst: bool
    others: Sequence[str]
    interval: str = ""


Cell = str | Bar | Strong | Code | Stacked | ScoreCell


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is the row's name.

    Attributes:
        headers: one for each column.
        rows: as many cells in each.
        text: numbers of the columns that are aligned as text, from 0; the others are aligned as numbers.
        tight: whether the cells have little space around them, for tables with many columns.

    Raises:
        ValueError: a row does not have one cell for each header, which is our own mistake.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text: Sequence[int] = (0,)
    tight: bool = False

    def __post_init__(self) -> None:
        if wrong := [len(row) for row in self.rows if len(row) != len(self.headers)]:
            raise ValueError(f"rows must have {len(self.headers)} cells, one for each header; got {wrong[0]}")

    @property
    def shown(self) -> Sequence[Sequence[Cell]]:
        """The rows that the page shows."""
        return self.rows[:MAX_ROWS]

    @property
    def num_hidden(self) -> int:
        """How many rows the page leaves out."""
        return max(0, len(self.rows) - MAX_ROWS)


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    glyph: str
    colour: str
    name: str


def legend(names: Iterable[str]) -> list[Key]:
    """Return colour and marker of each series, in the order in which `plots.plot` draws them."""
    glyphs = list(MARKERS.values())
    return [Key(glyphs[i % len(glyphs)], COLOURS[i % len(COLOURS)], name) for i, name in enumerate(names)]


@dataclass(frozen=True)
class Picture:
    """A PNG file inside the page; the caption is its alternative text, too."""

    caption: str
    png: bytes

    @property
    def base64(self) -> str:
        """The file as text."""
        return base64.b64encode(self.png).decode()


def in_natural_order(pictures: Mapping[str, bytes]) -> list[Picture]:
    """Return PNG files by caption as pictures, site-2 before site-10."""
    return [Picture(caption, pictures[caption]) for caption in sorted(pictures, key=natural)]
