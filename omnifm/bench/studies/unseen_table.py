"""The tables of `omnifm bench unseen`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omnifm.bench.tables.markdown import grid
from omnifm.bench.tables.page import spread
from omnifm.bench.tables.scores import finite, over_seeds
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
"""Of a contender whose head is part of what all share."""


def tabulate(
    cells: Mapping[str, Sequence[Mapping[str, Any]]], sites: Sequence[str], metrics: Mapping[str, bool]
) -> dict[str, Any]:
    """Per contender, moment and metric: mean over left-out sites and seeds, spread over seeds, mean of each site.

    Sites that could not join are named in `refused`, and are in no mean.
    """
    refused = {cell["left_out"]: cell["refused"] for rows in cells.values() for cell in rows if cell["refused"]}
    joined = [site for site in sites if site not in refused]
    table: dict[str, Any] = {}
    for name, rows in cells.items():
        seeds = sorted({row["seed"] for row in rows})
        scores = {(row["seed"], row["left_out"]): row["scores"] for row in rows}
        for moment in MOMENTS:
            for metric in metrics:
                values = [[scores[seed, site][moment][metric] for site in joined] for seed in seeds]
                table.setdefault(name, {}).setdefault(moment, {})[metric] = _row(np.array(values, float), joined)
    return {"metrics": dict(metrics), "refused": refused, "rows": table}


def _row(values: np.ndarray, joined: Sequence[str]) -> dict[str, Any]:
    """Of `values` (seeds x sites); NaN is an undefined score."""
    if not values.size or np.isnan(values).all():
        return {"mean": None, "std_over_seeds": None, "per_site": dict.fromkeys(joined)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a site or seed where nothing is defined has no mean: None
        per_site = {site: finite(float(np.nanmean(values[:, i]))) for i, site in enumerate(joined)}
        std = over_seeds(values)
    return {"mean": finite(float(np.nanmean(values))), "std_over_seeds": std, "per_site": per_site}


def markdown(result: Mapping[str, Any], metric: str) -> str:
    """The first metric as a table for people."""
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
