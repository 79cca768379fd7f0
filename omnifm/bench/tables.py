"""Methods against each other on one federation: same initial values, splits and budget, several seeds.

Every cell is one run of `omnifm.simulation`; finished cells are kept in `<out>/cells` and never run twice, so that a
comparison that was cut off goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm

from omnifm import simulation
from omnifm.bench import course, lint, tables_page
from omnifm.bench.inputs import job_experiment, site_names
from omnifm.config import Experiment
from omnifm.metrics.rivals import rivals
from omnifm.page import number
from omnifm.plugins import plugin
from omnifm.state import write_atomic

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
) -> None:
    """Run what is missing, then write table.json, table.md and table.html.

    Args:
        data: federation folder, one `<site>/dataset.json` per site.
        out: results; finished cells in it are reused.
        job: job folder whose experiment.json is compared, method by method.
        num_seeds: seeds 0..num_seeds-1; the splits do not depend on them where dataset.json gives all three.
        num_rounds, num_epochs: rounds and local epochs per round, in place of the job's.
        ablations: OmniFM without each of its parts, too.
        rows: the only contenders to run; empty is all.

    Raises:
        ValueError: a folder or configuration is not as it must be.
    """
    experiment = job_experiment(job, num_rounds, num_epochs)
    train, sites = experiment.train, site_names(data, 2)
    if foreign := sorted(set(rows) - set(CONTENDERS)):
        raise ValueError(f"row must be one of {list(CONTENDERS)}; got {foreign}")
    cells: Cells = {name: [] for name in CONTENDERS}
    groups = [[n for n in group if not rows or n in rows] for group in (MAIN, ABLATIONS if ablations else {})]
    grid = [(seed, name) for group in groups for seed in range(num_seeds) for name in group]
    for seed, name in (bar := tqdm(grid, unit="run")):
        bar.set_description(f"{name}, seed {seed}")
        cells[name].append(cell(replace(experiment, method=CONTENDERS[name], seed=seed), data, sites, out))
        metrics = plugin("tasks", experiment.task["name"]).metrics
        table = tabulate({k: v for k, v in cells.items() if v}, metrics)
        for row, runs in zip(table["rows"].values(), filter(None, cells.values()), strict=True):
            row["facts"] = course.facts(runs, train.batch_size, train.local_epochs)
        course.add_curves(table["rows"], cells, metrics)
        header = {
            "data": data.name,
            "sites": sites,
            "seeds": num_seeds,
            "num_rounds": train.num_rounds,
            "local_epochs": train.local_epochs,
            "rival": RIVAL,
            "metrics": metrics,
        }
        write_atomic(out / "table.json", json.dumps(header | table, indent=1).encode())
        write_atomic(out / "table.md", markdown(header, table, next(iter(metrics))).encode())
    title = f"{experiment.job} on {data.name}"
    write_atomic(out / "table.html", tables_page.page(title, [], {data.name: header | table}))
    for line in lint.lint(header | table):
        print(f"lint: {line}", file=sys.stderr)


def cell(experiment: Experiment, data: Path, sites: list[str], out: Path, device: str = "cpu") -> dict[str, Any]:
    """The summary of one run, from `<out>/cells` if it was run before.

    Raises:
        ValueError: the run was not complete; it is not kept.
    """
    key = hashlib.sha256(f"{experiment.hash()} {experiment.seed} {data.name} {sites}".encode()).hexdigest()[:16]
    path = out / "cells" / f"{key}.json"
    if not path.exists():
        summary = simulation.run(experiment, data, sites, device=device)
        if summary["status"] != "COMPLETE":
            raise ValueError(
                f"{experiment.method}: the run must be complete; got {summary['status']}, {summary['reason']}"
            )
        write_atomic(path, json.dumps(summary).encode())
    return json.loads(path.read_text())


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
        rows[name]["bytes_up"] = sum(row["bytes_up"] for h in runs[0]["history"] for row in h["sites"].values())
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
    """Rows of the rivals that a task scores beside the model; those of OmniFM's runs, where a rival hangs on it."""
    runs = cells.get("OmniFM") or next(iter(cells.values()))
    rows: dict[str, Any] = {}
    for metric, others in rivals(metrics).items():
        for name, scored in others.items():
            rows.setdefault(name, {})[metric] = {
                when: _row(name, _matrix(runs, scored, when), cells, metric, when, metrics[metric], rival)
                for when in MOMENTS
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
        "std_over_seeds": float(np.nanstd(np.nanmean(values, axis=1))),
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


def markdown(header: Mapping[str, Any], table: Mapping[str, Any], metric: str) -> str:
    """The first metric as a table for people."""
    lines = [
        f"{metric} on {header['data']}: {len(header['sites'])} sites, {header['num_rounds']} rounds of "
        f"{header['local_epochs']} epochs, {header['seeds']} seeds; test split; ± is the spread over seeds",
        "",
        "| method | after aggregation | after local training | worst site | below Local | vs matched [95 % CI] "
        "| effective rank |",
        "|---|---|---|---|---|---|---|",
    ]
    trivial = {f"*{name}*": row | {"effective_rank": None} for name, row in table["trivial"].items() if metric in row}
    for name, row in (table["rows"] | trivial).items():
        before, after = row[metric]["before"], row[metric]["after"]
        cells = [tables_page.spread(m) for m in (before, after)]
        cells += [
            number(after["worst_site"]),
            str(after.get("sites_below_local", "")),
            tables_page.versus(after),
            "" if row["effective_rank"] is None else f"{row['effective_rank']:.2f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
