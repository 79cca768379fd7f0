"""The report of a run: one self-contained HTML page, drawn from summary.json alone.

Names and reasons come from sites, so nothing here writes markup: `omnifm.report.page` escapes all that it is given.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omnifm.metrics.rivals import rivals
from omnifm.report.page import (
    NONE,
    Html,
    bar,
    defined,
    document,
    duration,
    image,
    legend,
    natural,
    number,
    plot,
    ranges,
    section,
    size,
    table,
    tag,
)
from omnifm.state import write_atomic

Summary = Mapping[str, Any]
SCHEMA = 1
KEYS = (
    "job",
    "task",
    "method",
    "seed",
    "versions",
    "status",
    "reason",
    "rounds",
    "partition",
    "init_hash",
    "final_hash",
    "data_source",
    "sites",
    "aggregate",
    "history",
)
COUNTED = ("train", "validation", "test", "refused")


def report(path: Path) -> Path:
    """Draw the report of a finished run again, keeping the pictures of the report that is there.

    Args:
        path: a run directory (its `results/summary.json` or `summary.json` is read) or a summary file.

    Returns:
        Path of the `report.html` written beside the summary.

    Raises:
        ValueError: there is no summary, or it is not JSON of schema 1.
    """
    found = [p for p in (path / "results" / "summary.json", path / "summary.json", path) if p.is_file()]
    if not found:
        raise ValueError("path must be a summary.json or a run directory that holds one; it is neither")
    page = found[0].parent / "report.html"
    try:
        write_report(_read(found[0]), page, _kept(page))
    except (KeyError, TypeError, AttributeError) as error:
        wrong = f"{type(error).__name__} {str(error)!r:.80}"
        raise ValueError(f"summary must follow schema {SCHEMA}; got {wrong}") from None
    return page


def write_report(summary: Summary, path: Path, pictures: Mapping[str, bytes] = {}) -> None:
    """Write one self-contained HTML page atomically.

    Args:
        summary: contract summary.json, schema 1.
        path: the page.
        pictures: PNG files by caption; only of synthetic cases, since those of patients stay at their site.
    """
    history = summary["history"]
    page = document(
        f"{summary['job']}: {summary['status']}",
        _head(summary),
        _cards(summary),
        _curves(summary),
        _results(summary),
        _bank(history),
        _missing(history),
        _pictures(pictures),
        _traffic(history),
        _provenance(summary),
    )
    write_atomic(path, page)


def _read(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("summary must be JSON; got something else") from None
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA:
        got = summary.get("schema") if isinstance(summary, dict) else type(summary).__name__
        raise ValueError(f"summary must have schema {SCHEMA}; got {str(got)!r:.40}")
    if absent := [key for key in KEYS if key not in summary]:
        raise ValueError(f"summary must hold every key of schema {SCHEMA}; it lacks {', '.join(absent)}")
    return summary


def _kept(page: Path) -> dict[str, bytes]:
    """The pictures of an earlier report: the server keeps them nowhere else."""
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    cases = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([\w+/]*=*)"><figcaption>', text)
    return {html.unescape(caption): base64.b64decode(data) for caption, data in cases}


# The parts of the page, from top to bottom.
def _head(summary: Summary) -> Html:
    status = summary["status"]
    words = [f"{key} {summary[key]}" for key in ("task", "data", "method", "seed") if key in summary]
    parts = [
        tag("div", "OmniFM-FLARE run report", class_="soft over"),
        tag("h1", summary["job"]),
        tag("span", status, class_=f"badge {status}"),
        tag("div", " · ".join(words), class_="soft"),
    ]
    if summary["reason"]:
        kind = "note severe" if status == "FAILED" else "note"
        parts.append(tag("p", tag("b", f"{status}: "), summary["reason"], class_=kind))
    if summary["data_source"] == "demo":
        words = ["SYNTHETIC DEMO DATA.", "These numbers show that the software runs; they say nothing about medicine."]
        parts.append(tag("p", " ".join(words), class_="demo"))
    return tag("header", *parts)


def _cards(summary: Summary) -> Html:
    sites, history, rounds = summary["sites"], summary["history"], summary["rounds"]
    name = _first_metric(summary) or "score"
    count = {key: sum(site[f"num_{key}"] for site in sites.values()) for key in COUNTED}
    cases = sum(count[key] for key in COUNTED[:3])
    scores = [site["metrics"].get(name, {"before": None, "after": None}) for site in sites.values()]
    before = [score["before"] for score in scores if defined(score["before"])]
    complete = all(defined(score["before"]) == defined(score["after"]) for score in scores)
    overall = summary["aggregate"].get(name, {})
    rows = [row for entry in history for row in entry["sites"].values()]
    slowest = sum(max((row["seconds"] for row in entry["sites"].values()), default=0.0) for entry in history)
    mean = f"{number(sum(before) / len(before) if before else None)} → {number(overall.get('mean'))}"
    note = "before → after local training" + ("" if complete else ", over different sites: see below")
    total = duration(sum(row["seconds"] for row in rows))
    cards = [
        ("Rounds", f"{rounds['completed']} of {rounds['planned']}", "completed of planned"),
        ("Sites with test scores", f"{len(sites)} of {len(_sites(summary))}", "of those asked in any round"),
        ("Cases", f"{cases:,}", ", ".join(f"{count[key]:,} {key}" for key in COUNTED)),
        (f"Mean {name}, test", mean, note),
        (f"Worst {name}, test", number(overall.get("worst")), overall.get("worst_site", "no site has test scores")),
        ("Sent by sites", size(sum(row["bytes_up"] for row in rows)), "accepted training replies"),
        ("Sent to sites", size(sum(row["bytes_down"] for row in rows)), "models and what comes with them"),
        ("Time at sites", total, f"{duration(slowest)} for the slowest of each round"),
    ]
    parts = ((tag("span", title, class_="soft"), tag("b", value), tag("small", note)) for title, value, note in cards)
    return tag("div", *(tag("div", *part, class_="card") for part in parts), class_="cards")


def _curves(summary: Summary) -> Html:
    history, sites, name = summary["history"], _sites(summary), _first_metric(summary)
    if not history:
        return section("Training", tag("p", "No round was completed."))
    rounds = [entry["round"] for entry in history]

    def lines(read: Callable[[Mapping[str, Any]], Any]) -> dict[str, list[Any]]:
        return {site: [read(entry["sites"].get(site, {})) for entry in history] for site in sites}

    received = lines(lambda row: row.get("before", {}).get(name))
    trained = lines(lambda row: row.get("metrics", {}).get(name))
    scores = [value for values in (*received.values(), *trained.values()) for value in values if defined(value)]
    plots = [plot("Training loss", rounds, lines(lambda row: row.get("train_loss")))]
    if scores:
        limits = (min(scores), max(scores))  # one scale, so that the gain from local training can be seen
        plots += [
            plot(f"Validation {name}, before local training", rounds, received, limits),
            plot(f"Validation {name}, after local training", rounds, trained, limits),
        ]
    gap = "A gap: the site was not asked or did not reply in that round, or the score is undefined."
    return section("Training", legend(sites), tag("div", *plots, class_="plots"), tag("p", gap, class_="soft"))


def _results(summary: Summary) -> Html:
    sites, aggregate = summary["sites"], summary["aggregate"]
    metrics = rivals(dict.fromkeys(name for site in sites.values() for name in site["metrics"]))
    rows: list[list[object]] = []
    for name in _sites(summary):
        if name not in sites:
            rows.append([name, *[NONE] * (len(COUNTED) + 1), *["no test scores"] * len(metrics)])
            continue
        modalities = ", ".join(f"{key or 'unnamed'} {count:,}" for key, count in sites[name]["modalities"].items())
        rows.append(
            [
                name,
                *(f"{sites[name][f'num_{key}']:,}" for key in COUNTED),
                modalities or NONE,
                *(_score(summary, name, *metric) for metric in metrics.items()),
            ]
        )
    if not rows:
        return section("Test results", tag("p", "No site has test scores."))
    headers = ["Site", *(key.capitalize() for key in COUNTED), "Modalities", *metrics]
    how = "Each cell: before → after local training; below it the change, the cases scored and trivial rivals."
    spread = [[name, *map(number, (a["mean"], a["std"], a["worst"])), a["worst_site"]] for name, a in aggregate.items()]
    return section(
        "Test results",
        tag("p", how, class_="soft"),
        table(headers, rows, text=(0, 1 + len(COUNTED))),
        tag("h3", "Across sites, after local training"),
        table(["Metric", "Mean", "Standard deviation", "Worst", "Worst site"], spread, text=(0, 4))
        if spread
        else tag("p", "No site has defined test scores."),
    )


def _score(summary: Summary, site: str, metric: str, others: Mapping[str, str]) -> Html | str:
    """One cell.  Whether more is better is not in the summary: it follows from which site is called the worst."""
    scores = summary["sites"][site]["metrics"]
    score = scores.get(metric)
    if score is None:
        return NONE
    before, after, overall = score["before"], score["after"], summary["aggregate"].get(metric, {})
    words: list[object] = []
    if defined(before) and defined(after):
        gain = (after - before) * (overall.get("mean", 0) - overall.get("worst", 0))
        words += [tag("span", f"{after - before:+.3f}", class_="up" if gain > 0 else "down" if gain < 0 else ""), ", "]
    words.append(f"n {score['support']:,}" + (f", {score['undefined']:,} undefined" if score["undefined"] else ""))
    worst = overall.get("worst_site") == site and len(summary["sites"]) > 1
    words += [", ", tag("em", "worst site")] if worst else []
    lines = [tag("small", *words)]
    lines += [tag("small", f"{name} {number(scores[key]['after'])}") for name, key in others.items() if key in scores]
    cell = (f"{number(before)} → ", tag("b", number(after)), *lines)
    return tag("div", *cell, class_="worst" if worst else "score")


def _bank(history: Sequence[Summary]) -> Html:
    banks = {entry["round"]: entry["bank"] for entry in history if entry.get("bank")}
    if not banks:
        return Html("")
    last = banks[max(banks)]
    low = ranges([number for number, bank in banks.items() if bank["effective_rank"] < 2])
    parts = (
        [
            tag(
                "p",
                tag("b", "The bank collapsed: "),
                f"its effective rank was below 2 in round {low}, so that its prototypes do not tell sites apart.",
                class_="note",
            )
        ]
        if low
        else []
    )
    titles = {
        "size": f"Prototypes, now {last['size']:,}",
        "effective_rank": f"Effective rank, now {number(last['effective_rank'])}",
        "mean_cosine": f"Mean cosine, now {number(last['mean_cosine'])}",
    }
    lines = {title: {"bank": [bank[key] for bank in banks.values()]} for key, title in titles.items()}
    plots = [plot(title, list(banks), line) for title, line in lines.items()]
    shares = [_share(word, last.get(f"by_{word}") or {}) for word in ("modality", "site")]
    return section("Knowledge bank", *parts, tag("div", *plots, class_="plots"), tag("div", *shares, class_="two"))


def _share(word: str, counts: Mapping[str, int]) -> Html:
    most = max(counts.values(), default=0) or 1
    rows = [[name or "unnamed", f"{counts[name]:,}", bar(counts[name] / most)] for name in sorted(counts, key=natural)]
    return tag("div", table([f"By {word}, last round", "Prototypes", ""], rows, text=(0, 2)))


def _missing(history: Sequence[Summary]) -> Html:
    grouped: dict[tuple[str, str], list[int]] = {}
    for entry in history:
        for site, reason in entry["missing"].items():
            grouped.setdefault((site, reason), []).append(entry["round"])
    rows = [[site, ranges(grouped[site, reason]), reason] for site, reason in sorted(grouped)]
    if not rows:
        return section("Missing replies", tag("p", "None in any training round."))
    return section("Missing replies", table(["Site", "Rounds", "Reason"], rows, text=(0, 1, 2)))


def _pictures(pictures: Mapping[str, bytes]) -> Html:
    if not pictures:
        return section("Predictions", tag("p", "Pictures of real cases stay in each site's state folder."))
    figures = (
        tag("figure", image(pictures[caption], caption), tag("figcaption", caption))
        for caption in sorted(pictures, key=natural)
    )
    return section("Predictions", tag("div", *figures, class_="pictures"))


def _traffic(history: Sequence[Summary]) -> Html:
    rows = [
        [
            entry["round"],
            site,
            f"{row['num_samples']:,}",
            number(row["train_loss"]),
            size(row["bytes_down"]),
            size(row["bytes_up"]),
            duration(row["seconds"]),
        ]
        for entry in history
        for site, row in sorted(entry["sites"].items(), key=lambda item: natural(item[0]))
    ]
    if not rows:
        return section("Traffic and time", tag("p", "No reply was accepted."))
    headers = ["Round", "Site", "Samples", "Train loss", "To the site", "From the site", "Time"]
    return section("Traffic and time", table(headers, rows, text=(0, 1)))


def _provenance(summary: Summary) -> Html:
    part = summary["partition"]
    numbers = [[key, f"{value:,}"] for key, value in part.items() if key != "hash"]
    hashes = {"partition": part["hash"], "shared, start": summary["init_hash"], "shared, end": summary["final_hash"]}
    rows = [[key, tag("code", value or NONE)] for key, value in hashes.items()]
    versions = " · ".join(f"{package} {version}" for package, version in summary["versions"].items())
    tables = table(["Part of the model", "Values"], numbers), table(["Hash of", "SHA-256"], rows, text=(0, 1))
    return section("Provenance", tag("div", *tables, class_="two"), tag("p", versions, class_="soft"))


def _first_metric(summary: Summary) -> str | None:
    """Metrics come in the task's order; a failed run has them only in its history."""
    rows = [*summary["sites"].values(), *(row for entry in summary["history"] for row in entry["sites"].values())]
    return next((name for row in rows for name in row["metrics"]), None)


def _sites(summary: Summary) -> list[str]:
    seen = {name for entry in summary["history"] for name in (*entry["sites"], *entry["missing"])}
    return sorted(seen | set(summary["sites"]), key=natural)
