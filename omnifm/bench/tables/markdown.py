"""A table as Markdown: the scores as a paper prints them, then the cost of each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from omnifm.bench.tables.page import (
    COSTS,
    alone,
    budget,
    cost_rows,
    main_metric,
    ranked,
    spread,
    trains_alone,
    tuned_on,
    versus,
)
from omnifm.bench.tables.records import Column, Document
from omnifm.report.numbers import NONE, number


def markdown(document: Document) -> str:
    """The whole table."""
    lines = [f"# {document['title']}", "", *(f"{line}\n" for line in document["caption"])]
    columns = document["columns"]
    if len(columns) > 1:
        lines += ["## After local training, mean over sites and seeds", "", *_overview(columns), ""]
    for name, column in columns.items():
        lines += [f"## {name}", "", *_column(column)]
    return "\n".join(lines)


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return [lines[0], "|---" * len(heads) + "|", *lines[1:]]


def _overview(columns: Mapping[str, Column]) -> list[str]:
    heads = [(name, metric) for name, column in columns.items() for metric in column["shown"]]
    names = dict.fromkeys(row for column in columns.values() for row in column["rows"])
    rows = []
    for row in names:
        found = [(columns[name]["rows"].get(row), metric) for name, metric in heads]
        means = [NONE if scores is None else number(scores[metric]["after"]["mean"]) for scores, metric in found]
        rows.append([row, *means])
    return grid(["", *(f"{name}, {metric}" for name, metric in heads)], rows)


def _column(column: Column) -> Iterator[str]:
    yield f"{budget(column)}.\n"
    for row, reason in column["failed"].items():
        yield f"{row} failed: {reason}\n"
    if column["rows"]:
        for metric in column["shown"]:
            yield from [*_scores(column, metric), ""]
        yield from [*_cost(column), ""]


def _scores(column: Column, metric: str) -> list[str]:
    """The rows and the trivial rivals of one metric."""
    sites = column["sites"] if column.get("by_site") else []
    rival, has_rank = column["rival"], ranked(column)
    heads = [metric, "after aggregation", "after local training", "worst site", "spread over sites"]
    if trains_alone(column):
        heads.append(f"lost against {alone(column)}")
    if rival:
        heads.append(f"against {rival}")
    if has_rank:
        heads.append("effective rank")
    trivial = {f"*{name}*": row for name, row in column["trivial"].items() if metric in row}
    rows = []
    for name, row in (column["rows"] | trivial).items():
        before, after = row[metric]["before"], row[metric]["after"]
        cells = [name, spread(before), spread(after), number(after["worst_site"]), number(after["std_over_sites"])]
        if trains_alone(column):
            cells.append(str(after.get("sites_below_local", NONE)))
        if rival:
            cells.append(versus(after))
        if has_rank:
            cells.append(number(row.get("effective_rank")))
        if sites:
            cells += [number(value) for value in after["per_site"]]
        rows.append(cells)
    return grid([*heads, *sites], rows)


def _cost(column: Column) -> list[str]:
    main = main_metric(column)
    return grid(["cost", *COSTS, f"rounds to 90 % of best {main}", tuned_on(column)], cost_rows(column, main))
