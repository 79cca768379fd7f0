"""The page of one site's own test: scores with intervals, the tested model, classes, and pictures of its cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omnifm.config import Experiment
from omnifm.metrics.rivals import rivals
from omnifm.records import MetricRecord, SiteRecord
from omnifm.report.classes import ClassPanel, class_panel
from omnifm.report.elements import Cell, Picture, Stacked, Table, in_natural_order
from omnifm.report.metric_names import metric_name
from omnifm.report.numbers import NONE, number
from omnifm.report.render import render
from omnifm.report.scores import checkpoint_words, data_words, interval_words
from omnifm.statistics import Moment, Statistics


@dataclass(frozen=True)
class SitePage:
    """The page; None where there is nothing to show."""

    title: str
    site: str
    settings: str
    is_demo: bool
    scores: Table
    checkpoints: Table | None
    panel: ClassPanel
    pictures: Sequence[Picture]


def site_page(site: str, experiment: Experiment, record: SiteRecord, pictures: Mapping[str, bytes]) -> bytes:
    """Return the page, an HTML file.

    Args:
        site: the site's name in the federation.
        record: the site's scores, with all statistics.
        pictures: PNG files by caption; they show the site's cases.
    """
    statistics = record.get("statistics", {})
    words = [
        f"job {experiment.job}",
        f"task {experiment.task['name']}",
        f"data {data_words(record)}",
        f"method {experiment.method['name']}",
        f"seed {experiment.seed}",
    ]
    page = SitePage(
        title=f"{site}: test",
        site=site,
        settings=" · ".join(words),
        is_demo=record.get("source") == "demo",
        scores=_scores(record["metrics"], record.get("units", {}), statistics),
        checkpoints=_checkpoints(statistics),
        panel=class_panel("this site", statistics),
        pictures=in_natural_order(pictures),
    )
    return render("site.html.j2", page)


def _scores(scores: Mapping[str, MetricRecord], units: Mapping[str, str], statistics: Statistics) -> Table:
    rows: list[list[Cell]] = []
    for metric, others in rivals(scores).items():
        score = scores[metric]
        baselines = ", ".join(f"{name} {number(scores[key]['after'])}" for name, key in others.items())
        cells = [_cell(score[moment], statistics, moment, metric) for moment in ("before", "after")]
        undefined = f"{score['undefined']:,} undefined" if score["undefined"] else ""
        name = metric_name(metric, units.get(metric))
        rows.append([name, *cells, Stacked(f"{score['support']:,}", undefined), baselines or NONE])
    headers = ["Metric", "Shared model as received", "After local training", "Cases", "Simple baselines"]
    return Table(headers, rows, text=(0, 4))


def _cell(value: float | None, statistics: Statistics, moment: Moment, metric: str) -> Stacked:
    return Stacked(number(value), interval_words(statistics, moment, metric))


def _checkpoints(statistics: Statistics) -> Table | None:
    found = statistics.get("checkpoints", {})
    names: dict[Moment, str] = {"before": "Shared model as received", "after": "After local training"}
    rows = [[words, *checkpoint_words(moment, found[moment])] for moment, words in names.items() if moment in found]
    metric = next((chosen["metric"] for chosen in found.values()), "score")
    return Table(["Model", "From", f"Validation {metric_name(metric)}"], rows, text=(0, 1)) if rows else None
