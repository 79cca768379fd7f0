"""`site-report.html`: the page of a site's own test, for its own staff.  It shows its cases and never leaves."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omnifm.config import Experiment
from omnifm.records import Json, MetricRecord
from omnifm.report.metric_names import units
from omnifm.report.site_page import site_page
from omnifm.state import write_atomic
from omnifm.statistics import Statistics
from omnifm.update import Score

NAME = "site-report.html"
logger = logging.getLogger("omnifm.site")


@dataclass(frozen=True)
class Tested:
    """The outcome of a site's test.

    Attributes:
        site: the site's name in the federation.
        experiment: the job.
        data: name of the data set.
        facts: what the task tells about the data.
        before, after: scores of the received model and of the locally trained one.
        statistics: all of them, also those that rest on few cases and stay here.
    """

    site: str
    experiment: Experiment
    data: str
    facts: Json
    before: Mapping[str, Score]
    after: Mapping[str, Score]
    statistics: Statistics


def write_site_page(tested: Tested, metrics: Sequence[str], pictures: Mapping[str, bytes], folder: Path) -> None:
    """Write the page into the job's folder in the site's state folder, readable by its owner only.

    A page that cannot be drawn does not fail the run.

    Args:
        metrics: names of the task's metrics, in the order of the page.
        pictures: PNG files by caption.
    """
    job = tested.experiment
    words = [f"task {job.task['name']}", f"data {tested.data}", f"method {job.method['name']}", f"seed {job.seed}"]
    try:
        page = site_page(
            tested.site,
            f"job {job.job} · {' · '.join(words)}",
            {name: _record(tested.before[name], tested.after[name]) for name in metrics},
            units(tested.facts, metrics),
            tested.statistics,
            pictures,
        )
        write_atomic(folder / NAME, page)
    except Exception as error:  # noqa: BLE001  # whatever is wrong with the page, the scores are right
        logger.error("%s could not be written (%s); the scores are complete", NAME, type(error).__name__)


def _record(before: Score, after: Score) -> MetricRecord:
    return {"before": before.mean, "after": after.mean, "support": after.support, "undefined": after.undefined}
