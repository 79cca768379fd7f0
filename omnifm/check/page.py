"""The page of a data check: verdict, sample pictures with mask outlines, counts, shapes, histograms, refusals.

For the site's own staff: it shows pictures of patients, though nothing that names them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from omnifm.data.refusal import REASONS
from omnifm.report.page import COLOURS, MAX_ROWS, NONE, Html, bar, document, image, natural, section, table, tag

STAYS = "This page shows pictures of patients: it is for this site's own staff and stays at this site."
Report = Mapping[str, Any]


def page(report: Report, pictures: Mapping[str, bytes]) -> bytes:
    """The whole page; `report` and `pictures` as in `check.Inspection`."""
    verdict = "USABLE" if report["usable"] else "NOT USABLE"
    return document(
        f"Data check: {verdict.lower()}",
        _head(report, verdict),
        _cards(report),
        _samples(report, pictures),
        _splits(report),
        _labels(report),
        _images(report),
        _histograms(report),
        _places(report),
        _refusals(report),
    )


def _head(report: Report, verdict: str) -> Html:
    badge = tag("span", verdict, class_=f"badge {'COMPLETE' if report['usable'] else 'FAILED'}")
    task = f"for {report['task'].replace('_', ' ')}. " if report["task"] else ""
    parts = [
        tag("div", "OmniFM-FLARE data check", class_="soft over"),
        tag("h1", "This site's data"),
        badge,
        tag("div", task, STAYS, class_="soft"),
    ]
    parts += [tag("p", tag("b", "Problem: "), words, class_="note severe") for words in report["problems"]]
    parts += [tag("p", tag("b", "Look at: "), words, class_="note") for words in report["warnings"]]
    return tag("header", *parts)


def _cards(report: Report) -> Html:
    splits, duplicates = report["splits"], report["duplicates"]
    cases, refused = (sum(split[key] for split in splits.values()) for key in ("cases", "refused"))
    patients = sum(split["patients"] for split in splits.values())
    cards = [
        ("Usable cases", f"{cases:,}", ", ".join(f"{split['cases']:,} {name}" for name, split in splits.items())),
        ("Refused cases", f"{refused:,}", f"{100 * refused / max(1, cases + refused):.1f} % of all"),
        (
            "Patients",
            f"{patients:,}" if patients else "unknown",
            "none is in two splits" if patients else "dataset.json names none",
        ),
        (
            "Images in several splits",
            f"{len(duplicates['across_splits']):,}",
            f"equal voxels, whatever the file; {len(duplicates['within_a_split']):,} more within a split",
        ),
    ]
    parts = ((tag("span", title, class_="soft"), tag("b", value), tag("small", note)) for title, value, note in cards)
    return tag("div", *(tag("div", *part, class_="card") for part in parts), class_="cards")


def _samples(report: Report, pictures: Mapping[str, bytes]) -> Html:
    figures = [tag("figure", image(png, words), tag("figcaption", words)) for words, png in pictures.items()]
    masks = any("voxels" in n for split in report["splits"].values() for n in split["labels"].values())
    names = [(int(value), name) for value, name in report["labels"].items() if int(value) > 0] if masks else []
    keys = [
        tag("span", tag("i", "■", style=f"color:{COLOURS[(value - 1) % len(COLOURS)]}"), f" {name}")
        for value, name in names
    ]
    columns = 4 if report["task"] == "image_fusion" else 6
    grid = tag("div", *figures, class_="pictures", style=f"grid-template-columns:repeat({columns},minmax(0,1fr))")
    which = (
        "The slice with the largest mask, else the middle one; anterior is up. "
        "'training 5' is item 5 of 'training' in dataset.json, counted from 0. "
        "Look for writing in the pictures: no name may be in one."
    )
    legend = [tag("p", *keys, class_="legend")] if keys else []
    return section("Samples", tag("p", which, class_="soft"), *legend, grid) if figures else Html("")


def _splits(report: Report) -> Html:
    modalities = sorted({code for split in report["splits"].values() for code in split["modalities"]})
    rows = [
        [
            name,
            f"{split['cases']:,}",
            f"{split['refused']:,}",
            f"{split['patients']:,}" if split["patients"] else NONE,
            *(f"{split['modalities'].get(code, 0):,}" for code in modalities),
        ]
        for name, split in report["splits"].items()
    ]
    headers = ["Split", "Cases", "Refused", "Patients", *(f"{code} images" for code in modalities)]
    return section("Splits", table(headers, rows)) if rows else Html("")


def _labels(report: Report) -> Html:
    splits = {name: split["labels"] for name, split in report["splits"].items()}
    values = sorted({*report["labels"], *(value for labels in splits.values() for value in labels)}, key=natural)
    total = {value: sum(labels.get(value, {}).get("cases", 0) for labels in splits.values()) for value in values}
    if not any(total.values()):
        return Html("")
    most = max(total.values())
    rows = [
        [
            f"{value} {report['labels'].get(value, '(no name)')}",
            *(_label(labels.get(value)) for labels in splits.values()),
            bar(total[value] / most) if total[value] else NONE,
        ]
        for value in values
    ]
    words = "Cases that hold the label, below them its voxels." if "voxels" in str(splits) else "Cases with each label."
    content = table(["Label", *splits, "All cases"], rows, text=(0, 1 + len(splits)))
    return section("Labels", tag("p", words, class_="soft"), content)


def _label(count: Mapping[str, int] | None) -> object:
    if count is None:
        return NONE
    voxels = [tag("small", f"{count['voxels']:,}")] if "voxels" in count else []
    return tag("div", f"{count['cases']:,}", *voxels)


def _images(report: Report) -> Html:
    rows = []
    for code, found in report["images"].items():
        levels = [_intensity(found["intensity"][share]) for share in ("0", "1", "50", "99", "100")]
        rows.append(
            [
                code,
                f"{found['num_images']:,}",
                _counted(found["dims"]),
                _counted(found["channels"]),
                _range(found["shape"]),
                _range(found["spacing_mm"]),
                *levels,
            ]
        )
    if not rows:
        return Html("")
    headers = [
        "Modality",
        "Images",
        "Dimensions",
        "Channels",
        "Voxels",
        "Spacing, mm",
        "Minimum",
        "1 %",
        "Median",
        "99 %",
        "Maximum",
    ]
    words = "Voxels and spacing: median, below it smallest and largest. Intensities: every image counts the same."
    return section("Images", tag("p", words, class_="soft"), table(headers, rows, (0, 2, 3, 4, 5)))


def _intensity(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _counted(counts: Mapping[str, int]) -> str:
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{key}: {n:,}" for key, n in counts.items())


def _range(spread: Mapping[str, Sequence[float]]) -> Html:
    small, middle, large = (" × ".join(f"{x:g}" for x in spread[key]) for key in ("min", "median", "max"))
    return tag("div", middle, tag("small", f"{small} to {large}" if small != large else "all alike"))


def _histograms(report: Report) -> Html:
    figures = [_histogram(code, found["histogram"]) for code, found in report["images"].items()]
    if not figures:
        return Html("")
    words = "Bars show the square root of each share, so that rare intensities can be seen; 0.1 % at each end are cut."
    return section("Intensities", tag("p", words, class_="soft"), tag("div", *figures, class_="plots"))


def _histogram(code: str, histogram: Mapping[str, Any]) -> Html:
    counts = np.sqrt(np.array(histogram["counts"], float))
    step, top = 300 / len(counts), counts.max()
    bars = [
        tag(
            "rect",
            x=f"{10 + i * step:.1f}",
            y=f"{110 - 100 * n / top:.1f}",
            width=f"{step - 0.6:.1f}",
            height=f"{100 * n / top:.1f}",
            fill=COLOURS[0],
        )
        for i, n in enumerate(counts)
        if n
    ]
    low, high = histogram["low"], histogram["high"]
    ticks = [
        tag(
            "text",
            _intensity(low + share * (high - low)),
            x=10 + 300 * share,
            y=126,
            fill="#56636f",
            **{"text-anchor": anchor, "font-size": 11},
        )
        for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    ]
    line = tag("line", x1=10, x2=310, y1=110.5, y2=110.5, stroke="#56636f")
    alt = f"{code} intensities from {low:.4g} to {high:.4g}"
    drawing = tag("svg", *bars, line, *ticks, viewBox="0 0 320 132", role="img", **{"aria-label": alt})
    return tag("figure", tag("h3", code), drawing)


def _places(report: Report) -> Html:
    """Where to look: duplicates and odd images, by their place in dataset.json."""
    rows: list[list[object]] = []
    for kind, groups in report["duplicates"].items():
        rows += [[f"equal images {kind.replace('_', ' ')}", _named(group)] for group in groups]
    rows += [[name.replace("_", " "), _named(places)] for name, places in report["odd"].items()]
    if not rows:
        return Html("")
    return section("Where to look", table(["What", "Items of dataset.json"], _cut(rows), text=(0, 1)))


def _named(places: Iterable[Mapping[str, Any]]) -> str:
    found = list(places)
    shown = [f"{at['list']} {at['position']}" + _dealt(at) for at in found[:20]]
    return ", ".join(shown) + (f" and {len(found) - 20} more" if len(found) > 20 else "")


def _dealt(at: Mapping[str, Any]) -> str:
    # Where dataset.json has no validation or test, they are cut out of training: the list says not which split.
    return f" (in {at['split']})" if at.get("split", at["list"]) != at["list"] else ""


def _refusals(report: Report) -> Html:
    refusals = report["refusals"]
    if not refusals:
        return section("Refused cases", tag("p", "None.")) if report["splits"] else Html("")
    reasons = Counter(refusal["reason"] for refusal in refusals)
    kinds = [[reason, f"{count:,}", REASONS[reason]] for reason, count in reasons.most_common()]
    rows = [[f"{r['split']} {r['position']}", r["reason"], r["message"]] for r in refusals]
    return section(
        "Refused cases",
        table(["Reason", "Cases", "Meaning"], kinds, text=(0, 2)),
        tag("h3", "One by one"),
        table(["Item of dataset.json", "Reason", "Message"], _cut(rows), text=(0, 1, 2)),
    )


def _cut(rows: list[list[object]]) -> list[list[object]]:
    if len(rows) <= MAX_ROWS:
        return rows
    words = f"{len(rows) - MAX_ROWS + 1:,} more: omnifm check --json lists all"
    return [*rows[: MAX_ROWS - 1], [words, *[""] * (len(rows[0]) - 1)]]
