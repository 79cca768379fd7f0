"""See a job through: `python -m omnifm_flare.supervise --kit ADMIN_KIT SEALED_JOB`.

FLARE 2.9 survives a lost hospital and a failed reply, and a killed trainer costs one reply.  Three things end a FLARE
job whatever we do inside it: the death of a hospital's job process (the whole job fails within a second), the death of
the server (after its restart the job says RUNNING for ever, without a process), and a site that restarts (it rejoins no
running job).  The run itself survives: checkpoint and personal state lie outside the job, and the same job submitted
again goes on after the last finished round.  So this program, beside FLARE and with an admin's kit, submits the job,
watches it, aborts one that no process runs any more, and submits again until the run is COMPLETE or SUBSET, a bounded
number of times.  It outlives restarts of the server; run it where it may stay, on any machine that holds the kit.

A job that an admin aborted is not submitted again.  Exit code 0: the run is complete; 1: it is not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from nvflare.apis.job_def import RunStatus
from nvflare.fuel.flare_api.api_spec import AuthorizationError, InvalidJobDefinition, JobNotFound
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

POLL_S = 2.0
LOST_S = 30.0
"""Seconds that a job may say it runs while the server runs no such job."""
SETTLE_S = 120.0
"""Seconds to wait before another attempt until as many sites are connected as before the first."""
AWAY_S = 3600.0
"""Seconds that the server may be away."""
STARTED = (RunStatus.DISPATCHED.value, RunStatus.RUNNING.value)
DONE = ("COMPLETE", "SUBSET")
LOST = "LOST"
T = TypeVar("T")


class Supervisor:
    """Submits a job until its run is complete.

    Args:
        connect: opens a session with the server.
        say: takes one line of progress.
        poll_s: seconds between two looks.
    """

    def __init__(self, connect: Callable[[], Session], say: Callable[[str], None], poll_s: float = POLL_S) -> None:
        self.connect, self.say, self.poll_s = connect, say, poll_s
        self.session: Session | None = None

    def run(self, job: Path, attempts: int, results: Path) -> bool:
        """Whether the run was completed within that many attempts; its results are then below `results`.

        Raises:
            ConnectionError: the server was away for more than AWAY_S.
        """
        wanted = len(self._sites())
        for attempt in range(1, attempts + 1):
            token = uuid.uuid4().hex  # a submission repeated after a lost connection is the same one
            job_id = self.ask(lambda session, token=token: session.submit_job(str(job.resolve()), token))  # type: ignore[misc]
            self.say(f"attempt {attempt} of {attempts}: {job.name} submitted as {job_id}")
            status = self.watch(job_id)
            outcome = self.outcome(job_id, results, whole=status == RunStatus.FINISHED_COMPLETED.value)
            self.say(f"{job_id}: {status}; the run is {outcome}")
            if outcome in DONE:
                return True
            if status == RunStatus.FINISHED_ABORTED.value:
                return False
            self._settle(wanted)
        return False

    def watch(self, job_id: str) -> str:
        """Wait until the job has ended; return its status, LOST if it says that it runs and does not."""
        said, seen = "", time.monotonic()
        while True:
            try:
                status = str(self.ask(lambda session: session.get_job_meta(job_id))["status"])
            except JobNotFound:
                return LOST
            if status != said:
                self.say(f"{job_id}: {status}")
                said = status
            if status.startswith("FINISHED"):
                return status
            running = [info.job_id for info in self.ask(lambda session: session.get_system_info()).job_info]
            if status not in STARTED or job_id in running:
                seen = time.monotonic()
            elif time.monotonic() - seen > LOST_S:
                self._abort(job_id)
                return LOST
            time.sleep(self.poll_s)

    def outcome(self, job_id: str, results: Path, *, whole: bool) -> str:
        """Status in the job's summary.json; FLARE's own says nothing about rounds.  "unfinished" if there is none.

        Args:
            job_id: a job that has ended.
            results: below it, in a folder of the job's name, go the results.
            whole: FLARE says that the job did all it was to do: it has results, and submitted again it begins anew.

        Raises:
            ConnectionError: there are results and the server does not give them.
            OSError: they cannot be written.
        """
        where = results / job_id
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(*() if whole else (Exception,)):  # a job that died may have nothing to download
            self.ask(lambda session: session.download_job_result(job_id, str(where)), away_s=AWAY_S if whole else 0)
        found = list(where.rglob("results/summary.json"))
        return str(json.loads(found[0].read_text())["status"]) if found else "unfinished"

    def ask(self, question: Callable[[Session], T], away_s: float = AWAY_S) -> T:
        """Ask the server, again if it is away: it may be restarting.

        Raises:
            ConnectionError: it was away for more than `away_s`.
        """
        end, told = time.monotonic() + away_s, False
        while True:
            try:
                self.session = self.session or self.connect()
                return question(self.session)
            except (AuthorizationError, InvalidJobDefinition, JobNotFound):
                raise
            except Exception as error:  # noqa: BLE001 - FLARE's session fails in many ways when the server goes
                self.close()
                if time.monotonic() >= end:
                    raise ConnectionError(f"the server must answer; it does not ({type(error).__name__})") from None
                if not told:
                    self.say(f"the server does not answer ({type(error).__name__}); waiting for it")
                    told = True
                time.sleep(self.poll_s)

    def close(self) -> None:
        """End the session."""
        if self.session is not None:
            with suppress(Exception):
                self.session.close()
        self.session = None

    def _abort(self, job_id: str) -> None:
        self.say(f"{job_id}: says that it runs, but no process runs it; aborting it")
        with suppress(Exception):  # FLARE cannot abort a job whose process died with the server
            self.ask(lambda session: session.abort_job(job_id), away_s=0)

    def _sites(self) -> list[str]:
        return [client.name for client in self.ask(lambda session: session.get_system_info()).client_info]

    def _settle(self, wanted: int) -> None:
        end = time.monotonic() + SETTLE_S
        while len(self._sites()) < wanted and time.monotonic() < end:
            time.sleep(self.poll_s)


def connector(kit: Path) -> Callable[[], Session]:
    """A function that opens sessions as the kit's admin.

    Raises:
        ValueError: the folder is no admin's kit.
    """
    file = kit / "startup/fed_admin.json"
    if not file.exists():
        raise ValueError("--kit must be an admin's startup kit; it has no startup/fed_admin.json")
    try:
        name = str(json.loads(file.read_text())["admin"]["username"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"startup/fed_admin.json must name the admin; got {type(error).__name__}") from None
    return lambda: new_secure_session(name, str(kit.resolve()))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m omnifm_flare.supervise", description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path, help="sealed job folder, transfer/<job> of the kit")
    parser.add_argument("--kit", type=Path, required=True, help="startup kit of an admin who may submit")
    parser.add_argument("--attempts", type=int, default=5, help="submissions before it gives up")
    parser.add_argument("--results", type=Path, help="where the results go; a temporary folder by default")
    asked = parser.parse_args()
    try:
        connect = connector(asked.kit)
    except ValueError as error:
        parser.error(str(error))
    results = asked.results or Path(tempfile.mkdtemp(prefix="omnifm-results-"))
    if results.exists() and not results.is_dir():
        parser.error("--results must be a folder; it is a file")
    supervisor = Supervisor(connect, lambda line: print(time.strftime("%H:%M:%S"), line, flush=True))
    try:
        complete = supervisor.run(asked.job, asked.attempts, results)
    except (AuthorizationError, InvalidJobDefinition, JobNotFound, OSError) as error:
        parser.exit(1, f"{error}\n")
    finally:
        supervisor.close()
    print(f"results: {results}" if complete else "the run is not complete", flush=True)
    parser.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
