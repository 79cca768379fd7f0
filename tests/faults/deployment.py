"""A real provisioned deployment on this machine: mutual TLS, a process tree per participant, tiny volumes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from omnifm_flare.supervise import Supervisor, connector
from tests.conftest import write_site
from tests.processes import BIN, clean_env, free_port, start_participant, tree

ROOT = Path(__file__).resolve().parents[2]
HEART_BEATS_S = 60
NUM_ROUNDS = 6
TRAINER = "omnifm_flare.trainer_process"


class Deployment:
    """Provision and start; `with` ends every process that was started."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="omnifm-faults-"))
        self.env = clean_env(self.folder) | {"OMP_NUM_THREADS": "1"}
        project = yaml.safe_load((ROOT / "provisioning/project.yml").read_text())
        people = {p["type"] + p.get("role", ""): p for p in reversed(project["participants"])}
        self.server, admin = people["server"]["name"], people["adminproject_admin"]["name"]
        self.sites = [p["name"] for p in project["participants"] if p["type"] == "client"]
        people["server"]["fed_learn_port"] = free_port()
        people["server"].pop("admin_port", None)
        for builder in project["builders"]:
            if builder["path"].endswith("OmniFMBuilder"):
                builder.setdefault("args", {})["heart_beat_timeout_s"] = HEART_BEATS_S
        (self.folder / "project.yml").write_text(yaml.safe_dump(project, sort_keys=False))
        subprocess.run(
            [str(BIN / "nvflare"), "provision", "-p", str(self.folder / "project.yml"), "-w", str(self.folder / "w")],
            cwd=ROOT,
            env=self.env,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        self.kits = self.folder / "w" / project["name"] / "prod_00"
        self.kit = self.kits / admin
        for number, site in enumerate(self.sites, 1):
            write_site(self.data / site, num=5 + number, seed=number)
            self.configure(site, self.folder / "state" / site)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.line = Supervisor(connector(self.kit), lambda _line: None, poll_s=0.5)

    @property
    def data(self) -> Path:
        """Folder with one folder per site."""
        return self.folder / "data"

    def configure(self, site: str, state: Path) -> None:
        """Where a site's data and state lie."""
        record = {"data_root": str(self.data / site), "state_dir": str(state), "device": "cpu"}
        (self.kits / site / "local/omnifm_site.json").write_text(json.dumps(record))

    def start(self, *names: str, kit: Path | None = None, **environ: str) -> None:
        """Start participants."""
        for name in names:
            folder = kit or self.kits / name
            for stale in ("shutdown.fl", "daemon_pid.fl"):
                (folder / stale).unlink(missing_ok=True)
            self.processes[name if kit is None else str(kit)] = start_participant(folder, self.env | environ)

    def tree(self, name: str) -> dict[int, str]:
        """Command lines of a participant's processes by id, itself included."""
        return tree(self.processes[name].pid) if name in self.processes else {}

    def some(self, name: str, part: str) -> list[int]:
        """Ids of a participant's processes with that part in their command line."""
        return sorted(pid for pid, args in self.tree(name).items() if part in args)

    def signal(self, name: str, number: int) -> None:
        """To the whole tree."""
        for pid in sorted(self.tree(name)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self, name: str) -> None:
        """As a power cut."""
        self.signal(name, signal.SIGKILL)
        with suppress(KeyError):
            self.processes.pop(name).wait(30)

    def connected(self) -> list[str]:
        """Sites that the server knows."""
        return sorted(c.name for c in self.line.ask(lambda session: session.get_system_info()).client_info)

    def job(self, name: str, method: dict[str, Any], **train: Any) -> Path:
        """A sealed job of that name: the shipped wiring with a tiny experiment."""
        folder = self.folder / "jobs" / name
        shutil.copytree(self.kit / "transfer/seg_fets", folder)
        meta = json.loads((folder / "meta.json").read_text()) | {"name": name}
        (folder / "meta.json").write_text(json.dumps(meta))
        settings = {"num_rounds": NUM_ROUNDS, "local_epochs": 4, "batch_size": 2, "lr": 0.01} | train
        record = {
            "job": name,
            "task": {"name": "segmentation", "patch_size": 16},
            "data": {"name": "tiny"},
            "model": {"channels": [4, 8]},
            "method": method,
            "train": settings,
            "seed": 3,
        }
        (folder / "app/config/experiment.json").write_text(json.dumps(record))
        return folder

    def submit(self, job: Path) -> str:
        """Submit; returns the job's id."""
        return self.line.ask(lambda session: session.submit_job(str(job)))

    def rounds(self, job: str) -> list[dict[str, Any]]:
        """Rounds that the newest run of this job has finished."""
        found = []
        for file in self.kits.glob(f"{self.server}/*/results/rounds.jsonl"):
            config = next(file.parents[1].rglob("experiment.json"), None)
            if config is not None and json.loads(config.read_text())["job"] == job:
                found.append(file)
        newest = max(found, key=lambda file: file.stat().st_mtime, default=None)
        return [json.loads(line) for line in newest.read_text().splitlines()] if newest else []

    def end(self, job_id: str) -> tuple[str, dict[str, Any]]:
        """Wait for a job's end; (FLARE's status, summary.json or nothing)."""
        status = self.line.watch(job_id)
        self.line.outcome(job_id, self.folder / "results", completed=status == "FINISHED:COMPLETED")
        return status, self.summary(job_id)

    def summary(self, job_id: str) -> dict[str, Any]:
        """Of a job that was downloaded."""
        found = list((self.folder / "results" / job_id).rglob("results/summary.json"))
        return json.loads(found[0].read_text()) if found else {}

    @contextmanager
    def supervised(self, job: Path) -> Iterator[subprocess.Popen[str]]:
        """Run the supervisor's command on this job."""
        command = [
            sys.executable,
            "-m",
            "omnifm_flare.supervise",
            "--kit",
            str(self.kit),
            str(job),
            "--results",
            str(self.folder / "results"),
        ]
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def __enter__(self) -> Deployment:
        self.start(self.server, *self.sites)
        until(lambda: len(self.connected()) == len(self.sites), 120, "sites connected")
        return self

    def __exit__(self, *_error: object) -> None:
        self.line.close()
        for name in list(self.processes):
            self.signal(name, signal.SIGCONT)
            self.kill(name)
        if not os.environ.get("KEEP"):
            shutil.rmtree(self.folder, ignore_errors=True)


def until(true: Callable[[], object], seconds: float, what: str) -> float:
    """Wait for something; returns the seconds it took.

    Raises:
        TimeoutError: it did not come.
    """
    started = time.monotonic()
    while not true():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - started
