"""What the report of a run shows, from top to bottom, computed from summary.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from omnifm.metrics.rivals import rivals
from omnifm.records import MetricRecord, RoundEntry, SiteRecord, SiteRound, Summary
from omnifm.report.elements import (
    Bar,
    Card,
    Cell,
    Code,
    Key,
    Note,
    Picture,
    ScoreCell,
    Table,
    in_natural_order,
    legend,
)
from omnifm.report.numbers import NONE, Score, defined, duration, natural, number, ranges, size
from omnifm.report.plots import Plot, plot

COUNTED = ("train", "validation", "test", "refused")
"""Counts of cases, in the order of the columns."""


@dataclass(frozen=True)
class Training:
    """Curves over rounds, one for each site."""

    legend: Sequence[Key]
    plots: Sequence[Plot]


@dataclass(frozen=True)
class Bank:
    """State of the knowledge bank over rounds, and whose prototypes it holds after the last one."""

    collapsed: Note | None
    plots: Sequence[Plot]
    shares: Sequence[Table]


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
    results: Table | None
    across_sites: Table | None
    bank: Bank | None
    missing: Table | None
    pictures: Sequence[Picture]
    traffic: Table | None
    parts: Table
    hashes: Table
    versions: str


def run_page(summary: Summary, pictures: Mapping[str, bytes]) -> RunPage:
    """Return what the page of a run shows; the arguments are those of `write_report`."""
    history, status = summary["history"], summary["status"]
    words = [f"task {summary['task']}", f"method {summary['method']}", f"seed {summary['seed']}"]
    if "data" in summary:
        words.insert(1, f"data {summary['data']}")
    reason = summary["reason"]
    return RunPage(
        title=f"{summary['job']}: {status}",
        job=summary["job"],
        status=status,
        settings=" · ".join(words),
        reason=Note(reason, status, severe=status == "FAILED") if reason else None,
        is_demo=summary["data_source"] == "demo",
        cards=_cards(summary),
        training=_training(summary),
        results=_results(summary),
        across_sites=_across_sites(summary),
        bank=_bank(history),
        missing=_missing(history),
        pictures=in_natural_order(pictures),
        traffic=_traffic(history),
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
        Card("Sites with test scores", f"{len(sites)} of {len(_site_names(summary))}", sites_note),
        _cases_card(list(sites.values())),
        *_score_cards(summary),
        *_cost_cards(summary["history"]),
    ]


def _counts(site: SiteRecord) -> dict[str, int]:
    return {
        "train": site["num_train"],
        "validation": site["num_validation"],
        "test": site["num_test"],
        "refused": site["num_refused"],
    }


def _cases_card(sites: Sequence[SiteRecord]) -> Card:
    total = {key: sum(_counts(site)[key] for site in sites) for key in COUNTED}
    usable = total["train"] + total["validation"] + total["test"]
    return Card("Cases", f"{usable:,}", ", ".join(f"{count:,} {key}" for key, count in total.items()))


def _score_cards(summary: Summary) -> list[Card]:
    name = _first_metric(summary) or "score"
    scores = [site["metrics"].get(name) for site in summary["sites"].values()]
    pairs: list[tuple[Score, Score]] = [(s["before"], s["after"]) if s else (None, None) for s in scores]
    before = [score for score, _ in pairs if defined(score)]
    is_same_sites = all(defined(first) == defined(second) for first, second in pairs)
    note = "before → after local training" + ("" if is_same_sites else ", over different sites: see below")
    overall = summary["aggregate"].get(name)
    after, worst, worst_site = None, None, "no site has test scores"
    if overall:
        after, worst, worst_site = overall["mean"], overall["worst"], overall["worst_site"]
    mean = f"{number(sum(before) / len(before) if before else None)} → {number(after)}"
    return [Card(f"Mean {name}, test", mean, note), Card(f"Worst {name}, test", number(worst), worst_site)]


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
    history, sites, name = summary["history"], _site_names(summary), _first_metric(summary)
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
            limits = (min(scores), max(scores))  # one scale, so that the gain from local training can be seen
            plots += [
                plot(f"Validation {name}, before local training", rounds, received, limits),
                plot(f"Validation {name}, after local training", rounds, trained, limits),
            ]
    return Training(legend(sites), plots)


# Test scores.
def _results(summary: Summary) -> Table | None:
    sites = summary["sites"]
    metrics = rivals(dict.fromkeys(name for site in sites.values() for name in site["metrics"]))
    rows: list[list[Cell]] = []
    for name in _site_names(summary):
        if name not in sites:
            rows.append([name, *[NONE] * (len(COUNTED) + 1), *["no test scores"] * len(metrics)])
            continue
        site = sites[name]
        modalities = ", ".join(f"{code or 'unnamed'} {count:,}" for code, count in site["modalities"].items())
        counts = (f"{count:,}" for count in _counts(site).values())
        scores = (_score(summary, name, metric, others) for metric, others in metrics.items())
        rows.append([name, *counts, modalities or NONE, *scores])
    headers = ["Site", *(key.capitalize() for key in COUNTED), "Modalities", *metrics]
    return Table(headers, rows, text=(0, 1 + len(COUNTED))) if rows else None


def _across_sites(summary: Summary) -> Table | None:
    rows = [
        [metric, number(found["mean"]), number(found["std"]), number(found["worst"]), found["worst_site"]]
        for metric, found in summary["aggregate"].items()
    ]
    headers = ["Metric", "Mean", "Standard deviation", "Worst", "Worst site"]
    return Table(headers, rows, text=(0, 4)) if rows else None


def _score(summary: Summary, site: str, metric: str, others: Mapping[str, str]) -> Cell:
    scores = summary["sites"][site]["metrics"]
    if metric not in scores:
        return NONE
    score, overall = scores[metric], summary["aggregate"].get(metric)
    undefined = f", {score['undefined']:,} undefined" if score["undefined"] else ""
    change, direction = _change(summary, metric, score)
    return ScoreCell(
        before=number(score["before"]),
        after=number(score["after"]),
        change=change,
        direction=direction,
        notes=f"n {score['support']:,}{undefined}",
        is_worst=overall is not None and overall["worst_site"] == site and len(summary["sites"]) > 1,
        others=[f"{name} {number(scores[key]['after'])}" for name, key in others.items() if key in scores],
    )


def _change(summary: Summary, metric: str, score: MetricRecord) -> tuple[str, str]:
    """Return the change of a score in words, and whether it is `up` (better), `down` (worse) or unknown (empty)."""
    before, after = score["before"], score["after"]
    if not defined(before) or not defined(after):
        return "", ""
    # The summary does not say whether a higher score is better.  The worst site tells: it is below the mean if so.
    overall = summary["aggregate"].get(metric)
    sign = overall["mean"] - overall["worst"] if overall else 0
    gain = (after - before) * sign
    direction = ""
    if gain:
        direction = "up" if gain > 0 else "down"
    return f"{after - before:+.3f}", direction


# Knowledge bank.
def _bank(history: Sequence[RoundEntry]) -> Bank | None:
    banks = {entry["round"]: entry["bank"] for entry in history if entry.get("bank")}
    if not banks:
        return None
    last = banks[max(banks)]
    titles = {
        "size": f"Prototypes, now {last['size']:,}",
        "effective_rank": f"Effective rank, now {number(last['effective_rank'])}",
        "mean_cosine": f"Mean cosine, now {number(last['mean_cosine'])}",
    }
    plots = [
        plot(title, list(banks), {"bank": [bank[key] for bank in banks.values()]}) for key, title in titles.items()
    ]
    collapsed = [number for number, bank in banks.items() if bank["effective_rank"] < 2]
    shares = [_share(word, last.get(f"by_{word}") or {}) for word in ("modality", "site")]
    return Bank(_collapse(collapsed) if collapsed else None, plots, shares)


def _collapse(rounds: Sequence[int]) -> Note:
    words = f"its effective rank was below 2 in round {ranges(rounds)}, so that its prototypes do not tell sites apart."
    return Note(words, "The bank collapsed")


def _share(word: str, counts: Mapping[str, int]) -> Table:
    most = max(counts.values(), default=0) or 1
    rows: list[list[Cell]] = [
        [name or "unnamed", f"{counts[name]:,}", Bar(counts[name] / most)] for name in sorted(counts, key=natural)
    ]
    return Table([f"By {word}, last round", "Prototypes", ""], rows, text=(0, 2))


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


def _site_names(summary: Summary) -> list[str]:
    seen = {name for entry in summary["history"] for name in (*entry["sites"], *entry["missing"])}
    return sorted(seen | set(summary["sites"]), key=natural)
