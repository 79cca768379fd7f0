"""The page of a data check: verdict, sample pictures with mask outlines, counts, shapes, histograms, refusals.

The page is for the site's own staff: it shows pictures of patients, but no name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from omnifm.data.refusal import REASONS
from omnifm.quality.records import Advice, CheckReport, Histogram, ImagesReport, LabelCount, PlaceRecord, Spread
from omnifm.quality.samples import captioned
from omnifm.quality.things import PICTURED
from omnifm.quality.unlabelled import NOT_YET
from omnifm.report.elements import COLOURS, MAX_ROWS, Bar, Card, Cell, Key, Note, Picture, Stacked, Table
from omnifm.report.numbers import NONE, natural
from omnifm.report.render import render

MAX_PLACES = 20
"""Largest number of cases that one row of a table names."""


@dataclass(frozen=True)
class Rect:
    """A bar of a histogram, in the units of its drawing."""

    x: str
    y: str
    width: str
    height: str


@dataclass(frozen=True)
class Intensities:
    """The histogram of one modality.

    Attributes:
        alt: the drawing in words.
        ticks: the intensity at the left end, in the middle and at the right end.
    """

    modality: str
    alt: str
    colour: str
    bars: Sequence[Rect]
    ticks: Sequence[str]


@dataclass(frozen=True)
class Finding:
    """A thing to look at: what it is, what to do next, where, and pictures of some of the cases."""

    what: str
    advice: str
    places: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class CheckPage:
    """The page; None where there is nothing to show."""

    title: str
    verdict: str
    is_usable: bool
    purpose: str
    notes: Sequence[Note]
    cards: Sequence[Card]
    look_at: Sequence[Finding]
    legend: Sequence[Key]
    pictures: Sequence[Picture]
    splits: Table | None
    labels: Table | None
    has_voxels: bool
    images: Table | None
    histograms: Sequence[Intensities]
    places: Table | None
    is_read: bool
    reasons: Table | None
    refusals: Table | None


def page(report: CheckReport, pictures: Mapping[str, bytes]) -> bytes:
    """Return the page.

    Args:
        report: as in `inspection.Inspection`.
        pictures: PNG files by caption.
    """
    verdict = "USABLE" if report["usable"] else "NOT USABLE"
    notes = [Note(words, "Problem", severe=True) for words in report["problems"]]
    explained = {advice["what"] for advice in report["look_at"]}
    notes += [Note(words, "Look at") for words in report["warnings"] if words not in explained]
    kinds = tuple(captioned(name, "") for name in PICTURED)
    content = CheckPage(
        title=f"Data check: {verdict.lower()}",
        verdict=verdict,
        is_usable=report["usable"],
        purpose=_purpose(report),
        notes=notes,
        cards=_cards(report),
        legend=_legend(report) if _has_voxels(report) else [],
        look_at=[_finding(advice, report, pictures) for advice in report["look_at"]],
        pictures=[Picture(caption, png) for caption, png in pictures.items() if not caption.startswith(kinds)],
        splits=_splits(report),
        labels=_labels(report),
        has_voxels=_has_voxels(report),
        images=_images(report),
        histograms=[_intensities(code, found["histogram"]) for code, found in report["images"].items()],
        places=_places(report),
        is_read=bool(report["splits"]),
        reasons=_reasons(report),
        refusals=_refusals(report),
    )
    return render("check.html.j2", content)


def _finding(advice: Advice, report: CheckReport, pictures: Mapping[str, bytes]) -> Finding:
    prefix = captioned(advice["name"], "")
    shown = [Picture(name.removeprefix(prefix), png) for name, png in pictures.items() if name.startswith(prefix)]
    what = advice["what"][:1].upper() + advice["what"][1:]
    return Finding(what, advice["advice"], _named(report["odd"].get(advice["name"], [])), shown)


def _purpose(report: CheckReport) -> str:
    """Return for what the data are usable, or not."""
    if report["task"] is None:
        return NOT_YET if report["usable"] else ""
    return f"For {report['task'].replace('_', ' ')}."


def _has_voxels(report: CheckReport) -> bool:
    """Return whether the labels are masks."""
    return any("voxels" in count for split in report["splits"].values() for count in split["labels"].values())


def _legend(report: CheckReport) -> list[Key]:
    """Return the colour in which each class is outlined; 0 is the background."""
    named = [(int(value), name) for value, name in report["labels"].items() if int(value) > 0]
    return [Key("■", COLOURS[(value - 1) % len(COLOURS)], name) for value, name in named]


def _cards(report: CheckReport) -> list[Card]:
    splits, duplicates = report["splits"], report["duplicates"]
    cases = sum(split["cases"] for split in splits.values())
    refused = sum(split["refused"] for split in splits.values())
    patients = sum(split["patients"] for split in splits.values())
    across, within = len(duplicates["across_splits"]), len(duplicates["within_a_split"])
    return [
        Card("Usable cases", f"{cases:,}", ", ".join(f"{split['cases']:,} {name}" for name, split in splits.items())),
        Card("Refused cases", f"{refused:,}", f"{100 * refused / max(1, cases + refused):.1f} % of all"),
        _patients(patients, cases),
        Card("Images in several splits", f"{across:,}", f"equal voxels, whatever the file; {within:,} more in a split"),
    ]


def _patients(patients: int, cases: int) -> Card:
    """Return what the splits rest on; `patients` and `cases` are counts."""
    if not patients:
        return Card("Patients", "unknown", "every file counts as its own patient")
    each = "one for each case; " if patients == cases else ""
    return Card("Patients", f"{patients:,}", f"{each}none named is in two splits")


def _splits(report: CheckReport) -> Table | None:
    codes = sorted({code for split in report["splits"].values() for code in split["modalities"]})
    rows = [
        [
            name,
            f"{split['cases']:,}",
            f"{split['refused']:,}",
            f"{split['patients']:,}" if split["patients"] else NONE,
            *(f"{split['modalities'].get(code, 0):,}" for code in codes),
        ]
        for name, split in report["splits"].items()
    ]
    headers = ["Split", "Cases", "Refused", "Patients", *(f"{code} images" for code in codes)]
    return Table(headers, rows) if rows else None


def _labels(report: CheckReport) -> Table | None:
    splits = {name: split["labels"] for name, split in report["splits"].items()}
    values = sorted({*report["labels"], *(value for labels in splits.values() for value in labels)}, key=natural)
    total = {value: sum(labels[value]["cases"] for labels in splits.values() if value in labels) for value in values}
    if not any(total.values()):
        return None
    most = max(total.values())
    rows: list[list[Cell]] = [
        [
            f"{value} {report['labels'].get(value, '(no name)')}",
            *(_label(labels.get(value)) for labels in splits.values()),
            Bar(total[value] / most) if total[value] else NONE,
        ]
        for value in values
    ]
    return Table(["Label", *splits, "All cases"], rows, text=(0, 1 + len(splits)))


def _label(count: LabelCount | None) -> Cell:
    if count is None:
        return NONE
    if "voxels" not in count:
        return Stacked(f"{count['cases']:,}")
    return Stacked(f"{count['cases']:,}", f"{count['voxels']:,}, {share_in_words(count['share'])}")


def share_in_words(share: float) -> str:
    """A share as a percentage of two digits; one that is small is not rounded to nothing.

    >>> share_in_words(0.0312), share_in_words(0.97), share_in_words(0.000004)
    ('3.1 %', '97 %', '< 0.01 %')
    """
    return "< 0.01 %" if 0 < share < 0.0001 else f"{100 * share:.2g} %"


IMAGE_HEADERS = (
    "Modality",
    "Images",
    "Dimensions",
    "Channels",
    "Voxels or pixels",
    "Spacing, mm",
    "Minimum",
    "1 %",
    "Median",
    "99 %",
    "Maximum",
)


def _images(report: CheckReport) -> Table | None:
    rows: list[list[Cell]] = []
    for code, found in report["images"].items():
        levels = [_intensity(found["intensity"][percentile]) for percentile in ("0", "1", "50", "99", "100")]
        counts = [f"{found['num_images']:,}", _counts(found["dims"]), _counts(found["channels"])]
        spacing = NONE if are_pictures(found) else _range(found["spacing_mm"])
        rows.append([code, *counts, _range(found["shape"]), spacing, *levels])
    return Table(IMAGE_HEADERS, rows, (0, 2, 3, 4, 5)) if rows else None


def are_pictures(images: ImagesReport) -> bool:
    """Return whether all images are 2-D and none says how large its pixels are."""
    return set(images["dims"]) == {"2-D"} and all(set(images["spacing_mm"][at]) == {1.0} for at in ("min", "max"))


def _intensity(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _counts(counts: Mapping[str, int]) -> str:
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{key}: {n:,}" for key, n in counts.items())


def _range(spread: Spread) -> Stacked:
    small, middle, large = (" × ".join(f"{x:g}" for x in spread[key]) for key in ("min", "median", "max"))
    return Stacked(middle, f"{small} to {large}" if small != large else "all alike")


def _intensities(code: str, histogram: Histogram) -> Intensities:
    """Return the bars: 300 units wide and at most 100 high, on a line 110 units below the top."""
    roots = np.sqrt(np.array(histogram["counts"], float))
    step, top = 300 / len(roots), roots.max()
    bars = [
        Rect(f"{10 + i * step:.1f}", f"{110 - 100 * n / top:.1f}", f"{step - 0.6:.1f}", f"{100 * n / top:.1f}")
        for i, n in enumerate(roots)
        if n
    ]
    low, high = histogram["low"], histogram["high"]
    ticks = [_intensity(low + share * (high - low)) for share in (0, 0.5, 1)]
    return Intensities(code, f"{code} intensities from {low:.4g} to {high:.4g}", COLOURS[0], bars, ticks)


def _places(report: CheckReport) -> Table | None:
    """Return where duplicates stand in dataset.json."""
    duplicates = report["duplicates"]
    rows: list[list[Cell]] = []
    rows += [["equal images across splits", _named(group)] for group in duplicates["across_splits"]]
    rows += [["equal images within a split", _named(group)] for group in duplicates["within_a_split"]]
    return Table(["What", "Items of dataset.json"], _shortened(rows), text=(0, 1)) if rows else None


def _named(places: Sequence[PlaceRecord]) -> str:
    shown = [f"{at['list']} {at['position']}{_other_split(at)}" for at in places[:MAX_PLACES]]
    more = f" and {len(places) - MAX_PLACES} more" if len(places) > MAX_PLACES else ""
    return ", ".join(shown) + more


def _other_split(at: PlaceRecord) -> str:
    # Validation and test are taken from training if dataset.json does not have them: then the list is not the split.
    return f" (in {at['split']})" if at.get("split", at["list"]) != at["list"] else ""


def _reasons(report: CheckReport) -> Table | None:
    counts = Counter(refusal["reason"] for refusal in report["refusals"])
    rows: list[list[Cell]] = [[reason, f"{count:,}", *REASONS[reason]] for reason, count in counts.most_common()]
    return Table(["Reason", "Cases", "Meaning", "What to do"], rows, text=(0, 2, 3)) if rows else None


def _refusals(report: CheckReport) -> Table | None:
    rows: list[list[Cell]] = [[f"{r['split']} {r['position']}", r["reason"], r["message"]] for r in report["refusals"]]
    headers = ["Item of dataset.json", "Reason", "Message"]
    return Table(headers, _shortened(rows), text=(0, 1, 2)) if rows else None


def _shortened(rows: list[list[Cell]]) -> list[list[Cell]]:
    """Return at most as many rows as a table shows; the last one says where the others are."""
    if len(rows) <= MAX_ROWS:
        return rows
    words = f"{len(rows) - MAX_ROWS + 1:,} more: omnifm check --json lists all"
    return [*rows[: MAX_ROWS - 1], [words, *[""] * (len(rows[0]) - 1)]]
