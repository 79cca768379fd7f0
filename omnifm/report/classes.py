"""The panel of one site's classes: scores per class, which classes are confused, calibration, missed lesions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omnifm.report.elements import Cell, Strong, Table
from omnifm.report.metric_names import metric_name
from omnifm.report.numbers import NONE, counted, number
from omnifm.statistics import MIN_CASES, Confusion, Reliability, Statistics

SIDE = 200
"""Side of the reliability diagram's axes, in units of its drawing."""


@dataclass(frozen=True)
class Dot:
    """One range of confidence: its place in the drawing, its radius, and what it says in words."""

    x: str
    y: str
    radius: str
    words: str


@dataclass(frozen=True)
class Diagram:
    """A reliability diagram."""

    alt: str
    dots: Sequence[Dot]
    side: int = SIDE


@dataclass(frozen=True)
class ClassPanel:
    """What a page shows of one site's classes; None where there is nothing to show.

    Attributes:
        title: name of the site, or what stands for it.
        lesions: missed lesions in words, or empty.
    """

    title: str
    classes: Table | None
    confusion: Table | None
    diagram: Diagram | None
    lesions: str

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.classes or self.confusion or self.diagram or self.lesions)


def class_panel(title: str, statistics: Statistics) -> ClassPanel:
    """Return the panel of one site."""
    found = statistics.get("lesions")
    words = ""
    if found and found["total"]:
        words = (
            f"{found['missed']:,} of {counted(found['total'], 'lesion')} missed, in {counted(found['cases'], 'case')}."
        )
    return ClassPanel(
        title,
        _classes(statistics),
        _confusion(statistics["confusion"]) if "confusion" in statistics else None,
        _diagram(title, statistics["reliability"]) if "reliability" in statistics else None,
        words,
    )


def _classes(statistics: Statistics) -> Table | None:
    classes = {name: row for name, row in statistics.get("classes", {}).items() if row["cases"]}
    scores = list(dict.fromkeys(key for row in classes.values() for key in row if key != "cases"))
    rows = [[name, f"{row['cases']:,}", *(number(row.get(key)) for key in scores)] for name, row in classes.items()]
    return Table(["Class", "Cases", *(metric_name(key).capitalize() for key in scores)], rows) if rows else None


def _confusion(found: Confusion) -> Table | None:
    """Only classes that occur or are predicted."""
    rows = {name: row for name, row in zip(found["names"], found["counts"], strict=True) if row and sum(row)}
    used = [i for i, name in enumerate(found["names"]) if name in rows or any(row[i] for row in rows.values())]
    cells: list[list[Cell]] = [
        [name, *(Strong(f"{row[i]:,}") if found["names"][i] == name else f"{row[i]:,}" for i in used)]
        for name, row in rows.items()
    ]
    return Table(["True \\ predicted", *(found["names"][i] for i in used)], cells, tight=True) if cells else None


def _diagram(title: str, found: Reliability) -> Diagram | None:
    if not found["bins"]:
        return None
    most = max(one["cases"] for one in found["bins"])
    dots = [
        Dot(
            x=f"{SIDE * one['confidence']:.1f}",
            y=f"{SIDE * (1 - one['accuracy']):.1f}",
            radius=f"{3 + 7 * (one['cases'] / most) ** 0.5:.1f}",
            words=f"confidence {one['confidence']:.2f}, right {one['accuracy']:.2f}, {counted(one['cases'], 'case')}",
        )
        for one in found["bins"]
    ]
    return Diagram(f"Reliability at {title}: expected calibration error {number(found['ece'])}", dots)


def small_classes_note() -> str:
    """Say what is not shown at the server."""
    return f"Numbers that rest on fewer than {MIN_CASES} cases stay at the site ({NONE} or left out)."
