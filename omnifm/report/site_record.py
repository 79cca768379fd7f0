"""A site's test as summary.json holds it: its counts and scores, for the report of the run and the page of the site."""

from __future__ import annotations

from typing import cast

from omnifm.records import Facts, MetricRecord, SiteRecord
from omnifm.report.metric_names import units
from omnifm.statistics import Statistics
from omnifm.update import Update


def site_record(facts: Facts, update: Update) -> SiteRecord:
    """A site's counts and its test scores, before and after local training.

    Args:
        facts: what the site described.
        update: its evaluation.
    """
    metrics: dict[str, MetricRecord] = {
        name: {
            "before": update.before[name].mean,
            "after": after.mean,
            "support": after.support,
            "undefined": after.undefined,
        }
        for name, after in update.after.items()
    }
    record: SiteRecord = {
        "num_train": facts["num_train"],
        "num_validation": facts["num_validation"],
        "num_test": facts["num_test"],
        "num_refused": facts["num_refused"],
        "modalities": facts["modalities"],
        "source": facts["source"],
        "metrics": metrics,
        "units": units(facts["data"], metrics),
        "statistics": cast(Statistics, update.statistics),
    }
    if "split_by" in facts:
        record["split_by"] = facts["split_by"]
    return record
