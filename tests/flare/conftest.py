"""Real FLARE processes on tiny volumes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import BIN, tree

ROOT = Path(__file__).resolve().parents[2]
TRAINER = "omnifm_flare.trainer_process"


class Simulator:
    """One `nvflare simulator` command and the workspace it leaves."""

    def __init__(self, job: Path, workspace: Path, *args: str, **environ: Path | str) -> None:
        self.results = workspace / "server/simulate_job/results"
        self.workspace = workspace
        clean = {k: v for k, v in os.environ.items() if not k.startswith("OMNIFM_")}
        self.log = (workspace.parent / f"{workspace.name}.log").open("w+")
        self.process = subprocess.Popen(
            [str(BIN / "nvflare"), "simulator", "-w", str(workspace), str(job), *args],
            env=clean | {k: str(v) for k, v in environ.items()},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> int:
        """Wait until it ends; return the exit code."""
        return self.process.wait(timeout=500)

    def summary(self) -> dict[str, object]:
        """Wait, then read summary.json.  If the run fails, the test fails and shows the console."""
        assert self.wait() == 0, self.console()[-3000:]
        return json.loads((self.results / "summary.json").read_text())

    def console(self) -> str:
        """What it has printed so far."""
        self.log.flush()
        return Path(self.log.name).read_text()

    def rounds(self) -> int:
        """Number of finished rounds in rounds.jsonl."""
        file = self.results / "rounds.jsonl"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def descendants(self) -> dict[int, str]:
        """Command lines of the processes below this one, by id."""
        return {pid: args for pid, args in tree(self.process.pid).items() if pid != self.process.pid}

    def trainers(self) -> list[int]:
        """Ids of its trainer processes."""
        return sorted(pid for pid, args in self.descendants().items() if TRAINER in args)


def write_job(folder: Path, **train: object) -> Path:
    """Copy a shipped job and give it a tiny experiment."""
    shutil.copytree(ROOT / "jobs/seg_fets", folder)
    settings = {"num_rounds": 1, "local_epochs": 1, "batch_size": 2, "lr": 0.01, "num_threads": 1} | train
    record = {
        "job": "tiny",
        "task": {"name": "segmentation", "patch_size": 16},
        "data": {"name": "tiny"},
        "model": {"channels": [4, 8]},
        "method": {"name": "omnifm", "dim": 8, "num_bands": 8},
        "train": settings,
        "seed": 3,
    }
    (folder / "app/config/experiment.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def tidy() -> Iterator[list[Simulator]]:
    """Simulators that are killed when the test ends."""
    started: list[Simulator] = []
    yield started
    for simulator in started:
        if simulator.process.poll() is None:
            simulator.process.kill()
            simulator.process.wait()
        simulator.log.close()
