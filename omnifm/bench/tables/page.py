"""A benchmark table as one self-contained HTML page: scores with intervals, differences, curves, and the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omnifm.bench.tables import drawings
from omnifm.bench.tables.lint import alone_of
from omnifm.report.elements import Cell, Key, Note, Strong, Table, legend
from omnifm.report.metric_names import metric_name
from omnifm.report.numbers import NONE, counted, number, size
from omnifm.report.plots import Plot
from omnifm.report.render import render

SOURCES = {"demo": "synthetic demo data", "site": "real data"}
COSTS = ("values shared", "values at home", "values moved", "from sites", "to sites", "local steps")
Column = Mapping[str, Any]
"""What `one_federation.compare` returns, with the column's header."""


@dataclass(frozen=True)
class ColumnPanel:
    """One column of the benchmark table.

    Attributes:
        header: whose data, how many sites, rounds and seeds.
        failed: contenders without a result, with the reason.
        plots: scores, and differences to the rival if there is one.
        curves: scores over rounds, or None.
        legend: of the curves.
        scores: metric -> its numbers.
        cost: values, bytes and steps; None if no contender has a result.
    """

    name: str
    header: str
    failed: Sequence[Note]
    plots: Sequence[Plot]
    curves: Plot | None
    legend: Sequence[Key]
    scores: Mapping[str, Table]
    cost: Table | None


@dataclass(frozen=True)
class TablesPage:
    """The page; `overview` is None if there is one column only."""

    title: str
    caption: Sequence[str]
    is_demo: bool
    overview: Table | None
    columns: Sequence[ColumnPanel]


def page(title: str, caption: Sequence[str], columns: Mapping[str, Column]) -> bytes:
    """Return the page.

    Args:
        title: of the benchmark table.
        caption: paragraphs below the title.
        columns: name -> column.
    """
    content = TablesPage(
        title=title,
        caption=caption,
        is_demo=any(column.get("source") == "demo" for column in columns.values()),
        overview=_overview(columns) if len(columns) > 1 else None,
        columns=[_panel(name, column) for name, column in columns.items()],
    )
    return render("tables.html.j2", content)


def main_metric(column: Column) -> str:
    """Return the metric that a column is about."""
    return str(column["shown"][0])


def budget(column: Column) -> str:
    """Describe whose data, how many sites and seeds, and how long they train; then the column's own note."""
    text = (
        f"{column['data']}: {counted(len(column['sites']), 'site')}, {counted(column['num_rounds'], 'round')} of "
        f"{counted(column['local_epochs'], 'epoch')}, {counted(column['seeds'], 'seed')}"
    )
    return f"{text}.  {column['note']}".rstrip(".") if column.get("note") else text


def alone(column: Column) -> str:
    """Return the name of the row where each site trains without the others."""
    return alone_of(column["rows"])


def trains_alone(column: Column) -> bool:
    """Return whether there is a row where each site trains without the others."""
    return alone(column) in column["rows"]


def ranked(column: Column) -> bool:
    """Return whether a row has a knowledge bank, whose effective rank is shown."""
    return any(row["effective_rank"] is not None for row in column["rows"].values())


def tuned_on(column: Column) -> str:
    """Return the header of the tuned settings.

    Tuning chooses by the task's first metric, also where a paper shows another one.
    """
    return f"chosen on validation {next(iter(column['metrics']))}"


def cost_rows(column: Column, metric: str) -> list[list[str]]:
    """Return a row for each contender: its name, `COSTS`, rounds to 90 % of the best score, tuned settings."""
    rows = []
    for name, row in column["rows"].items():
        facts = row["facts"]
        values = (facts["num_values"]["shared"], facts["num_values"]["personal"], facts["values_moved"])
        rows.append(
            [
                name,
                *(f"{value:,}" for value in values),
                size(facts["bytes_up"]),
                size(facts["bytes_down"]),
                f"{facts['steps'][0]:,}",
                str(row["rounds_to_90"][metric] or "never"),
                settings(column, name),
            ]
        )
    return rows


def spread(row: Mapping[str, Any]) -> str:
    """Write mean and standard deviation over seeds; of one seed the mean alone."""
    if row["mean"] is None or row["std_over_seeds"] is None:
        return number(row["mean"])
    return f"{number(row['mean'])} ± {number(row['std_over_seeds'])}"


def versus(row: Mapping[str, Any]) -> str:
    """Write the difference to the rival, with its interval where there is one."""
    pair = row.get("against_rival")
    if not pair or pair["difference"] is None:
        return NONE
    interval = "" if pair["low"] is None else f" [{pair['low']:+.3f}, {pair['high']:+.3f}]"
    return f"{pair['difference']:+.3f}{interval}"


def settings(column: Column, name: str) -> str:
    """Write the settings that tuning chose for a row; `(edge)` marks the lowest and the highest value tried."""
    points = column.get("tried", {}).get(name, [])
    words = []
    for part, chosen in column.get("chosen", {}).get(name, {}).items():
        for key, value in chosen.items():
            tried = [point["value"] for point in points if point["key"] == f"{part}.{key}"]
            is_edge = bool(tried) and value in (min(tried), max(tried))
            words.append(f"{key} {value:g}{' (edge)' if is_edge else ''}")
    return ", ".join(words) or NONE


def _overview(columns: Mapping[str, Column]) -> Table:
    names = list(dict.fromkeys(name for column in columns.values() for name in column["rows"]))
    headers = [f"{name} ({metric_name(main_metric(column))})" for name, column in columns.items()]
    rows = [[name, *(_mean(column, name) for column in columns.values())] for name in names]
    return Table(["", *headers], rows, tight=True)


def _mean(column: Column, name: str) -> str:
    row = column["rows"].get(name)
    return NONE if row is None else number(row[main_metric(column)]["after"]["mean"])


def _panel(name: str, column: Column) -> ColumnPanel:
    main = main_metric(column)
    has_rows = bool(column["rows"])
    plots = [drawings.scores(name, column, main), drawings.differences(name, column, main)] if has_rows else []
    header = (budget(column), SOURCES.get(column.get("source", "")))
    return ColumnPanel(
        name=name,
        header=" · ".join(text for text in header if text),
        failed=[Note(f"{row} failed: {reason}") for row, reason in column.get("failed", {}).items()],
        plots=[plot for plot in plots if plot],
        curves=drawings.curves(name, column, main) if has_rows else None,
        legend=legend(column["rows"]),
        scores={metric_name(metric): _scores(column, metric) for metric in column["shown"]} if has_rows else {},
        cost=_cost(column, main) if has_rows else None,
    )


def _scores(column: Column, metric: str) -> Table:
    rival, has_bank = column["rival"], ranked(column)
    headers = [
        "",
        "As received",
        "After local training",
        "Worst site",
        "Spread over sites",
        *_if(trains_alone(column), f"Sites worse than {alone(column)}"),
        *_if(rival, f"Against {rival} [95 %]"),
        *_if(has_bank, "Effective rank"),
        *column["sites"],
    ]
    trivial = {f"{name} (trivial)": row for name, row in column["trivial"].items() if metric in row}
    rows: list[list[Cell]] = []
    for name, row in (column["rows"] | trivial).items():
        before, after = row[metric]["before"], row[metric]["after"]
        rows.append(
            [
                name,
                spread(before),
                Strong(spread(after)),
                number(after["worst_site"]),
                number(after["std_over_sites"]),
                *_if(trains_alone(column), str(after.get("sites_below_local", NONE))),
                *_if(rival, versus(after)),
                *_if(has_bank, number(row.get("effective_rank"))),
                *map(number, after["per_site"]),
            ]
        )
    return Table(headers, rows, tight=True)


def _if(condition: object, text: str) -> Iterable[str]:
    """Return the text as the only cell, or no cell."""
    return [text] if condition else []


def _cost(column: Column, metric: str) -> Table:
    headers = [
        "",
        *(header.capitalize() for header in COSTS),
        f"Rounds to 90 % of best {metric_name(metric)}",
        tuned_on(column).capitalize(),
    ]
    return Table(headers, cost_rows(column, metric), text=(0, 8), tight=True)
