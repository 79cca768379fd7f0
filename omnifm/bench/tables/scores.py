"""The arithmetic of a table: means, spreads and paired differences of contenders' test scores."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from omnifm.bench.tables import course, lint
from omnifm.bench.tables.records import MOMENTS, ContenderRow, Difference, Metrics, Moment, Rows, Scores
from omnifm.metrics.rivals import rivals
from omnifm.records import Summary

RIVAL = "FedPer (matched)"
"""The row that all others are compared with, unless a table names another."""
Cells = dict[str, list[Summary]]
"""Contender -> the summary of each seed's run."""
Values = Float[np.ndarray, "_ _"]
"""Scores of one metric (seeds, sites); NaN where a score is not defined."""


def compare(cells: Cells, budgets: Mapping[str, tuple[int, int]], metrics: Metrics, rival: str = RIVAL) -> Rows:
    """`tabulate`, with each row's cost and its course over the rounds.

    Args:
        budgets: contender -> (batch size, passes over a site's training cases per round).
    """
    table = tabulate(cells, metrics, rival)
    for name, row in table["rows"].items():
        row["facts"] = course.facts(cells[name], *budgets[name])
    course.add_curves(table["rows"], cells, metrics)
    return table


def tabulate(cells: Cells, metrics: Metrics, rival: str = RIVAL) -> Rows:
    """Scores per contender, metric and moment.

    The difference to the rival is paired by site and seed and averaged over sites, which gives one number per seed; its
    interval is Student's t, 95 %, over seeds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN, which becomes None
        rows: dict[str, ContenderRow] = {}
        for name, runs in cells.items():
            rows[name] = {metric: _moments(name, runs, metric, metric, cells, metrics, rival) for metric in metrics}
            rows[name]["effective_rank"] = _effective_rank(runs)
        return {"rows": rows, "trivial": _trivial(cells, metrics, rival)}


def _effective_rank(runs: Sequence[Summary]) -> float | None:
    """Of the knowledge bank after the last round, as a mean over seeds; None for a method without a bank."""
    banks = [run["history"][-1]["bank"] for run in runs]
    if not banks[0]:
        return None
    return finite(float(np.mean([bank["effective_rank"] for bank in banks])))


def _trivial(cells: Cells, metrics: Metrics, rival: str) -> dict[str, ContenderRow]:
    """Rows of the rivals that a task scores beside the model.

    Where such a score depends on the contender's model, the row is OmniFM's (else the first contender's) and says so.
    """
    owner = "OmniFM" if "OmniFM" in cells else next(iter(cells))
    rows: dict[str, ContenderRow] = {}
    for metric, others in rivals(metrics).items():
        for rival_name, scored in others.items():
            name = rival_name if _same_for_all(cells, owner, scored) else f"{rival_name} of {owner}"
            rows.setdefault(name, {})[metric] = _moments(name, cells[owner], scored, metric, cells, metrics, rival)
    return rows


def _same_for_all(cells: Cells, owner: str, metric: str) -> bool:
    """Whether every contender has the owner's scores."""
    return all(
        np.array_equal(_matrix(cells[owner], metric, when), _matrix(runs, metric, when), equal_nan=True)
        for runs in cells.values()
        for when in MOMENTS
    )


def _moments(
    name: str, runs: Sequence[Summary], scored: str, metric: str, cells: Cells, metrics: Metrics, rival: str
) -> dict[Moment, Scores]:
    """A row's scores at both moments.

    Args:
        scored: the metric whose scores these are.
        metric: the metric that they are compared on.
    """
    return {
        when: _scores(name, _matrix(runs, scored, when), cells, metric, when, metrics[metric], rival)
        for when in MOMENTS
    }


def _scores(name: str, values: Values, cells: Cells, metric: str, when: Moment, higher: bool, rival: str) -> Scores:
    per_site = np.nanmean(values, axis=0)
    worst = np.nanmin(per_site) if higher else np.nanmax(per_site)
    row: Scores = {
        "mean": finite(float(np.nanmean(values))),
        "std_over_seeds": over_seeds(values),
        "worst_site": finite(float(worst)),
        "std_over_sites": finite(float(np.nanstd(per_site))),
        "per_site": [finite(value) for value in per_site.tolist()],
        "values": [[finite(value) for value in seed] for seed in values.tolist()],
    }
    if runs := cells.get(lint.alone_of(cells)):
        alone = np.nanmean(_matrix(runs, metric, "after"), axis=0)
        row["sites_below_local"] = int(np.sum(per_site < alone if higher else per_site > alone))
    if rival in cells and name != rival:
        row["against_rival"] = paired(values, _matrix(cells[rival], metric, when))
    return row


def _matrix(runs: Sequence[Summary], metric: str, when: Moment) -> Values:
    """Scores of one metric, sites in the order of their names."""
    rows = [[site["metrics"][metric][when] for _, site in sorted(run["sites"].items())] for run in runs]
    return np.array(rows, dtype=float)  # None becomes NaN


def finite(value: float) -> float | None:
    """For JSON, which has no NaN: None instead."""
    return value if math.isfinite(value) else None


def over_seeds(values: Values) -> float | None:
    """Standard deviation of the seeds' means; None if fewer than two of them are defined."""
    means = np.nanmean(values, axis=1)
    return finite(float(np.nanstd(means))) if np.isfinite(means).sum() > 1 else None


def paired(mine: Values, other: Values) -> Difference:
    """Mean difference, and its 95 % interval by Student's t over the seeds' means.

    A seed in which no difference is defined is left out; fewer than two seeds have no interval.
    """
    num = min(len(mine), len(other))
    differences = np.nanmean(mine[:num] - other[:num], axis=1)
    differences = differences[np.isfinite(differences)]
    if len(differences) < 2:
        return {"difference": float(differences[0]) if len(differences) else None, "low": None, "high": None}
    mean = float(differences.mean())
    half = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    return {"difference": mean, "low": mean - half, "high": mean + half}
