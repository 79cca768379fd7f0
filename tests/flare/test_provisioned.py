"""Two hospitals and a server with mutual TLS on this machine, started once for the whole file: about a minute.

The steps are those of provisioning/README.md: provision, write the site file, preflight, start, submit, download.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.processes import BIN, clean_env, free_port, start_participant, tree

SERVER, HOSPITALS = "server.omnifm.example", ("hospital-a", "hospital-b")
LEAD = "lead@consortium.example"
WAIT_S = 240
pytestmark = pytest.mark.timeout(600)


class Consortium:
    """The kits, the running processes, and the lead's commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = clean_env(folder)
        self.kits = folder / "w/omnifm/prod_00"
        self.processes: list[subprocess.Popen[bytes]] = []

    def command(self, *args: object) -> subprocess.CompletedProcess[str]:
        """Run one of our console scripts from the project's root."""
        return subprocess.run(
            [str(BIN / str(args[0])), *map(str, args[1:])],
            cwd=ROOT,
            env=self.env,
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=WAIT_S,
        )

    def flare(self, *args: object) -> dict:
        """Run an `nvflare` command as the lead; return its answer."""
        done = self.command("nvflare", "--format", "json", *args, "--startup-kit", self.kits / LEAD)
        answer = [line for line in done.stdout.splitlines() if line.startswith("{")]
        assert answer, done.stdout + done.stderr
        return json.loads(answer[-1])["data"]

    def start(self, name: str) -> None:
        """Start one of the participants."""
        self.processes.append(start_participant(self.kits / name, self.env))

    def wait_for(self, name: str, words: str) -> None:
        """Wait until a participant's console shows the words."""
        end, file = time.monotonic() + WAIT_S, self.kits / name / "console.log"
        while words not in file.read_text():
            assert time.monotonic() < end, file.read_text()[-2000:]
            time.sleep(0.2)

    def stop(self) -> None:
        """Kill the started processes and all below them; jobs run in sessions of their own."""
        for process in self.processes:
            for pid in tree(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """A consortium that is provisioned, has data and site files, and runs."""
    made = Consortium(tmp_path_factory.mktemp("consortium"))
    project = yaml.safe_load((ROOT / "provisioning/project.yml").read_text())
    people = [person for person in project["participants"] if person["name"] != "hospital-c"]
    people[0]["fed_learn_port"] = free_port()
    (made.folder / "project.yml").write_text(yaml.safe_dump(project | {"participants": people}))
    for command in (
        ("nvflare", "provision", "-p", made.folder / "project.yml", "-w", made.folder / "w"),
        ("omnifm", "prepare", "demo", made.folder / "data", "--task", "segmentation", "--sites", 2),
    ):
        done = made.command(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    for number, name in enumerate(HOSPITALS, 1):
        record = {
            "data_root": str(made.folder / f"data/site-{number}"),
            "state_dir": str(made.folder / "state" / name),
            "device": "cpu",
        }
        (made.kits / name / "local/omnifm_site.json").write_text(json.dumps(record))
    try:
        for name in (SERVER, *HOSPITALS):
            made.start(name)
        for name in HOSPITALS:
            made.wait_for(name, "Successfully registered client")
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def sealed(consortium: Consortium) -> Path:
    """The lead's sealed job with a tiny experiment.json."""
    job = consortium.folder / "tiny"
    shutil.copytree(consortium.kits / LEAD / "transfer/seg_fets", job)
    record = {
        "job": "tiny",
        "task": {"name": "segmentation", "patch_size": 16},
        "data": {"name": "demo"},
        "model": {"channels": [4, 8]},
        "method": {"name": "omnifm", "dim": 8, "num_bands": 8},
        "train": {"num_rounds": 2, "local_epochs": 1, "batch_size": 4, "lr": 0.01},
    }
    (job / "app/config/experiment.json").write_text(json.dumps(record))
    return job


@pytest.fixture(scope="module")
def submitted(consortium: Consortium, sealed: Path) -> dict[str, str]:
    """Submit both jobs at once: FLARE can refuse one while it runs the other."""
    jobs = {"unsealed": ROOT / "jobs/seg_fets", "sealed": sealed}
    return {name: consortium.flare("job", "submit", "-j", job)["job_id"] for name, job in jobs.items()}


class TestPreflight:
    def test_finds_nothing_wrong_with_a_hospital_as_provisioned(self, consortium, sealed):
        done = consortium.command("omnifm", "preflight", "--kit", consortium.kits / HOSPITALS[0], "--job", sealed)
        assert done.returncode == 0, done.stdout + done.stderr
        *checks, verdict = done.stdout.splitlines()
        assert verdict == "this hospital can take part"
        lines = [line.split(None, 2) for line in checks]
        assert [line[1] for line in lines] == [
            "software",
            "nvflare",
            "kit",
            "certificate",
            "key",
            "code",
            "classes",
            "logs",
            "filter",
            "server",
            "site",
            "state",
            "device",
            "task",
            "data",
            "round",
        ]
        assert {line[0] for line in lines} == {"ok"}
        assert f"{SERVER} at localhost:" in done.stdout


class TestJobs:
    def test_an_unsealed_job_is_refused_and_its_submitter_reads_why(self, consortium, submitted):
        consortium.flare("job", "wait", submitted["unsealed"], "--timeout", WAIT_S, "--interval", 1)
        meta = consortium.flare("job", "meta", submitted["unsealed"])
        assert meta["status"] == "FINISHED:FAILED_TO_RUN"
        assert "BYOC" in json.dumps(meta["job_deploy_detail"])

    def test_a_sealed_job_completes_on_the_hospitals_own_data(self, consortium, submitted):
        consortium.flare("job", "wait", submitted["sealed"], "--timeout", WAIT_S, "--interval", 1)
        assert consortium.flare("job", "meta", submitted["sealed"])["status"] == "FINISHED:COMPLETED"
        consortium.flare("job", "download", submitted["sealed"], "-o", consortium.folder / "download")
        (file,) = (consortium.folder / "download").rglob("results/summary.json")
        summary = json.loads(file.read_text())
        assert (summary["status"], sorted(summary["sites"])) == ("COMPLETE", list(HOSPITALS))
        assert (file.parent / "report.html").stat().st_size > 0
        names = [path.name for path in (consortium.folder / "download").rglob("*")]
        assert not [name for name in names if any(word in name for word in ("bank", "personal", ".state"))]

    def test_personal_state_is_the_hospitals_alone(self, consortium, submitted):
        for name in HOSPITALS:
            files = [path for path in (consortium.folder / "state" / name).rglob("*") if path.is_file()]
            assert "personal.2.state" in {path.name for path in files}
            assert all(path.stat().st_mode & 0o077 == 0 for path in files)

    def test_no_traceback_and_no_streamed_log(self, consortium, submitted):
        for name in (SERVER, *HOSPITALS):
            assert "Traceback" not in (consortium.kits / name / "console.log").read_text()
        assert not list((consortium.kits / SERVER).rglob("*ERRORLOG*"))
