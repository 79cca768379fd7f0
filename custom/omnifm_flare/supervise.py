"""Submit a job until its run is complete: `python -m omnifm_flare.supervise --kit ADMIN_KIT SEALED_JOB`.

A FLARE 2.9 job goes on if a hospital disconnects, a reply fails or a trainer process is killed.  Three faults end it:
- The job process of a hospital ends: FLARE fails the whole job within a second.
- The server ends: after its restart FLARE lists the job as RUNNING for ever, but no process runs it.
- A site restarts: it cannot join a running job again.

The run can still be completed, because checkpoint and personal state are kept outside the job: the same job submitted
again continues after the last finished round.  This program does that.  With an admin's kit it submits the job, watches
it, aborts it if no process runs it, and submits it again until the run is COMPLETE or SUBSET, or until the last
attempt.  It waits while the server restarts.  Run it on any machine that has the kit and stays on.

A job that an admin aborted is not submitted again.  Exit code 0: the run is complete.  Exit code 1: it is not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from nvflare.apis.job_def import RunStatus
from nvflare.fuel.flare_api.api_spec import AuthorizationError, InvalidJobDefinition, JobNotFound
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

POLL_S = 2.0
"""Seconds between two questions to the server."""
LOST_S = 30.0
"""Seconds for which the job's status may be RUNNING while the server runs no such job."""
RECONNECT_S = 120.0
"""Longest wait, in seconds, before another attempt until as many sites are connected as before the first one."""
AWAY_S = 3600.0
"""Seconds for which the server may be away."""
STARTED = (RunStatus.DISPATCHED.value, RunStatus.RUNNING.value)
DONE = ("COMPLETE", "SUBSET")
LOST = "LOST"
"""Status of a job that FLARE lists as running or has forgotten, and that no process runs."""
T = TypeVar("T")


class Supervisor:
    """Submits a job until its run is complete.

    Args:
        connect: opens a session with the server.
        say: takes one line of progress.
        poll_s: seconds between two questions to the server.
    """

    def __init__(self, connect: Callable[[], Session], say: Callable[[str], None], poll_s: float = POLL_S) -> None:
        self.connect = connect
        self.say = say
        self.poll_s = poll_s
        self.session: Session | None = None

    def run(self, job: Path, attempts: int, results: Path) -> bool:
        """Submit the job until its run is complete.

        Args:
            job: sealed job folder.
            attempts: largest number of submissions.
            results: folder for the results.

        Returns:
            True if the run is complete; its results are then below `results`.

        Raises:
            ConnectionError: the server was away for more than AWAY_S.
        """
        wanted = len(self._sites())
        for attempt in range(1, attempts + 1):
            job_id = self._submit(job)
            self.say(f"attempt {attempt} of {attempts}: {job.name} submitted as {job_id}")
            status = self.watch(job_id)
            outcome = self.outcome(job_id, results, completed=status == RunStatus.FINISHED_COMPLETED.value)
            self.say(f"{job_id}: {status}; the run is {outcome}")
            if outcome in DONE:
                return True
            if status == RunStatus.FINISHED_ABORTED.value:
                return False
            self._wait_for_sites(wanted)
        return False

    def watch(self, job_id: str) -> str:
        """Wait until the job has ended; return FLARE's status of it, or LOST if no process runs it."""
        said = ""
        seen_at = time.monotonic()
        while True:
            try:
                meta = self.ask(lambda session: session.get_job_meta(job_id))
            except JobNotFound:
                return LOST
            status = str(meta["status"])
            words = status + (self._why_waiting(meta) if status == RunStatus.SUBMITTED.value else "")
            if words != said:
                self.say(f"{job_id}: {words}")
                said = words
            if status.startswith("FINISHED"):
                return status
            running = [info.job_id for info in self.ask(lambda session: session.get_system_info()).job_info]
            if status not in STARTED or job_id in running:
                seen_at = time.monotonic()
            elif time.monotonic() - seen_at > LOST_S:
                self._abort(job_id)
                return LOST
            time.sleep(self.poll_s)

    def outcome(self, job_id: str, results: Path, *, completed: bool) -> str:
        """Download the results; return the status in summary.json, or "unfinished" if the job left none.

        FLARE's own status says nothing about rounds.

        Args:
            job_id: a job that has ended.
            results: the results are written to a folder in it, named by the job's id.
            completed: FLARE's status of the job is "completed".  It then has results, which must be downloaded,
                because the same job submitted again would start a new run.

        Raises:
            ConnectionError: the job is completed and the server does not send its results.
            OSError: the results cannot be written.
        """
        where = results / job_id
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        if completed:
            self.ask(lambda session: session.download_job_result(job_id, str(where)), away_s=AWAY_S)
        else:
            with suppress(Exception):  # a job that failed may have nothing to download
                self.ask(lambda session: session.download_job_result(job_id, str(where)), away_s=0)
        found = list(where.rglob("results/summary.json"))
        return str(json.loads(found[0].read_text())["status"]) if found else "unfinished"

    def ask(self, question: Callable[[Session], T], away_s: float = AWAY_S) -> T:
        """Ask the server.  While it does not answer, ask again: it may be restarting.

        Args:
            question: calls the session and returns the answer.
            away_s: seconds for which the server may be away.

        Raises:
            ConnectionError: the server was away for more than `away_s`.
        """
        end = time.monotonic() + away_s
        told = False
        while True:
            try:
                self.session = self.session or self.connect()
                return question(self.session)
            except (AuthorizationError, InvalidJobDefinition, JobNotFound):
                raise
            except Exception as error:  # noqa: BLE001 - FLARE's session raises many types when the server ends
                self.close()
                kind = type(error).__name__
                if time.monotonic() >= end:
                    raise ConnectionError(f"the server must answer; it does not ({kind}): is it started?") from None
                if not told:
                    self.say(f"the server does not answer ({kind}); waiting for it")
                    told = True
                time.sleep(self.poll_s)

    def close(self) -> None:
        """Close the session."""
        if self.session is not None:
            with suppress(Exception):
                self.session.close()
        self.session = None

    def _submit(self, job: Path) -> str:
        token = uuid.uuid4().hex  # FLARE takes a submission with the same token, after a lost connection, only once
        return str(self.ask(lambda session: session.submit_job(str(job.resolve()), token)))

    def _abort(self, job_id: str) -> None:
        self.say(f"{job_id}: FLARE lists it as running, but no process runs it; aborting it")
        with suppress(Exception):  # FLARE may fail to abort a job whose process ended with the server
            self.ask(lambda session: session.abort_job(job_id), away_s=0)

    def _sites(self) -> list[str]:
        return [client.name for client in self.ask(lambda session: session.get_system_info()).client_info]

    def _why_waiting(self, meta: Mapping[str, object]) -> str:
        """What a job that has not started yet waits for, as the server's job list says it."""
        needed = meta.get("min_clients") or "enough"
        return f"; it starts when {needed} hospitals are connected and free (connected now: {len(self._sites())})"

    def _wait_for_sites(self, wanted: int) -> None:
        end = time.monotonic() + RECONNECT_S
        while len(self._sites()) < wanted and time.monotonic() < end:
            time.sleep(self.poll_s)


def connector(kit: Path) -> Callable[[], Session]:
    """A function that opens a session with the server as the kit's admin.

    Raises:
        ValueError: the folder is not an admin's kit.
    """
    file = kit / "startup/fed_admin.json"
    if not file.exists():
        raise ValueError("--kit must be the startup kit of an admin; this folder has no startup/fed_admin.json")
    try:
        name = str(json.loads(file.read_text())["admin"]["username"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"startup/fed_admin.json must name the admin; got {type(error).__name__}") from None
    return lambda: new_secure_session(name, str(kit.resolve()))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m omnifm_flare.supervise", description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path, help="sealed job folder: transfer/<job> in the kit")
    parser.add_argument("--kit", type=Path, required=True, help="startup kit of an admin who may submit jobs")
    parser.add_argument("--attempts", type=int, default=5, help="largest number of submissions (default: 5)")
    parser.add_argument("--results", type=Path, help="folder for the results (default: a new temporary folder)")
    options = parser.parse_args()
    try:
        connect = connector(options.kit)
    except ValueError as error:
        parser.error(str(error))
    results = options.results or Path(tempfile.mkdtemp(prefix="omnifm-results-"))
    if results.exists() and not results.is_dir():
        parser.error("--results must be a folder; this is a file")
    supervisor = Supervisor(connect, lambda line: print(time.strftime("%H:%M:%S"), line, flush=True))
    try:
        complete = supervisor.run(options.job, options.attempts, results)
    except (AuthorizationError, InvalidJobDefinition, JobNotFound, OSError) as error:
        parser.exit(1, f"{error}\n")
    finally:
        supervisor.close()
    print(f"results: {results}" if complete else "the run is not complete; the lines above say why", flush=True)
    parser.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
