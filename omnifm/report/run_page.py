"""What the report of a run shows, from top to bottom, computed from summary.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from omnifm.records import RoundEntry, SiteRecord, SiteRound, Summary
from omnifm.report import data_changes
from omnifm.report.bank import Bank, bank_panel
from omnifm.report.classes import ClassPanel, class_panel, small_classes_note
from omnifm.report.elements import Card, Cell, Code, Key, Note, Picture, Table, in_natural_order, legend
from omnifm.report.joining import Joining, joining
from omnifm.report.metric_names import common_unit, metric_name
from omnifm.report.numbers import NONE, Score, defined, duration, natural, number, ranges, size
from omnifm.report.plots import Plot, plot
from omnifm.report.scores import (
    COUNTED,
    across_sites,
    checkpoint_table,
    counts,
    patients_note,
    score_table,
    site_names,
    site_table,
)

MAX_PANELS = 12
"""Largest number of sites whose classes the page shows; summary.json holds all of them."""


@dataclass(frozen=True)
class Training:
    """Curves over rounds, one for each site."""

    legend: Sequence[Key]
    plots: Sequence[Plot]


@dataclass(frozen=True)
class RunPage:
    """The page; None where there is nothing to show."""

    title: str
    job: str
    status: str
    settings: str
    reason: Note | None
    is_demo: bool
    cards: Sequence[Card]
    training: Training | None
    data: Table | None
    patients: Note | None
    data_changed: Note | None
    scores: Table | None
    across_sites: Table | None
    checkpoints: Table | None
    joining: Joining | None
    panels: Sequence[ClassPanel]
    small_classes: str
    bank: Bank | None
    missing: Table | None
    pictures: Sequence[Picture]
    traffic: Table | None
    sections: Sequence[Table]
    parts: Table
    hashes: Table
    versions: str


def run_page(summary: Summary, pictures: Mapping[str, bytes]) -> RunPage:
    """Return what the page of a run shows; the arguments are those of `write_report`."""
    history, status = summary["history"], summary["status"]
    is_demo = summary["data_source"] == "demo"
    words = [
        f"task {summary['task']}",
        "synthetic demo data" if is_demo else "data of the sites",
        f"method {summary['method']}",
        f"seed {summary['seed']}",
    ]
    if "finished" in summary:
        words.append(f"finished {summary['finished']}")
    reason = summary["reason"]
    return RunPage(
        title=f"{summary['job']}: {status}",
        job=summary["job"],
        status=status,
        settings=" · ".join(words),
        reason=Note(reason, status, severe=status == "FAILED") if reason else None,
        is_demo=is_demo,
        cards=_cards(summary),
        training=_training(summary),
        data=site_table(summary),
        patients=patients_note(summary),
        data_changed=data_changes.note(summary),
        scores=score_table(summary),
        across_sites=across_sites(summary),
        checkpoints=checkpoint_table(summary["sites"]),
        joining=joining(summary, _first_metric(summary)),
        panels=_panels(summary),
        small_classes=small_classes_note(),
        bank=bank_panel(history),
        missing=_missing(history),
        pictures=in_natural_order(pictures),
        traffic=_traffic(history),
        sections=_sections(summary),
        parts=_parts(summary),
        hashes=_hashes(summary),
        versions=" · ".join(f"{package} {version}" for package, version in summary["versions"].items()),
    )


# Cards.
def _cards(summary: Summary) -> list[Card]:
    sites, rounds = summary["sites"], summary["rounds"]
    sites_note = "of those asked in any round"
    return [
        Card("Rounds", f"{rounds['completed']} of {rounds['planned']}", "completed of planned"),
        Card("Sites with test scores", f"{len(sites)} of {len(site_names(summary))}", sites_note),
        _cases_card(list(sites.values())),
        *_score_cards(summary),
        *_cost_cards(summary["history"]),
    ]


def _cases_card(sites: Sequence[SiteRecord]) -> Card:
    total = {key: sum(counts(site)[key] for site in sites) for key in COUNTED}
    usable = total["train"] + total["validation"] + total["test"]
    return Card("Cases", f"{usable:,}", ", ".join(f"{count:,} {key}" for key, count in total.items()))


def _score_cards(summary: Summary) -> list[Card]:
    name = _first_metric(summary) or "score"
    scores = [site["metrics"].get(name) for site in summary["sites"].values()]
    pairs: list[tuple[Score, Score]] = [(s["before"], s["after"]) if s else (None, None) for s in scores]
    before = [score for score, _ in pairs if defined(score)]
    is_same_sites = all(defined(first) == defined(second) for first, second in pairs)
    note = "as received → after local training" + ("" if is_same_sites else ", over different sites: see below")
    overall = summary["aggregate"].get(name)
    after, worst, worst_site = None, None, "no site has test scores"
    if overall:
        after, worst, worst_site = overall["mean"], overall["worst"], overall["worst_site"]
    mean = f"{number(sum(before) / len(before) if before else None)} → {number(after)}"
    words = metric_name(name, common_unit(name, summary["sites"].values()))
    return [Card(f"Mean {words}, test", mean, note), Card(f"Worst {words}, test", number(worst), worst_site)]


def _cost_cards(history: Sequence[RoundEntry]) -> list[Card]:
    replies = [row for entry in history for row in entry["sites"].values()]
    slowest = sum(max((row["seconds"] for row in entry["sites"].values()), default=0.0) for entry in history)
    total = sum(row["seconds"] for row in replies)
    return [
        Card("Sent by sites", size(sum(row["bytes_up"] for row in replies)), "accepted training replies"),
        Card("Sent to sites", size(sum(row["bytes_down"] for row in replies)), "models and what comes with them"),
        Card("Time at sites", duration(total), f"{duration(slowest)} for the slowest of each round"),
    ]


# Curves.
def _training(summary: Summary) -> Training | None:
    history, sites, name = summary["history"], site_names(summary), _first_metric(summary)
    if not history:
        return None
    rounds = [entry["round"] for entry in history]

    def lines(read: Callable[[SiteRound], Score]) -> dict[str, list[Score]]:
        """Return what `read` finds in each round, one line for each site; None where the site has no reply."""
        return {
            site: [read(entry["sites"][site]) if site in entry["sites"] else None for entry in history]
            for site in sites
        }

    plots = [plot("Training loss", rounds, lines(lambda row: row.get("train_loss")))]
    if name:
        received = lines(lambda row: row.get("before", {}).get(name))
        trained = lines(lambda row: row.get("metrics", {}).get(name))
        scores = [value for values in (*received.values(), *trained.values()) for value in values if defined(value)]
        if scores:
            words = metric_name(name, common_unit(name, summary["sites"].values()))
            limits = (min(scores), max(scores))  # one scale, so that the gain from local training can be seen
            plots += [
                plot(f"Validation {words}, shared model as received", rounds, received, limits),
                plot(f"Validation {words}, after local training", rounds, trained, limits),
            ]
    return Training(legend(sites), plots)


def _panels(summary: Summary) -> list[ClassPanel]:
    sites = summary["sites"]
    panels = [class_panel(name, sites[name].get("statistics", {})) for name in site_names(summary) if name in sites]
    return [panel for panel in panels if not panel.is_empty][:MAX_PANELS]


# Replies.
def _missing(history: Sequence[RoundEntry]) -> Table | None:
    grouped: dict[tuple[str, str], list[int]] = {}
    for entry in history:
        for site, reason in entry["missing"].items():
            grouped.setdefault((site, reason), []).append(entry["round"])
    rows = [[site, ranges(grouped[site, reason]), reason] for site, reason in sorted(grouped)]
    return Table(["Site", "Rounds", "Reason"], rows, text=(0, 1, 2)) if rows else None


def _traffic(history: Sequence[RoundEntry]) -> Table | None:
    rows = [
        [
            str(entry["round"]),
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
    headers = ["Round", "Site", "Samples", "Train loss", "To the site", "From the site", "Time"]
    return Table(headers, rows, text=(0, 1)) if rows else None


# Provenance.
def _sections(summary: Summary) -> list[Table]:
    """The settings of the run, one table for each section of experiment.json."""
    return [
        Table([section.capitalize(), ""], [[name, _setting(value)] for name, value in values.items()], text=(0, 1))
        for section, values in summary.get("settings", {}).items()
        if values
    ]


def _setting(value: object) -> str:
    """The value as experiment.json holds it; a text without its quotation marks."""
    return NONE if value is None else value if isinstance(value, str) else json.dumps(value)


def _parts(summary: Summary) -> Table:
    rows = [[part, f"{num_values:,}"] for part, num_values in summary["partition"].items() if part != "hash"]
    return Table(["Part of the model", "Values"], rows)


def _hashes(summary: Summary) -> Table:
    hashes = {
        "partition": summary["partition"]["hash"],
        "shared, start": summary["init_hash"],
        "shared, end": summary["final_hash"],
    }
    rows: list[list[Cell]] = [[name, Code(value or NONE)] for name, value in hashes.items()]
    return Table(["Hash of", "SHA-256"], rows, text=(0, 1))


def _first_metric(summary: Summary) -> str | None:
    """Return the task's first metric; a failed run has metrics in its history only."""
    tested = [name for site in summary["sites"].values() for name in site["metrics"]]
    rounds = [row for entry in summary["history"] for row in entry["sites"].values()]
    return next(iter([*tested, *(name for row in rounds for name in row["metrics"])]), None)
