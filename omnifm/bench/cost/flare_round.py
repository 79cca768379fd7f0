"""A FLARE round of ours beside one of stock NVFLARE FedAvg: same cases, network, loss, batches, scores and polling.

Stock is NVFLARE's own FedAvg controller and PyTorch persistor with a plain Executor that trains inside the client's
process.  It trains the same MONAI UNet on the same augmented cases through omnifm's segmentation task and, as we do,
scores the validation split before and after, so that what differs is what carries a round: our controller, payload per
site, trainer process, personal state, checkpoints and hashes.
Both run under `nvflare simulator` in processes of their own; nothing of NVFLARE is imported here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from omnifm.bench.inputs import keep_few
from omnifm.config import Experiment, SiteConfig
from omnifm.data.demo import demo_site
from omnifm.plugins import load_task
from omnifm.shipped import job_file, job_folder
from omnifm.site.stages import Site
from omnifm.update import Payload

SITES = ("site-1", "site-2")
CASES = {"training": 4, "validation": 1, "test": 1}
"""Demo cases per site: with two passes a round takes about two seconds."""
TIMEOUT_S = 600
Spent = tuple[float, float]
"""Wall and CPU seconds of a round, the latter of all its processes together."""
STAMP = r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) .*?"
OURS = re.compile(STAMP + r"round (\d+)/\d+  \S+  loss ", re.MULTILINE)
STOCK = re.compile(STAMP + r"\n[-=]+\n +(Round \d+ started|Finished FedAvg)", re.MULTILINE)  # a banner of three lines
RUNS: Mapping[str, dict[str, Any] | None] = {"fedavg": {"name": "fedavg"}, "omnifm": {"name": "omnifm"}, "stock": None}
"""What is run in turn: our methods, and stock FedAvg."""

STOCK_CODE = '''"""Stock NVFLARE FedAvg's client and network; written by omnifm.bench.cost.flare_round."""

import json
from pathlib import Path

import torch
from monai.data import CacheDataset, DataLoader, Dataset
from nvflare.apis.executor import Executor
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from omnifm.config import Experiment
from omnifm.data.datalist import read_datalist
from omnifm.plugins import load_task
from omnifm.site.loader import Prepare


def agreed_task(config):
    experiment = Experiment.from_json(json.dumps(config["experiment"]))
    task = load_task(experiment)
    task.configure(config["spec"])
    return experiment, task


class Network(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.unet = agreed_task(json.loads(Path(config).read_text()))[1].backbone().unet

    def forward(self, image):
        return self.unet(image)


class StockTrainer(Executor):
    def __init__(self, config):
        super().__init__()
        self.config, self.net = config, None

    def start(self, site):
        config = json.loads(Path(self.config).read_text())
        self.experiment, self.task = agreed_task(config)
        torch.set_num_threads(self.experiment.train.num_threads)
        self.net = Network(self.config)
        root = Path(config["data"]) / site
        datalist = read_datalist(root, required=self.task.required, seed=self.experiment.seed)
        prepare = Prepare(self.task, datalist.labels)
        held = [CacheDataset([dict(item) for item in items], prepare, num_workers=None, progress=False)
                for items in (datalist.training, datalist.validation)]
        self.training, self.validation = Dataset(held[0], self.task.augment()), held[1]

    def scores(self):
        self.net.eval()
        with torch.no_grad():
            return self.task.summarise([self.task.score(self.forward, case) for case in self.validation])

    def forward(self, batch):
        return self.net(batch["image"].as_subclass(torch.Tensor))

    def train(self):
        train = self.experiment.train
        self.net.train()
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=train.lr, weight_decay=train.weight_decay)
        for _ in range(train.local_epochs):
            for batch in DataLoader(self.training, batch_size=train.batch_size, shuffle=True, num_workers=0):
                batch = {name: value.as_subclass(torch.Tensor) for name, value in batch.items()}
                optimizer.zero_grad(set_to_none=True)
                loss = self.task.loss(self.net(batch["image"]), batch)
                loss.backward()
                optimizer.step()
                loss.item()

    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        if self.net is None:
            self.start(fl_ctx.get_identity_name())
        model = FLModelUtils.from_shareable(shareable)
        self.net.load_state_dict({name: torch.as_tensor(value) for name, value in model.params.items()})
        self.scores()
        self.train()
        dice = self.scores()["dice"].mean
        params = {name: value.cpu().numpy() for name, value in self.net.state_dict().items()}
        reply = FLModel(params_type=ParamsType.FULL, params=params, metrics={"dice": dice or 0.0},
                        meta={"NUM_STEPS_CURRENT_ROUND": len(self.training)})
        return FLModelUtils.to_shareable(reply)
'''


def check(job: Path) -> None:
    """Refuse early what would fail late.

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
    """Run ours and stock in turn; per repeat what each round after the first took, by name of `RUNS`.

    Raises:
        ValueError: a run failed, with the last line of its output, or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="omnifm-cost-") as name:
        scratch = Path(name)
        data = _data(scratch / "data")
        jobs = {run: _job(run, job, scratch, data, num_rounds) for run in runs}
        for _ in range(repeats):
            yield {run: _simulate(jobs[run], data, scratch / "ws", OURS if RUNS[run] else STOCK) for run in runs}


def _data(root: Path) -> Path:
    for site in SITES:
        shutil.copytree(demo_site("segmentation", site), root / site)
        keep_few(root / site / "dataset.json", CASES)
    return root


def _job(run: str, job: Path, scratch: Path, data: Path, num_rounds: int) -> Path:
    """A job folder of ours with the method exchanged, or of stock FedAvg."""
    record = json.loads(job_file(job).read_text(encoding="utf-8"))
    record["train"]["num_rounds"] = num_rounds
    record["method"] = RUNS[run] or {"name": "fedavg"}
    folder = scratch / "jobs" / run
    shutil.copytree(job_folder(job), folder)
    config = folder / "app/config"
    (config / "experiment.json").write_text(json.dumps(record))
    if RUNS[run] is None:
        _stock(folder, record, scratch, data)
    return folder


def _stock(folder: Path, record: dict[str, Any], scratch: Path, data: Path) -> None:
    """Turn a copy of our job into stock FedAvg; poll intervals and timeouts stay as they are."""
    config, custom = folder / "app/config", folder / "app/custom"
    experiment = Experiment.from_json(json.dumps(record))
    said = scratch / "stock.json"
    said.write_text(json.dumps({"experiment": record, "spec": _spec(experiment, data, scratch), "data": str(data)}))
    custom.mkdir(exist_ok=True)
    (custom / "stock.py").write_text(STOCK_CODE)
    client = json.loads((config / "config_fed_client.json").read_text())
    trainer = {"path": "stock.StockTrainer", "args": {"config": str(said)}}
    client |= {"executors": [{"tasks": ["train"], "executor": trainer}], "task_result_filters": []}
    server = json.loads((config / "config_fed_server.json").read_text())
    controller = {
        "num_clients": len(SITES),
        "num_rounds": experiment.train.num_rounds,
        "persistor_id": "persistor",
        "task_check_period": 0.1,
    }
    network = {"path": "stock.Network", "args": {"config": str(said)}}
    server["workflows"] = [{"id": "rounds", "path": "nvflare.app_common.workflows.fedavg.FedAvg", "args": controller}]
    server["components"] = [
        {
            "id": "persistor",
            "path": "nvflare.app_opt.pt.file_model_persistor.PTFileModelPersistor",
            "args": {"model": network},
        }
    ]
    (config / "config_fed_client.json").write_text(json.dumps(client))
    (config / "config_fed_server.json").write_text(json.dumps(server))


def _spec(experiment: Experiment, data: Path, scratch: Path) -> dict[str, Any]:
    """What our sites agree on before round 0."""
    facts = {}
    for name in SITES:
        site = Site(experiment, name, SiteConfig(str(data / name), str(scratch / "described" / name), "cpu"))
        facts[name] = site.reply(Payload("describe", 0, "cost", {}, {}, {})).facts["data"]
    return load_task(experiment).agree(facts)


def _simulate(job: Path, data: Path, workspace: Path, mark: re.Pattern[str]) -> list[Spent]:
    shutil.rmtree(workspace, ignore_errors=True)
    command = [_nvflare(), "simulator", "-w", str(workspace), str(job), "-n", str(len(SITES)), "-t", str(len(SITES))]
    environ = {name: value for name, value in os.environ.items() if name != "OMNIFM_STATE"}
    environ |= {"OMNIFM_DATA": str(data), "OMP_NUM_THREADS": "1"}
    with _process(command, environ) as process, sampled(process.pid) as samples:
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
    """A process that takes everything it started with it when it goes."""
    process = subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[Any]) -> None:
    """Kill what leads a session, with everything in it, if it is still there."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def sampled(root: int) -> Iterator[list[tuple[float, float]]]:
    """(clock time, CPU seconds so far of a process and its descendants), four times a second."""
    samples: list[tuple[float, float]] = []
    with repeated(0.25, lambda: samples.append((time.time(), cpu_seconds(root)))):
        yield samples


@contextmanager
def repeated(seconds: float, look: Callable[[], None]) -> Iterator[None]:
    """Call `look` every so many seconds, beside what the block does."""
    done = threading.Event()

    def until_done() -> None:
        while not done.wait(seconds):
            look()

    thread = threading.Thread(target=until_done, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def cpu_seconds(root: int) -> float:
    """CPU seconds of a process and its living descendants, from /proc; 0 where there is none."""
    ticks = 0
    for member in descendants(root):
        with suppress(OSError):  # it ended meanwhile
            fields = _stat(member)
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def descendants(root: int) -> set[int]:
    """A process and its living descendants, by number, from /proc."""
    parent = dict[int, int]()
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent[int(file.parent.name)] = int(_stat(int(file.parent.name))[1])
    tree = {root}
    while found := {child for child, above in parent.items() if above in tree} - tree:
        tree |= found
    return tree


def _stat(process: int) -> list[str]:
    """Fields of /proc/<process>/stat after the command's name, which may hold spaces."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def boundaries(log: str, mark: re.Pattern[str]) -> list[float]:
    """Clock times between rounds, by the first line of each; the first round, with its start-up, lies before them.

    Args:
        mark: `OURS`, whose lines end a round, or `STOCK`, whose lines begin one, the last ending the run.
    """
    stamps: dict[str, float] = {}
    for stamp, which in mark.findall(log):
        stamps.setdefault(which, datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp())
    return list(stamps.values())[1 if mark is STOCK else 0 :]


def spent(times: Sequence[float], samples: Sequence[tuple[float, float]]) -> list[Spent]:
    """Wall and CPU seconds between successive times; CPU is interpolated between samples, 0 without any."""
    clock, cpu = zip(*samples, strict=True) if samples else ((0.0,), (0.0,))
    used = np.interp(times, clock, cpu).tolist()
    return [(b - a, d - c) for (a, b), (c, d) in zip(pairwise(times), pairwise(used), strict=True)]
