"""A table as Markdown: first as a paper prints it, then what it leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omnifm.bench.tables.page import COSTS, alone, budget, cost_rows, main_metric, ranked, spread, tuned_on, versus
from omnifm.report.numbers import NONE, number


def markdown(document: Mapping[str, Any]) -> str:
    """The whole table.

    Args:
        document: what `document.write` writes as JSON.
    """
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


def _overview(columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    heads = [(name, metric) for name, column in columns.items() for metric in column["shown"]]
    names = dict.fromkeys(row for column in columns.values() for row in column["rows"])
    rows = []
    for row in names:
        found = [(columns[name]["rows"].get(row), metric) for name, metric in heads]
        rows.append([row, *(NONE if told is None else number(told[metric]["after"]["mean"]) for told, metric in found)])
    return grid(["", *(f"{name}, {metric}" for name, metric in heads)], rows)


def _column(column: Mapping[str, Any]) -> Iterator[str]:
    yield f"{budget(column)}.\n"
    for row, reason in column["failed"].items():
        yield f"{row} failed: {reason}\n"
    for metric in column["shown"] if column["rows"] else ():
        sites = column["sites"] if column.get("by_site") else []
        heads = [
            metric,
            "after aggregation",
            "after local training",
            "worst site",
            "spread over sites",
            f"lost against {alone(column)}",
            *[f"against {column['rival']}"] * bool(column["rival"]),
            *["effective rank"] * ranked(column),
            *sites,
        ]
        trivial = {f"*{name}*": row for name, row in column["trivial"].items() if metric in row}
        rows = []
        for name, row in (column["rows"] | trivial).items():
            before, after = row[metric]["before"], row[metric]["after"]
            rows.append(
                [
                    name,
                    spread(before),
                    spread(after),
                    number(after["worst_site"]),
                    number(after["std_over_sites"]),
                    str(after.get("sites_below_local", NONE)),
                    *[versus(after)] * bool(column["rival"]),
                    *[number(row.get("effective_rank"))] * ranked(column),
                    *(number(value) for value in after["per_site"] if sites),
                ]
            )
        yield from [*grid(heads, rows), ""]
    if column["rows"]:
        yield from [*_cost(column), ""]


def _cost(column: Mapping[str, Any]) -> list[str]:
    main = main_metric(column)
    return grid(["cost", *COSTS, f"rounds to 90 % of best {main}", tuned_on(column)], cost_rows(column, main))
