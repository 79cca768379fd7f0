"""Compare a FLARE round of ours with one of stock NVFLARE FedAvg on equal work.

Both sides use the same cases, network, loss, batches, validation scores and poll intervals.  Stock is NVFLARE's own
FedAvg controller and PyTorch persistor with a plain Executor that trains inside the client's process
(`omnifm_flare.stock_fedavg`).  It takes the same MONAI UNet, the same augmented cases and the same validation scores
before and after training from our segmentation task.  What differs is what carries a round: our controller, payload per
site, trainer process, personal state, checkpoints and hashes.

Both run under `nvflare simulator` in processes of their own.  This module imports nothing of NVFLARE.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from omnifm.bench.cost.processes import cpu_samples, end
from omnifm.bench.inputs import keep_few
from omnifm.config import Experiment, SiteConfig
from omnifm.data.demo import demo_site
from omnifm.plugins import load_task
from omnifm.records import Json
from omnifm.shipped import job_file, job_folder
from omnifm.site.stages import Site
from omnifm.update import Payload

SITES = ("site-1", "site-2")
CASES = {"training": 4, "validation": 1, "test": 1}
"""Demo cases per site by split: with two passes a round takes about two seconds."""
TIMEOUT_S = 600
"""A run that takes longer is stopped and refused."""
STAMP = r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) .*?"
OURS = re.compile(STAMP + r"round (\d+)/\d+  \S+  loss ", re.MULTILINE)
STOCK = re.compile(STAMP + r"\n[-=]+\n +(Round \d+ started|Finished FedAvg)", re.MULTILINE)  # a banner of three lines
RUNS: Mapping[str, Mapping[str, str] | None] = {
    "fedavg": {"name": "fedavg"},
    "omnifm": {"name": "omnifm"},
    "stock": None,
}
"""What is run in turn: the method section of our job, or None for stock FedAvg."""
STOCK_MODULE = "omnifm_flare.stock_fedavg"
"""The module of stock FedAvg's client and network.  It is named, not imported: omnifm never imports `omnifm_flare`."""


class Spent(NamedTuple):
    """Seconds of one round."""

    wall: float
    cpu: float
    """Of all processes together."""


def check(job: Path) -> None:
    """Check what a run needs before anything is timed.

    Raises:
        ValueError: the job folder or the console script `nvflare` is absent.
    """
    job_file(job)
    _nvflare()


def _nvflare() -> str:
    beside = Path(sys.executable).with_name("nvflare")
    found = str(beside) if beside.is_file() else shutil.which("nvflare")
    if found is None:
        raise ValueError("nvflare must be installed to time FLARE rounds; its console script is not on the path")
    return found


def measure(
    job: Path, num_rounds: int, repeats: int, runs: Sequence[str] = tuple(RUNS)
) -> Iterator[dict[str, list[Spent]]]:
    """Run ours and stock in turn.

    Yields:
        Once per repeat: the seconds of each round after the first, by name of `RUNS`.

    Raises:
        ValueError: a run failed (with the last line of its output) or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="omnifm-cost-") as name:
        scratch = Path(name)
        data = demo_data(scratch / "data")
        jobs = {run: _job(run, job, scratch, data, num_rounds) for run in runs}
        for _ in range(repeats):
            yield {run: _simulate(jobs[run], data, scratch / "ws", OURS if RUNS[run] else STOCK) for run in runs}


def demo_data(root: Path) -> Path:
    """Write a federation of two demo sites with a few segmentation cases each; returns `root`."""
    for site in SITES:
        shutil.copytree(demo_site("segmentation", site), root / site)
        keep_few(root / site / "dataset.json", CASES)
    return root


def _job(run: str, job: Path, scratch: Path, data: Path, num_rounds: int) -> Path:
    """Write a copy of our job with another method, or with stock FedAvg."""
    record = json.loads(job_file(job).read_text(encoding="utf-8"))
    record["train"]["num_rounds"] = num_rounds
    record["method"] = RUNS[run] or {"name": "fedavg"}
    folder = scratch / "jobs" / run
    shutil.copytree(job_folder(job), folder)
    (folder / "app/config/experiment.json").write_text(json.dumps(record))
    if RUNS[run] is None:
        _make_stock(folder, record, scratch, data)
    return folder


def _make_stock(folder: Path, record: Json, scratch: Path, data: Path) -> None:
    """Turn a copy of our job into stock FedAvg; poll intervals and timeouts stay as they are."""
    experiment = Experiment.from_json(json.dumps(record))
    config = scratch / "stock.json"
    config.write_text(json.dumps({"experiment": record, "spec": _spec(experiment, data, scratch), "data": str(data)}))
    trainer = {"path": f"{STOCK_MODULE}.StockTrainer", "args": {"config": str(config)}}
    network = {"path": f"{STOCK_MODULE}.Network", "args": {"config": str(config)}}
    controller = {
        "num_clients": len(SITES),
        "num_rounds": experiment.train.num_rounds,
        "persistor_id": "persistor",
        "task_check_period": 0.1,
    }
    client = {"executors": [{"tasks": ["train"], "executor": trainer}], "task_result_filters": []}
    server = {
        "workflows": [{"id": "rounds", "path": "nvflare.app_common.workflows.fedavg.FedAvg", "args": controller}],
        "components": [
            {
                "id": "persistor",
                "path": "nvflare.app_opt.pt.file_model_persistor.PTFileModelPersistor",
                "args": {"model": network},
            }
        ],
    }
    for name, changes in (("client", client), ("server", server)):
        file = folder / f"app/config/config_fed_{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _spec(experiment: Experiment, data: Path, scratch: Path) -> Json:
    """What our sites agree on before round 0."""
    facts = {}
    for name in SITES:
        site = Site(experiment, name, SiteConfig(str(data / name), str(scratch / "described" / name), "cpu"))
        facts[name] = site.reply(Payload("describe", 0, "cost", {}, {}, {})).facts["data"]
    return load_task(experiment).agree(facts)


def _simulate(job: Path, data: Path, workspace: Path, mark: re.Pattern[str]) -> list[Spent]:
    """Run one job under NVFLARE's simulator; the seconds of each round after the first."""
    shutil.rmtree(workspace, ignore_errors=True)
    command = [_nvflare(), "simulator", "-w", str(workspace), str(job), "-n", str(len(SITES)), "-t", str(len(SITES))]
    environ = {name: value for name, value in os.environ.items() if name != "OMNIFM_STATE"}
    environ |= {"OMNIFM_DATA": str(data), "OMP_NUM_THREADS": "1"}
    with _process(command, environ) as process, cpu_samples(process.pid) as samples:
        try:
            output, _ = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ValueError(f"the FLARE run {job.name!r} must end within {TIMEOUT_S} s; it did not") from None
    log = workspace / "server/log.txt"
    found = spent(boundaries(log.read_text(), mark) if log.is_file() else [], samples)
    if process.returncode or not found:
        last = (output.strip().splitlines() or ["no output"])[-1]
        raise ValueError(f"the FLARE run {job.name!r} must finish its rounds; exit code {process.returncode}: {last}")
    return found


@contextmanager
def _process(command: list[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Start a process; at the end of the block, end it with everything that it started."""
    process = subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        end(process)


def boundaries(log: str, mark: re.Pattern[str]) -> list[float]:
    """Clock times between rounds, from a server's log; the first time is the end of the first round.

    Args:
        mark: `OURS`, whose lines are written at the end of a round, or `STOCK`, whose lines are written at the start of
            a round and at the end of the run.
    """
    stamps: dict[str, float] = {}
    for stamp, which in mark.findall(log):
        stamps.setdefault(which, datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp())
    return list(stamps.values())[1 if mark is STOCK else 0 :]


def spent(times: Sequence[float], samples: Sequence[tuple[float, float]]) -> list[Spent]:
    """Wall and CPU seconds between successive times.

    Args:
        times: clock times.
        samples: (clock time, CPU seconds so far); CPU is interpolated between them, and 0 without any.
    """
    clock, cpu = zip(*samples, strict=True) if samples else ((0.0,), (0.0,))
    used = np.interp(times, clock, cpu).tolist()
    return [Spent(b - a, d - c) for (a, b), (c, d) in zip(pairwise(times), pairwise(used), strict=True)]
