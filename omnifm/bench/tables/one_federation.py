"""Methods against each other on one federation: same initial values, splits and budget, several seeds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm

from omnifm.bench.cells import Incomplete, cell, finished, key_of
from omnifm.bench.inputs import federation, job_experiment, out_folder, site_names
from omnifm.bench.tables import course, document, lint
from omnifm.config import Experiment
from omnifm.metrics.rivals import rivals
from omnifm.plugins import plugin

MAIN: Mapping[str, dict[str, Any]] = {
    "Local": {"name": "local"},
    "FedAvg": {"name": "fedavg"},
    "FedPer (paper)": {"name": "fedper", "capacity": "paper"},
    "Local (matched)": {"name": "local", "capacity": "matched"},
    "FedAvg (matched)": {"name": "fedavg", "capacity": "matched"},
    "FedPer (matched)": {"name": "fedper", "capacity": "matched"},
    "FedAvg (matched, soup)": {"name": "fedavg", "capacity": "matched", "soup": True},
    "OmniFM": {"name": "omnifm"},
    "OmniFM (routed)": {"name": "omnifm", "reach": 0.3, "share": "all"},
    "OmniFM (routed, soup)": {"name": "omnifm", "reach": 0.3, "share": "all", "soup": True},
}
ABLATIONS: Mapping[str, dict[str, Any]] = {
    "OmniFM w/o GSKR": {"name": "omnifm", "retrieval": "mean"},
    "OmniFM w/o ECA": {"name": "omnifm", "fusion": "film"},
    "OmniFM w/o PSP": {"name": "omnifm", "prompting": "linear"},
    "OmniFM w/o SPAlign": {"name": "omnifm", "align_weight": 0.0},
    "OmniFM w/o local key": {"name": "omnifm", "local_key": False},
}
CONTENDERS = {**MAIN, **ABLATIONS}
RIVAL = "FedPer (matched)"
MOMENTS = ("before", "after")
Cells = dict[str, list[dict[str, Any]]]


def run(
    data: Path,
    out: Path,
    *,
    job: Path,
    num_seeds: int,
    num_rounds: int | None = None,
    num_epochs: int | None = None,
    ablations: bool = True,
    rows: Collection[str] = (),
) -> list[str]:
    """Run what is missing, then write table.json, table.md and table.html.

    Args:
        data: federation folder, one `<site>/dataset.json` per site.
        out: results; finished cells in it are reused.
        job: job folder whose experiment.json is compared, method by method.
        num_seeds: seeds 0..num_seeds-1; the splits do not depend on them where dataset.json gives all three.
        num_rounds, num_epochs: rounds and local epochs per round, in place of the job's.
        ablations: OmniFM without each of its parts, too.
        rows: the only contenders to run, empty is all; others that `out` holds every seed of stay in the table.

    Returns:
        What the lint says, a line per finding.

    Raises:
        ValueError: a folder or configuration is not as it must be, or no run was complete.
    """
    experiment, data, out = job_experiment(job, num_rounds, num_epochs), federation(data), out_folder(out)
    sites = site_names(data, 2)
    metrics = plugin("tasks", experiment.task["name"]).metrics
    if foreign := sorted(set(rows) - set(CONTENDERS)):
        raise ValueError(f"row must be one of {list(CONTENDERS)}; got {foreign}")
    groups = [[n for n in group if not rows or n in rows] for group in (MAIN, ABLATIONS if ablations else {})]
    others = [name for name in CONTENDERS if not any(name in group for group in groups)]
    earlier = {
        name: _finished(replace(experiment, method=CONTENDERS[name]), data, sites, out, num_seeds) for name in others
    }
    cells: Cells = {name: runs for name, runs in earlier.items() if runs}
    failed, told = dict[str, str](), dict[str, Any]()
    bar = tqdm(total=num_seeds * sum(map(len, groups)), unit="run")
    for seed, group in [(seed, group) for group in groups if group for seed in range(num_seeds)]:
        for name in group:
            bar.set_description(f"{name}, seed {seed}")
            if name not in failed:
                try:
                    found = cell(replace(experiment, method=CONTENDERS[name], seed=seed), data, sites, out)
                    cells.setdefault(name, []).append(found)
                except Incomplete as error:  # the others go on
                    failed[name] = str(error)
            bar.update()
        told = _document(experiment, data, sites, cells, failed, metrics)
        document.write(out, told)
    bar.close()
    return lint.lint(told)


def _finished(experiment: Experiment, data: Path, sites: list[str], out: Path, num_seeds: int) -> list[dict[str, Any]]:
    """A contender's runs that `out` holds; none unless it holds every seed."""
    keys = [key_of(replace(experiment, seed=seed), data, sites) for seed in range(num_seeds)]
    runs = [run for key in keys if (run := finished(out, key, data, sites)) is not None]
    return runs if len(runs) == num_seeds else []


def _document(
    experiment: Experiment,
    data: Path,
    sites: list[str],
    cells: Cells,
    failed: Mapping[str, str],
    metrics: Mapping[str, bool],
) -> dict[str, Any]:
    """Of the contenders that have run as many seeds as any."""
    train = experiment.train
    cells = {name: cells[name] for name in CONTENDERS if name in cells and name not in failed}
    if not cells:
        raise ValueError(next(iter(failed.values())))
    num_seeds = max(map(len, cells.values()))
    even = {name: runs for name, runs in cells.items() if len(runs) == num_seeds}
    budgets = dict.fromkeys(even, (train.batch_size, train.local_epochs))
    rival = RIVAL if RIVAL in {*even, *failed} else None
    source = next(iter(even.values()))[0]["data_source"]
    column = {
        "data": data.name,
        "source": source,
        "sites": sites,
        "seeds": num_seeds,
        "num_rounds": train.num_rounds,
        "local_epochs": train.local_epochs,
        "rival": rival,
        "metrics": dict(metrics),
        "shown": [*rivals(metrics)][:2],
        "failed": dict(failed),
        **compare(even, budgets, metrics),
    }
    caption = ["Nothing is tuned here: learning rate and constants are the job's.", *document.reading(num_seeds, rival)]
    if source == "demo":
        caption.append("Synthetic demo data: what is better here need not be better on real data.")
    title = f"{experiment.job} on {data.name}"
    return {"table": "table", "title": title, "scale": None, "caption": caption, "columns": {data.name: column}}


def compare(
    cells: Cells, budgets: Mapping[str, tuple[int, int]], metrics: Mapping[str, bool], rival: str = RIVAL
) -> dict[str, Any]:
    """`tabulate`, with what every row cost and went through.

    Args:
        budgets: contender -> batch size, and passes over a site's training cases per round.
    """
    table = tabulate(cells, metrics, rival)
    for name, row in table["rows"].items():
        row["facts"] = course.facts(cells[name], *budgets[name])
    course.add_curves(table["rows"], cells, metrics)
    return table


def tabulate(cells: Cells, metrics: Mapping[str, bool], rival: str = RIVAL) -> dict[str, Any]:
    """Per contender, metric and moment: mean over sites and seeds, spread over seeds, worst site, sites below Local.

    Paired differences against the rival are taken per site and seed, after averaging over sites they give one
    number per seed; the interval is Student's t, 95 %, over seeds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a metric that is defined nowhere has no mean: None
        return plain(_tabulate(cells, metrics, rival))


def _tabulate(cells: Cells, metrics: Mapping[str, bool], rival: str) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, runs in cells.items():
        rows[name] = {
            metric: {
                when: _row(name, _matrix(runs, metric, when), cells, metric, when, higher, rival) for when in MOMENTS
            }
            for metric, higher in metrics.items()
        }
        banks = [run["history"][-1]["bank"] for run in runs]
        rows[name]["effective_rank"] = float(np.mean([b["effective_rank"] for b in banks])) if banks[0] else None
    return {"rows": rows, "trivial": _trivial(cells, metrics, rival)}


def plain(value: Any) -> Any:
    """For JSON, which knows no NaN: None instead."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _trivial(cells: Cells, metrics: Mapping[str, bool], rival: str) -> dict[str, Any]:
    """Rows of the rivals that a task scores beside the model; of one contender, named, where a rival hangs on it."""
    owner = "OmniFM" if "OmniFM" in cells else next(iter(cells))
    rows: dict[str, Any] = {}
    for metric, others in rivals(metrics).items():
        for rival_name, scored in others.items():
            values = {when: _matrix(cells[owner], scored, when) for when in MOMENTS}
            alike = all(
                np.array_equal(values[when], _matrix(runs, scored, when), equal_nan=True)
                for runs in cells.values()
                for when in MOMENTS
            )
            name = rival_name if alike else f"{rival_name} of {owner}"
            rows.setdefault(name, {})[metric] = {
                when: _row(name, values[when], cells, metric, when, metrics[metric], rival) for when in MOMENTS
            }
    return rows


def _row(
    name: str, values: np.ndarray, cells: Cells, metric: str, when: str, higher: bool, rival: str
) -> dict[str, Any]:
    """Of `values` (seeds x sites)."""
    per_site = np.nanmean(values, axis=0)
    worst = (np.nanmin if higher else np.nanmax)(per_site)
    row: dict[str, Any] = {
        "mean": float(np.nanmean(values)),
        "std_over_seeds": over_seeds(values),
        "worst_site": float(worst),
        "std_over_sites": float(np.nanstd(per_site)),
        "per_site": per_site.tolist(),
        "values": values.tolist(),
    }
    if runs := cells.get(lint.alone_of(cells)):
        alone = np.nanmean(_matrix(runs, metric, "after"), axis=0)
        row["sites_below_local"] = int(np.sum(per_site < alone) if higher else np.sum(per_site > alone))
    if rival in cells and name != rival:
        row["against_rival"] = paired(values, _matrix(cells[rival], metric, when))
    return row


def over_seeds(values: np.ndarray) -> float | None:
    """Standard deviation of the seeds' means of scores (seeds x sites); None of fewer than two, which have none."""
    means = np.nanmean(values, axis=1)
    return float(np.nanstd(means)) if np.isfinite(means).sum() > 1 else None


def _matrix(runs: list[dict[str, Any]], metric: str, when: str) -> np.ndarray:
    rows = [[site["metrics"][metric][when] for _, site in sorted(run["sites"].items())] for run in runs]
    return np.array(rows, dtype=float)  # None becomes NaN


def paired(mine: np.ndarray, other: np.ndarray) -> dict[str, float | None]:
    """Mean difference of scores (seeds x sites) and its 95 % interval, Student's t over the seeds' means."""
    num = min(len(mine), len(other))
    differences = np.nanmean(mine[:num] - other[:num], axis=1)
    differences = differences[np.isfinite(differences)]  # a seed where nothing is defined says nothing
    if len(differences) < 2:
        return {"difference": float(differences[0]) if len(differences) else None, "low": None, "high": None}
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    return {
        "difference": float(differences.mean()),
        "low": float(differences.mean() - half),
        "high": float(differences.mean() + half),
    }
