"""The fault suite: `python -m tests.faults.suite [ROW ...]` from the project's root; minutes, no part of `pytest`.

Real provisioned processes are killed, stopped, filled up and lied to; a table says what was expected and what was
seen.  Seconds are from the fault to the next closed round, or to the next attempt's first round.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from omnifm import simulation
from omnifm.config import Experiment
from tests.faults import evil_filters
from tests.faults.deployment import NUM_ROUNDS, ROOT, TRAINER, Deployment, until

OMNIFM = {"name": "omnifm", "dim": 8, "num_bands": 8}
FEDAVG = {"name": "fedavg"}


@dataclass
class Row:
    """One line of the table."""

    expected: str
    observed: str
    holds: bool
    seconds: float | None = None


@cache
def undisturbed(job: Path, data: Path, sites: tuple[str, ...]) -> str:
    """final_hash of the same job in this process."""
    experiment = Experiment.from_job(job)
    return str(simulation.run(experiment, data, sites)["final_hash"])


def running(d: Deployment, job: Path, rounds: int = 2) -> str:
    """Submit and wait until some rounds are done."""
    job_id = d.submit(job)
    until(lambda: len(d.rounds(job.name)) >= rounds, 300, f"round {rounds} of {job.name}")
    return job_id


def next_round(d: Deployment, job: str, seconds: float = 300) -> float:
    """Seconds until the round in flight has closed and the one after it."""
    done = len(d.rounds(job))
    return until(lambda: len(d.rounds(job)) > done, seconds, f"next round of {job}")


def trainer_killed(d: Deployment) -> Row:
    """SIGKILL one trainer in the middle of a run."""
    job = d.job("trainer", OMNIFM)
    job_id = running(d, job)
    os.kill(d.some(d.sites[0], TRAINER)[-1], signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: any(d.sites[0] in e["missing"] for e in d.rounds("trainer")), 300, "a lost reply")
    until(lambda: d.sites[0] in d.rounds("trainer")[-1]["sites"], 300, "the site's return")
    seconds = time.monotonic() - killed
    _, summary = d.end(job_id)
    lost = [e["missing"] for e in summary["history"] if e["missing"]]
    return Row(
        "one reply lost, every round done",
        f"{len(lost)} lost ({lost}), rounds {summary['rounds']}",
        lost == [{d.sites[0]: "trainer process ended (signal 9)"}] and len(summary["history"]) == NUM_ROUNDS,
        seconds,
    )


def job_process_killed(d: Deployment) -> Row:
    """SIGKILL the job process of one hospital: FLARE fails the whole job, the supervisor resumes it."""
    job = d.job("worker", OMNIFM)
    return _supervised(d, job, lambda: os.kill(d.some(d.sites[0], "worker_process")[0], signal.SIGKILL))


def server_killed(d: Deployment) -> Row:
    """Power cut at the server; the supervisor resumes."""
    job = d.job("server", OMNIFM)

    def cut() -> None:
        d.kill(d.server)
        time.sleep(2)
        d.start(d.server)

    return _supervised(d, job, cut)


def checkpoint_damaged(d: Deployment) -> Row:
    """Power cut at the server, and one bit of its newest checkpoint is another: it goes back one round, and says so."""
    job = d.job("damaged", OMNIFM)

    def cut() -> None:
        d.kill(d.server)
        newest = max(
            (d.kits / d.server / "state/damaged").glob("server.*.state"), key=lambda f: int(f.name.split(".")[1])
        )
        data = bytearray(newest.read_bytes())
        data[len(data) // 2] ^= 8
        newest.write_bytes(data)
        d.start(d.server)

    row = _supervised(d, job, cut)
    logs = (d.folder / "results").rglob("log*.txt")  # of the run that resumed, as downloaded
    said = any("falling back to the one before" in log.read_text() for log in logs)
    row.observed += f"; fallback {'said' if said else 'NOT said'}"
    row.holds = row.holds and said
    return row


def _supervised(d: Deployment, job: Path, fault: Callable[[], None]) -> Row:
    with d.supervised(job) as supervisor:
        until(lambda: len(d.rounds(job.name)) >= 3, 300, "round 3")
        fault()
        killed, before = time.monotonic(), len(d.rounds(job.name))
        until(lambda: len(d.rounds(job.name)) > before, 400, "a round of the next attempt")
        seconds = time.monotonic() - killed
        out, _ = supervisor.communicate(timeout=600)
    summaries = [d.summary(folder.name) for folder in (d.folder / "results").iterdir()]
    ends = [s for s in summaries if s and s["job"] == job.name and s["status"] != "FAILED"]
    same = bool(ends) and ends[-1]["final_hash"] == undisturbed(job, d.data, tuple(d.sites))
    attempts = out.count("submitted as")
    return Row(
        "resubmitted, resumed, same final_hash, within 120 s",
        f"attempts {attempts}, {ends[-1]['status'] if ends else 'no end'}, hash {'same' if same else 'OTHER'}",
        same and attempts == 2 and seconds <= 120,
        seconds,
    )


def site_killed(d: Deployment) -> Row:
    """Power cut at one hospital; it comes back late and takes part in the next job."""
    victim = d.sites[-1]
    job_id = running(d, d.job("site", OMNIFM, num_rounds=6))
    d.kill(victim)
    seconds = next_round(d, "site") if victim in d.rounds("site")[-1]["sites"] else 0.0
    status, summary = d.end(job_id)
    d.start(victim)
    until(lambda: victim in d.connected(), 120, "the site's return")
    _, after = d.end(d.submit(d.job("after", OMNIFM, num_rounds=1)))
    missing = summary["history"][-1]["missing"].get(victim)
    return Row(
        "SUBSET, every round done by the others; back in the next job",
        f"{summary['status']} ({status}), {summary['rounds']['completed']}/6, {missing}; next job {after['status']} "
        f"with {len(after['sites'])} sites",
        summary["status"] == "SUBSET"
        and len(summary["history"]) == 6
        and missing is not None
        and after["status"] == "COMPLETE"
        and len(after["sites"]) == 3
        and seconds <= 120,
        seconds,
    )


def site_hung(d: Deployment) -> Row:
    """SIGSTOP every process of one hospital, SIGCONT after two rounds; its late reply is dropped."""
    victim = d.sites[-1]
    job_id = running(d, d.job("hung", OMNIFM, grace_s=10.0, num_rounds=12))
    d.signal(victim, signal.SIGSTOP)
    stopped = time.monotonic()
    until(lambda: victim in d.rounds("hung")[-1]["missing"], 120, "a round without it")
    seconds = time.monotonic() - stopped
    d.signal(victim, signal.SIGCONT)
    _, summary = d.end(job_id)
    lost = {entry["missing"][victim] for entry in summary["history"] if victim in entry["missing"]}
    back = victim in summary["history"][-1]["sites"]
    return Row(
        "closed by grace_s 10 without it, then it is back",
        f"{summary['status']}, {summary['rounds']['completed']}/12, {sorted(lost)}, back: {back}",
        len(summary["history"]) == 12 and lost == {"timeout"} and back and seconds <= 60,
        seconds,
    )


def trainer_hung(d: Deployment) -> Row:
    """SIGSTOP the trainer alone: the hospital is connected and says nothing."""
    victim = d.sites[0]
    job_id = running(d, d.job("stuck", OMNIFM, grace_s=40.0, num_rounds=8))
    (pid,) = d.some(victim, TRAINER)
    os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    until(lambda: victim in d.rounds("stuck")[-1]["missing"], 120, "a round without it")
    until(lambda: victim in d.rounds("stuck")[-1]["sites"], 400, "its next trainer's first reply")
    seconds = time.monotonic() - stopped
    _, summary = d.end(job_id)
    missing = sum(victim in entry["missing"] for entry in summary["history"])
    return Row(
        "rounds close by grace_s 40 without it; after 120 s it has a new trainer",
        f"{summary['status']}, {summary['rounds']['completed']}/8, missing in {missing}",
        len(summary["history"]) == 8 and 1 <= missing <= 5,
        seconds,
    )


def site_late(d: Deployment) -> Row:
    """A hospital starts in the middle of a job: nobody waits for it, and the next job has it."""
    victim = d.sites[-1]
    d.kill(victim)
    until(lambda: victim not in d.connected(), 150, "the server to notice")
    job_id = running(d, d.job("late", OMNIFM, num_rounds=5), 1)
    d.start(victim)
    started = time.monotonic()
    until(lambda: victim in d.connected(), 120, "the late site")
    seconds = time.monotonic() - started
    _, summary = d.end(job_id)
    _, after = d.end(d.submit(d.job("joined", OMNIFM, num_rounds=1)))
    return Row(
        "the others finish; it takes part in the next job",
        f"{summary['status']} with {len(summary['sites'])}; next {after['status']} with {len(after['sites'])}",
        len(summary["history"]) == 5 and len(summary["sites"]) == 2 and len(after["sites"]) == 3,
        seconds,
    )


def disk_full(d: Deployment) -> Row:
    """The disk of one hospital's state is full for a while: replies are lost with a reason, then it is back."""
    victim = d.sites[0]
    small = d.folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)], check=False).returncode:
        return Row("lost replies say so", "not tried: no right to mount a small file system", True)
    try:
        d.configure(victim, small)
        job_id = running(d, d.job("full", OMNIFM, num_rounds=10), 2)
        with (small / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(4096))
        filled = time.monotonic()
        until(lambda: victim in d.rounds("full")[-1]["missing"], 120, "a lost reply")
        (small / "ballast").unlink()
        until(lambda: victim in d.rounds("full")[-1]["sites"], 120, "the site's return")
        seconds = time.monotonic() - filled
        _, summary = d.end(job_id)
    finally:
        d.configure(victim, d.folder / "state" / victim)
        subprocess.run(["umount", "-l", str(small)], check=False)
    lost = sorted({entry["missing"][victim] for entry in summary["history"] if victim in entry["missing"]})
    return Row(
        "lost replies say so, then it is back",
        f"{summary['status']}, {summary['rounds']['completed']}/10, {lost}",
        len(summary["history"]) == 10 and all("No space left" in reason for reason in lost),
        seconds,
    )


def identity_twice(d: Deployment) -> Row:
    """A copied kit logs in as a hospital that is connected already."""
    victim, copy = d.sites[1], d.folder / "copied-kit"
    shutil.copytree(d.kits / victim, copy, ignore=shutil.ignore_patterns("*-*-*-*-*", "*.fl"))
    job_id = running(d, d.job("twice", OMNIFM))
    d.start(victim, kit=copy)
    started = time.monotonic()
    status, summary = d.end(job_id)
    logs = (d.kits / d.server / "log.txt").read_text() + (copy / "console.log").read_text()
    named = [line for line in logs.splitlines() if victim in line and ("already" in line or "uplicate" in line)]
    d.kill(str(copy))
    done = len(summary.get("history", []))
    return Row(
        "every round done, the second one is named",
        f"{status}, {summary.get('status')} {done}/{NUM_ROUNDS}; named: {bool(named)}",
        done == NUM_ROUNDS and bool(named),
        time.monotonic() - started,
    )


def job_aborted(d: Deployment) -> Row:
    """An admin aborts: no process of the job is left, and the job resumes when it is submitted again."""
    job = d.job("aborted", OMNIFM)
    job_id = running(d, job)
    d.line.ask(lambda session: session.abort_job(job_id))

    def left() -> list[int]:
        return [
            pid
            for name in (d.server, *d.sites)
            for part in (TRAINER, "worker_process", "runner_process")
            for pid in d.some(name, part)
        ]

    seconds = until(lambda: not left(), 60, "the job's processes to end")
    exchange = list(d.folder.glob("state/*/aborted/exchange/*"))
    _, summary = d.end(d.submit(job))
    same = summary.get("final_hash") == undisturbed(job, d.data, tuple(d.sites))
    return Row(
        "no process and no message left; resumes to the same hash",
        f"0 processes, {len(exchange)} messages left, {summary.get('status')}, hash {'same' if same else 'OTHER'}",
        not exchange and same and seconds <= 30,
        seconds,
    )


def bad_updates(d: Deployment) -> Row:
    """One hospital sends another bad update every round: the model is that of the other two."""
    victim, honest = d.sites[1], (d.sites[0], d.sites[2])
    evil = d.folder / "evil/omnifm_flare"
    evil.mkdir(parents=True)
    for file in (ROOT / "custom/omnifm_flare").glob("*.py"):
        (evil / file.name).symlink_to(file)
    (evil / "filters.py").unlink()
    (evil / "filters.py").symlink_to(ROOT / "tests/faults/evil_filters.py")
    d.kill(victim)
    d.start(victim, PYTHONPATH=str(evil.parent))
    until(lambda: len(d.connected()) == 3, 120, "the evil site")
    time.sleep(5)
    job = d.job("evil", FEDAVG, num_rounds=len(evil_filters.FAULTS), local_epochs=1)
    status, summary = d.end(d.submit(job))
    d.kill(victim)
    d.start(victim)
    until(lambda: len(d.connected()) == 3, 120, "the honest site")
    contained = sum(victim in entry["missing"] for entry in summary.get("history", []))
    same = summary.get("final_hash") == undisturbed(job, d.data, honest)
    number = len(evil_filters.FAULTS)
    return Row(
        f"{number} of {number} refused, model of the other two",
        f"{contained}/{number} refused ({status}), hash {'same as theirs alone' if same else 'OTHER'}",
        contained == number and same,
    )


def checkpoint_kills(_d: Deployment) -> Row:
    """SIGKILL while checkpoints are written."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.kills", "--kills", "200"], cwd=ROOT, capture_output=True, text=True
    )
    return Row("200 kills: 0 unreadable", done.stdout.strip(), done.returncode == 0)


ROWS = (
    trainer_killed,
    trainer_hung,
    job_process_killed,
    site_killed,
    site_hung,
    site_late,
    server_killed,
    checkpoint_damaged,
    disk_full,
    identity_twice,
    job_aborted,
    bad_updates,
    checkpoint_kills,
)


def main() -> None:
    """Run the named rows, or all; exit code 1 if one does not hold."""
    known = {row.__name__: row for row in ROWS}
    chosen = sys.argv[1:] or list(known)
    if unknown := set(chosen) - set(known):
        sys.exit(f"rows must be among {sorted(known)}; got {sorted(unknown)}")
    table: dict[str, Row] = {}
    with Deployment() as d:
        for name in chosen:
            started = time.monotonic()
            try:
                table[name] = known[name](d)
            except Exception as error:  # noqa: BLE001 - one row must not cost the others
                traceback.print_exc()
                table[name] = Row("an end", f"{type(error).__name__}: {error}", False)
            print(f"{time.monotonic() - started:6.0f} s  {name}: {table[name].observed}", flush=True)
    print("\n| fault | expected | observed | seconds to recover | holds |\n|---|---|---|---|---|")
    for name, row in table.items():
        seconds = "" if row.seconds is None else f"{row.seconds:.0f}"
        cells = (name.replace("_", " "), row.expected, row.observed, seconds, "yes" if row.holds else "NO")
        print(f"| {' | '.join(cells)} |")
    sys.exit(0 if all(row.holds for row in table.values()) else 1)


if __name__ == "__main__":
    main()
