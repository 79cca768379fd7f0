"""Test scores of a run's sites: who was tested on what, with which checkpoint, and how well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omnifm.metrics.rivals import rivals
from omnifm.records import MetricRecord, SiteRecord, Summary
from omnifm.report.elements import Cell, Note, ScoreCell, Table
from omnifm.report.metric_names import common_unit, metric_name
from omnifm.report.numbers import NONE, defined, natural, number
from omnifm.statistics import Checkpoint, Moment, Statistics

COUNTED = ("train", "validation", "test", "refused")
"""Counts of cases, in the order of the columns."""
SPLITS = {"patient": "patients", "image": "pictures; patients unknown"}
"""What a site's splits rest on, in words."""
SOURCES = {"demo": "synthetic demo", "site": "own"}
"""Whose data a site has, in words."""


def counts(site: SiteRecord) -> dict[str, int]:
    """Number of a site's cases by what they are used for."""
    return {
        "train": site["num_train"],
        "validation": site["num_validation"],
        "test": site["num_test"],
        "refused": site["num_refused"],
    }


def site_names(summary: Summary) -> list[str]:
    """All sites that the run asked, site-2 before site-10."""
    seen = {name for entry in summary["history"] for name in (*entry["sites"], *entry["missing"])}
    return sorted(seen | set(summary["sites"]), key=natural)


def data_words(site: SiteRecord) -> str:
    """Whose data a site has.  What the hospital itself calls them stays there: it may hold a patient's name."""
    return SOURCES.get(site.get("source", ""), NONE)


def site_table(summary: Summary) -> Table | None:
    """Each site's data: whose, number of cases, modalities, and what its splits rest on."""
    rows: list[list[Cell]] = []
    for name in site_names(summary):
        if name not in summary["sites"]:
            rows.append([name, "no test scores", *[NONE] * (len(COUNTED) + 2)])
            continue
        site = summary["sites"][name]
        modalities = ", ".join(f"{code or 'unnamed'} {count:,}" for code, count in site["modalities"].items())
        splits = SPLITS.get(site.get("split_by", ""), NONE)
        numbers = (f"{count:,}" for count in counts(site).values())
        rows.append([name, data_words(site), *numbers, modalities or NONE, splits])
    headers = ["Site", "Data", *(key.capitalize() for key in COUNTED), "Modalities", "Splits rest on"]
    return Table(headers, rows, text=(0, 1, 2 + len(COUNTED), 3 + len(COUNTED))) if rows else None


def patients_note(summary: Summary) -> Note | None:
    """A warning if a site does not know which pictures are of one patient."""
    sites = summary["sites"]
    unknown = [name for name in site_names(summary) if name in sites and sites[name].get("split_by") == "image"]
    if not unknown or summary["data_source"] == "demo":
        return None
    text = (
        f"{', '.join(unknown)}: pictures of one patient may be in training and in test; then scores are too good. "
        "Prepare the data again with the patients named: omnifm prepare ... --patient."
    )
    return Note(text, "Patients unknown")


def score_table(summary: Summary) -> Table | None:
    """Each site's test scores, with the baselines of the same metric."""
    sites = summary["sites"]
    metrics = rivals(dict.fromkeys(name for site in sites.values() for name in site["metrics"]))
    rows: list[list[Cell]] = []
    for name in site_names(summary):
        scores = (_score(summary, name, metric, others) for metric, others in metrics.items())
        rows.append([name, *scores])
    headers = ["Site", *(metric_name(metric, common_unit(metric, sites.values())) for metric in metrics)]
    return Table(headers, rows) if rows and metrics else None


def across_sites(summary: Summary) -> Table | None:
    """Each metric over the sites, after local training."""
    sites = summary["sites"].values()
    rows = [
        [
            metric_name(metric, common_unit(metric, sites)),
            number(found["mean"]),
            number(found["std"]),
            number(found["worst"]),
            found["worst_site"],
        ]
        for metric, found in summary["aggregate"].items()
    ]
    headers = ["Metric", "Mean", "Standard deviation", "Worst", "Worst site"]
    return Table(headers, rows, text=(0, 4)) if rows else None


def checkpoint_table(sites: Mapping[str, SiteRecord]) -> Table | None:
    """Which model of the run each site tested, and the validation score by which it was chosen."""
    rows: list[list[Cell]] = []
    for name in sorted(sites, key=natural):
        chosen = sites[name].get("statistics", {}).get("checkpoints", {})
        if "before" in chosen and "after" in chosen:
            rows.append(
                [name, *checkpoint_words("before", chosen["before"]), *checkpoint_words("after", chosen["after"])]
            )
    metric = next((c["metric"] for site in sites.values() for c in _checkpoints(site)), "score")
    score = f"Validation {metric_name(metric)}"
    headers = ["Site", "Shared model as received", score, "After local training", score]
    return Table(headers, rows, text=(0, 1, 3)) if rows else None


def checkpoint_words(moment: Moment, chosen: Checkpoint) -> tuple[str, str]:
    """Where a checkpoint comes from, and its validation score."""
    if chosen["last"]:
        origin = "final shared model" if moment == "before" else "additional training after the last round"
    else:
        origin = f"round {chosen['round']}"
    return origin, number(chosen["score"])


def _checkpoints(site: SiteRecord) -> Sequence[Checkpoint]:
    return list(site.get("statistics", {}).get("checkpoints", {}).values())


def _score(summary: Summary, site: str, metric: str, others: Mapping[str, str]) -> Cell:
    if site not in summary["sites"]:
        return "no test scores"
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
        interval=interval_words(summary["sites"][site].get("statistics", {}), "after", metric),
    )


def interval_words(statistics: Statistics, moment: Moment, metric: str) -> str:
    """The 95 % interval of a metric in brackets; empty if there is none."""
    ends = statistics.get("intervals", {}).get(moment, {}).get(metric)
    return f"[{number(ends[0])}, {number(ends[1])}]" if ends else ""


def _change(summary: Summary, metric: str, score: MetricRecord) -> tuple[str, str]:
    """Return the change of a score in words, and whether it is `up` (better), `down` (worse) or unknown (empty)."""
    before, after = score["before"], score["after"]
    if not defined(before) or not defined(after):
        return "", ""
    gain = (after - before) * sign(summary, metric)
    direction = ""
    if gain:
        direction = "up" if gain > 0 else "down"
    return f"{after - before:+.3f}", direction


def sign(summary: Summary, metric: str) -> int | float:
    """Positive if higher is better, negative if lower is; 0 if unknown.

    An old summary does not say it.  Its worst site tells: it is below the mean if higher is better.
    """
    if metric in (known := summary.get("higher_is_better", {})):
        return 1 if known[metric] else -1
    overall = summary["aggregate"].get(metric)
    return overall["mean"] - overall["worst"] if overall else 0
