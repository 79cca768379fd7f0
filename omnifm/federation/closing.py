"""The last lines that a run prints: how it ended, what every site gained, and where its files lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omnifm.plugins import plugin
from omnifm.records import MetricRecord, Summary
from omnifm.report.data_changes import in_words
from omnifm.report.numbers import counted, natural, number

MEANING = {
    "COMPLETE": "all sites took part in all rounds",
    "SUBSET": "some sites did not take part all the time",
    "FAILED": "there is no result",
}
"""What the status of a run means."""


def closing_lines(summary: Summary, results: Path) -> list[str]:
    """The lines, without an end of line each.

    Args:
        results: the folder that holds summary.json and report.html.
    """
    rounds = counted(summary["rounds"]["completed"], "round")
    status = summary["status"]
    lines = [f"{status}: {summary['job']}, method {summary['method']}, {rounds}; {MEANING[status]}"]
    if summary["reason"]:
        lines.append(f"Reason: {summary['reason']}")
    lines += [f"Note:    {in_words(change)}" for change in summary.get("data_changes", [])]
    lines += _scores(summary)
    report = results / "report.html"
    if report.is_file():
        lines.append(f"Report:  {report}")
    return [*lines, f"Summary: {results / 'summary.json'}"]


def _scores(summary: Summary) -> Iterator[str]:
    """One line for each site, and one for all of them."""
    metrics = plugin("tasks", summary["task"]).metrics
    main = next(iter(metrics))
    if not summary["sites"]:
        return
    better = "higher" if metrics[main] else "lower"
    yield f"Test {main} ({better} is better), shared model as received -> after one more training at the site:"
    told = summary["aggregate"].get(main)
    width = max(map(len, summary["sites"]))
    for site in sorted(summary["sites"], key=natural):
        record = summary["sites"][site]["metrics"][main]
        worst = "  (worst site)" if told and len(summary["sites"]) > 1 and told["worst_site"] == site else ""
        yield f"  {site:{width}}  {_change(record)}{worst}"
    if told:
        yield f"  mean of {counted(len(summary['sites']), 'site')}: {number(told['mean'])}"


def _change(record: MetricRecord) -> str:
    return f"{number(record['before'])} -> {number(record['after'])}  ({counted(record['support'], 'case')})"
