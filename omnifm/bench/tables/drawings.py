"""Drawings of a benchmark table: scores with intervals, paired differences, curves over rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from omnifm.report.elements import COLOURS
from omnifm.report.metric_names import metric_name
from omnifm.report.numbers import number
from omnifm.report.plots import Plot, drawing, plot

Column = Mapping[str, Any]


def scores(name: str, column: Column, metric: str) -> Plot:
    """Draw the mean of every row before and after local training, with its interval over seeds and its sites."""
    rows, words = list(column["rows"]), metric_name(metric)
    figure, axes = _axes(rows, words if column["metrics"][metric] else f"{words}, less is better")
    for y, row in enumerate(rows):
        before, after = (column["rows"][row][metric][when] for when in ("before", "after"))
        sites = [value for value in after["per_site"] if value is not None]
        axes.plot(sites, [y] * len(sites), "|", color="#9aa7b2", markersize=9)
        if after["mean"] is not None:
            half = _half_interval(after)
            axes.errorbar(after["mean"], y, xerr=half, fmt="o", color=COLOURS[0], capsize=3, markersize=6)
        if before["mean"] is not None:
            axes.plot(before["mean"], y, "o", mfc="white", color=COLOURS[1], markersize=6)
    means = ", ".join(f"{row} {number(column['rows'][row][metric]['after']['mean'])}" for row in rows)
    bars = "; bars 95 % over seeds" if column["seeds"] > 1 else ""
    title = f"{words}: filled after, hollow before local training{bars}; ticks are sites"
    return drawing(title, figure, f"{name}: mean {words} after local training: {means}")


def differences(name: str, column: Column, metric: str) -> Plot | None:
    """Draw the paired differences to the rival after local training; None if there is no rival."""
    found = {row: scores[metric]["after"].get("against_rival") for row, scores in column["rows"].items()}
    paired = {row: pair for row, pair in found.items() if pair and pair["difference"] is not None}
    if not paired:
        return None
    less = "" if column["metrics"][metric] else ", less is better"
    figure, axes = _axes(list(paired), f"{metric_name(metric)}: row minus {column['rival']}{less}")
    axes.axvline(0, color="#56636f", linewidth=1)
    for y, pair in enumerate(paired.values()):
        half = 0.0 if pair["low"] is None else (pair["high"] - pair["low"]) / 2
        axes.errorbar(pair["difference"], y, xerr=half, fmt="s", color=COLOURS[2], capsize=3, markersize=6)
    words = ", ".join(f"{row} {pair['difference']:+.3f}" for row, pair in paired.items())
    bars = ", 95 % over seeds" if column["seeds"] > 1 else ""
    title = f"Difference to {column['rival']}, paired{bars}"
    return drawing(title, figure, f"{name}: {metric}, difference to {column['rival']}: {words}")


def curves(name: str, column: Column, metric: str) -> Plot | None:
    """Draw the validation scores over rounds; None if there is one round only, which makes no curve."""
    lines = {row: found["curve"][metric] for row, found in column["rows"].items()}
    num_rounds = max(map(len, lines.values()))
    if num_rounds < 2:
        return None
    padded = {row: [*values, *[None] * (num_rounds - len(values))] for row, values in lines.items()}
    return plot(f"{name}: validation {metric_name(metric)} after local training", range(1, num_rounds + 1), padded)


def _axes(rows: Sequence[str], label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 0.9 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(rows)), rows, fontsize=8.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top, as in the table
    axes.set_xlabel(label, fontsize=8.5)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(color="#e4e9ee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _half_interval(row: Mapping[str, Any]) -> float:
    """Return half the width of Student's 95 % interval of the mean over seeds; 0 for fewer than two seeds."""
    num = sum(any(value is not None for value in seed) for seed in row["values"])
    if num < 2:
        return 0.0
    return float(stats.t.ppf(0.975, num - 1) * row["std_over_seeds"] / math.sqrt(num - 1))
