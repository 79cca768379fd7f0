"""The tables of `omnifm bench unseen`, and the records that they are made of."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from omnifm.bench.tables.markdown import grid
from omnifm.bench.tables.page import spread
from omnifm.bench.tables.records import Metrics
from omnifm.bench.tables.scores import Values, finite, over_seeds
from omnifm.report.numbers import counted, number

MOMENTS = {
    "untrained": "untrained network, few-shot head",
    "mean_head": "mean of the others' heads",
    "few_shot": "few-shot head from that mean",
    "own_head": "few-shot head from its own initial one",
}
"""What is scored of each contender, in the order of the tables."""
ONE_MODEL = {
    "untrained": MOMENTS["untrained"],
    "mean_head": "global model as it is",
    "few_shot": "few-shot head from its head",
}
"""The same for a contender whose head belongs to the shared part."""
Scores = dict[str, float | None]
"""Metric -> mean over the left-out site's test cases; None where it is undefined."""


class Cell(TypedDict):
    """One seed, one left-out site, one contender."""

    seed: int
    left_out: str
    scores: dict[str, Scores] | None
    """By name of `MOMENTS`; None if the site could not join."""
    refused: str | None
    """Why the site could not join."""


class Row(TypedDict):
    """One contender, moment and metric."""

    mean: float | None
    std_over_seeds: float | None
    per_site: dict[str, float | None]


class Tabulated(TypedDict):
    """The scores of all contenders."""

    metrics: dict[str, bool]
    refused: dict[str, str]
    rows: dict[str, dict[str, dict[str, Row]]]
    """Contender -> moment -> metric -> row."""


class Result(Tabulated):
    """The content of unseen.json."""

    schema: int
    data: str
    sites: list[str]
    seeds: int
    num_rounds: int
    local_epochs: int
    shots: int
    num_steps: int


def tabulate(cells: Mapping[str, Sequence[Cell]], sites: Sequence[str], metrics: Metrics) -> Tabulated:
    """Per contender, moment and metric: mean over left-out sites and seeds, spread over seeds, mean of each site.

    Sites that could not join are named in `refused` and left out of every mean.
    """
    refused = {cell["left_out"]: cell["refused"] for row in cells.values() for cell in row if cell["refused"]}
    joined = [site for site in sites if site not in refused]
    table = {
        name: {
            moment: {metric: _row(_matrix(row, moment, metric, joined), joined) for metric in metrics}
            for moment in MOMENTS
        }
        for name, row in cells.items()
    }
    return {"metrics": dict(metrics), "refused": refused, "rows": table}


def _matrix(cells: Sequence[Cell], moment: str, metric: str, joined: Sequence[str]) -> np.ndarray:
    """Scores (seeds, sites) of one contender."""
    seeds = sorted({cell["seed"] for cell in cells})
    scores = {(cell["seed"], cell["left_out"]): cell["scores"] for cell in cells}
    values: list[list[float | None]] = []
    for seed in seeds:
        found = [scores[seed, site] for site in joined]
        values.append([None if one is None else one[moment][metric] for one in found])
    return np.array(values, float)  # None becomes NaN


def _row(values: Values, joined: Sequence[str]) -> Row:
    """The row of scores (seeds, sites)."""
    if not values.size or np.isnan(values).all():
        return {"mean": None, "std_over_seeds": None, "per_site": dict.fromkeys(joined)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN, which becomes None
        per_site = {site: finite(float(np.nanmean(values[:, i]))) for i, site in enumerate(joined)}
        std = over_seeds(values)
    return {"mean": finite(float(np.nanmean(values))), "std_over_seeds": std, "per_site": per_site}


def markdown(result: Result, metric: str) -> str:
    """One metric as a table for people."""
    spread_over = "; ± is the spread over seeds" if result["seeds"] > 1 else ""
    lines = [
        f"{metric} of a site left out of {result['data']} in turn: {counted(len(result['sites']), 'site')}, "
        f"{counted(result['num_rounds'], 'round')} of {counted(result['local_epochs'], 'epoch')} without it, "
        f"{counted(result['seeds'], 'seed')}; its test split{spread_over}.  Few-shot: "
        f"{counted(result['shots'], 'case')} (per class), {counted(result['num_steps'], 'step')}, all but the head "
        "frozen.  The mean of the others' heads exists in the simulation only: over FLARE a head never leaves its "
        "site.",
        "",
    ]
    cells = []
    for name, moments in result["rows"].items():
        for moment, words in (ONE_MODEL if name == "FedAvg" else MOMENTS).items():
            row = moments[moment][metric]
            cells.append([name, words, spread(row), *(number(row["per_site"].get(site)) for site in result["sites"])])
    lines += grid(["method", "", "mean", *result["sites"]], cells)
    lines += [f"\n{site} could not join: {reason}" for site, reason in result["refused"].items()]
    return "\n".join(lines) + "\n"
