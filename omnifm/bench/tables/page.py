"""A table as one self-contained HTML page: scores with intervals, differences, curves, and the numbers themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from omnifm.bench.tables.lint import alone_of
from omnifm.report.page import (
    COLOURS,
    NONE,
    Html,
    counted,
    document,
    drawing,
    legend,
    number,
    plot,
    section,
    size,
    table,
    tag,
)

SOURCES = {"demo": "synthetic demo data", "site": "real data"}
COSTS = ("values shared", "values at home", "values moved", "from sites", "to sites", "local steps")
Column = Mapping[str, Any]


def page(title: str, caption: Sequence[str], columns: Mapping[str, Column]) -> bytes:
    """The page.

    Args:
        caption: paragraphs below the title.
        columns: name -> what `tables.compare` made, with its header.
    """
    head = tag(
        "header",
        tag("div", "OmniFM-FLARE comparison", class_="soft over"),
        tag("h1", title),
        *(tag("p", line) for line in caption),
        *_demo(columns),
    )
    wide = [_overview(columns)] if len(columns) > 1 else []
    return document(title, head, *wide, *(_column(name, column) for name, column in columns.items()))


def _demo(columns: Mapping[str, Column]) -> list[Html]:
    if not any(column.get("source") == "demo" for column in columns.values()):
        return []
    words = "SYNTHETIC DEMO DATA. These numbers show that the comparison runs; they say nothing about medicine."
    return [tag("p", words, class_="demo")]


def main_metric(column: Column) -> str:
    """The metric that a column is about."""
    return str(column["shown"][0])


def budget(column: Column) -> str:
    """Whose data, how many sites and seeds, and how long they train; a column's own note."""
    text = (
        f"{column['data']}: {counted(len(column['sites']), 'site')}, {counted(column['num_rounds'], 'round')} of "
        f"{counted(column['local_epochs'], 'epoch')}, {counted(column['seeds'], 'seed')}"
    )
    return f"{text}.  {column['note']}".rstrip(".") if column.get("note") else text


def alone(column: Column) -> str:
    """The row of sites training alone."""
    return alone_of(column["rows"])


def ranked(column: Column) -> bool:
    """Whether a row has a bank, whose effective rank is told."""
    return any(row["effective_rank"] is not None for row in column["rows"].values())


def tuned_on(column: Column) -> str:
    """Head of what tuning chose: the task's first metric chooses, whatever metric a paper shows."""
    return f"chosen on validation {next(iter(column['metrics']))}"


def _overview(columns: Mapping[str, Column]) -> Html:
    names = list(dict.fromkeys(name for column in columns.values() for name in column["rows"]))
    heads = [f"{name} ({main_metric(column)})" for name, column in columns.items()]
    rows = [[name, *(_mean(column, name) for column in columns.values())] for name in names]
    wide = tag("div", table(["", *heads], rows), class_="tight")
    return section("After local training, mean over sites and seeds", wide)


def _mean(column: Column, name: str) -> str:
    row = column["rows"].get(name)
    return NONE if row is None else number(row[main_metric(column)]["after"]["mean"])


def _column(name: str, column: Column) -> Html:
    metrics = list(column["shown"])
    where = filter(None, (budget(column), SOURCES.get(column.get("source", ""))))
    parts: list[object] = [tag("p", " · ".join(where), class_="soft")]
    parts += [tag("p", f"{row} failed: {reason}", class_="note") for row, reason in column.get("failed", {}).items()]
    if column["rows"]:
        main = metrics[0]
        plots = [_dots(name, column, main), _differences(name, column, main)]
        parts.append(tag("div", *filter(None, plots), class_="two"))
        parts += _curves(name, column, main)
        for metric in metrics:
            parts += [tag("h3", f"{metric}, test"), _scores(column, metric)]
        parts += [tag("h3", "Cost"), _cost(column, main)]
    return section(name, *parts)


# Drawings.
def _dots(name: str, column: Column, metric: str) -> Html:
    """Mean of every row with its interval over seeds, hollow before local training, and its sites as specks."""
    rows = list(column["rows"])
    axes, figure = _axes(rows, metric if column["metrics"][metric] else f"{metric}, less is better")
    for y, row in enumerate(rows):
        before, after = (column["rows"][row][metric][when] for when in ("before", "after"))
        sites = [value for value in after["per_site"] if value is not None]
        axes.plot(sites, [y] * len(sites), "|", color="#9aa7b2", markersize=9)
        if after["mean"] is not None:
            axes.errorbar(after["mean"], y, xerr=_half(after), fmt="o", color=COLOURS[0], capsize=3, markersize=6)
        if before["mean"] is not None:
            axes.plot(before["mean"], y, "o", mfc="white", color=COLOURS[1], markersize=6)
    told = ", ".join(f"{row} {number(column['rows'][row][metric]['after']['mean'])}" for row in rows)
    bars = "; bars 95 % over seeds" * (column["seeds"] > 1)
    title = f"{metric}: filled after, hollow before local training{bars}; ticks are sites"
    return drawing(title, figure, f"{name}: mean {metric} after local training: {told}")


def _differences(name: str, column: Column, metric: str) -> Html | None:
    """Paired differences to the rival, after local training."""
    scores = {row: found[metric]["after"].get("against_rival") for row, found in column["rows"].items()}
    paired = {row: told for row, told in scores.items() if told and told["difference"] is not None}
    if not paired:
        return None
    less = "" if column["metrics"][metric] else ", less is better"
    axes, figure = _axes(list(paired), f"{metric}: row minus {column['rival']}{less}")
    axes.axvline(0, color="#56636f", linewidth=1)
    for y, told in enumerate(paired.values()):
        reach = 0.0 if told["low"] is None else (told["high"] - told["low"]) / 2
        axes.errorbar(told["difference"], y, xerr=reach, fmt="s", color=COLOURS[2], capsize=3, markersize=6)
    words = ", ".join(f"{row} {told['difference']:+.3f}" for row, told in paired.items())
    title = f"Difference to {column['rival']}, paired{', 95 % over seeds' * (column['seeds'] > 1)}"
    return drawing(title, figure, f"{name}: {metric}, difference to {column['rival']}: {words}")


def _axes(rows: Sequence[str], label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 0.9 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(rows)), rows, fontsize=8.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top, as in the table
    axes.set_xlabel(label, fontsize=8.5)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(color="#e4e9ee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes, figure


def _half(row: Mapping[str, Any]) -> float:
    num = sum(any(value is not None for value in seed) for seed in row["values"])
    if num < 2:
        return 0.0
    return float(stats.t.ppf(0.975, num - 1) * row["std_over_seeds"] / math.sqrt(num - 1))


def _curves(name: str, column: Column, metric: str) -> list[Html]:
    lines = {row: found["curve"][metric] for row, found in column["rows"].items()}
    num_rounds = max(map(len, lines.values()))
    if num_rounds < 2:
        return []  # one point is no curve
    padded = {row: [*values, *[None] * (num_rounds - len(values))] for row, values in lines.items()}
    title = f"{name}: validation {metric} after local training"
    return [tag("div", plot(title, range(1, num_rounds + 1), padded), legend(padded), class_="two")]


# Numbers.
def _scores(column: Column, metric: str) -> Html:
    heads = [
        "",
        "After aggregation",
        "After local training",
        "Worst site",
        "Spread over sites",
        f"Lost against {alone(column)}",
        *[f"Against {column['rival']} [95 %]"] * bool(column["rival"]),
        *["Effective rank"] * ranked(column),
        *column["sites"],
    ]
    trivial = {f"{name} (trivial)": row for name, row in column["trivial"].items() if metric in row}
    rows = []
    for name, row in (column["rows"] | trivial).items():
        before, after = row[metric]["before"], row[metric]["after"]
        rows.append(
            [
                name,
                spread(before),
                tag("b", spread(after)),
                number(after["worst_site"]),
                number(after["std_over_sites"]),
                after.get("sites_below_local", NONE),
                *[versus(after)] * bool(column["rival"]),
                *[number(row.get("effective_rank"))] * ranked(column),
                *map(number, after["per_site"]),
            ]
        )
    return tag("div", table(heads, rows), class_="tight")


def _cost(column: Column, metric: str) -> Html:
    heads = [
        "",
        *(head.capitalize() for head in COSTS),
        f"Rounds to 90 % of best {metric}",
        tuned_on(column).capitalize(),
    ]
    return tag("div", table(heads, cost_rows(column, metric), text=(0, 8)), class_="tight")


def cost_rows(column: Column, metric: str) -> list[list[str]]:
    """A line per contender: its name, `COSTS`, rounds to 90 % of the best, and what tuning chose."""
    rows = []
    for name, row in column["rows"].items():
        told = row["facts"]
        values = (told["num_values"]["shared"], told["num_values"]["personal"], told["values_moved"])
        rows.append(
            [
                name,
                *(f"{value:,}" for value in values),
                size(told["bytes_up"]),
                size(told["bytes_down"]),
                f"{told['steps'][0]:,}",
                str(row["rounds_to_90"][metric] or "never"),
                settings(column, name),
            ]
        )
    return rows


def spread(row: Mapping[str, Any]) -> str:
    """Mean and spread over seeds; of one seed the mean alone."""
    if row["mean"] is None or row["std_over_seeds"] is None:
        return number(row["mean"])
    return f"{number(row['mean'])} ± {number(row['std_over_seeds'])}"


def versus(row: Mapping[str, Any]) -> str:
    """Difference to the rival with its interval, where there is one."""
    told = row.get("against_rival")
    if not told or told["difference"] is None:
        return NONE
    interval = "" if told["low"] is None else f" [{told['low']:+.3f}, {told['high']:+.3f}]"
    return f"{told['difference']:+.3f}{interval}"


def settings(column: Column, name: str) -> str:
    """What tuning chose for a row, and where the best is the lowest or highest value that was tried."""
    points = column.get("tried", {}).get(name, [])
    words = []
    for part, settings_of in column.get("chosen", {}).get(name, {}).items():
        for key, value in settings_of.items():
            tried = [point["value"] for point in points if point["key"] == f"{part}.{key}"]
            words.append(f"{key} {value:g}{' (edge)' * bool(tried and value in (min(tried), max(tried)))}")
    return ", ".join(words) or NONE
