"""The executor's side of the trainer process: start it, send it requests, replace it when it ends or hangs."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from omnifm.config import SiteConfig
from omnifm_flare.cpu_time import IdleTimer
from omnifm_flare.site_state import private_folder

if TYPE_CHECKING:
    from omnifm.update import Payload, Update

POLL_S = 0.1
"""Seconds between two looks at an abort while the trainer works."""
HUNG_S = 120.0
"""Seconds without CPU time, in the trainer process and its direct children, after which it counts as hung.

Reading a large image may take longer, but the reader process then uses CPU time.
"""
MODULE = "omnifm_flare.trainer_process"


class Identity(TypedDict):
    """The first line to the trainer process: for which job and site it works."""

    experiment: str
    site: str
    config: dict[str, object]


class Request(TypedDict):
    """Each further line to the trainer process: the file to read and the file to write."""

    request: str
    reply: str


class Answer(TypedDict):
    """The trainer process's line about one request."""

    ok: bool
    reason: NotRequired[str]


class TrainerError(Exception):
    """The trainer process gave no update.  The text says why and names no patient."""


class Aborted(Exception):
    """The job was aborted while the trainer process worked."""


class Trainer:
    """One site's trainer process.  Call `start`, then `configure`, then `ask` once per request."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.answers: queue.Queue[str | None] = queue.Queue()
        self.identity: Identity | None = None
        self.exchange = Path()

    def start(self) -> None:
        """Start the process.  It imports its libraries while the caller continues."""
        path = os.pathsep.join(entry for entry in sys.path if entry)  # the child must find the same code as we did
        self.process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        self.answers = queue.Queue()
        threading.Thread(target=_read_answers, args=(self.process, self.answers), daemon=True).start()

    def configure(self, experiment: Path, site: str, config: SiteConfig, exchange: Path) -> None:
        """Tell the process for which job and site it works.

        Args:
            experiment: the job's experiment.json.
            site: the site's name.
            config: where the site's data and state are.
            exchange: folder for requests and replies; it is emptied now, and only its owner can read it.
        """
        shutil.rmtree(exchange, ignore_errors=True)  # files of an earlier process that was killed
        self.exchange = private_folder(exchange)
        self.identity = {"experiment": str(experiment), "site": site, "config": asdict(config)}
        self._send(self.identity)

    def ask(self, payload: Payload, aborted: Callable[[], bool] = lambda: False) -> Update:
        """Have the process answer one payload.

        Args:
            payload: what the server sent.
            aborted: whether the job has been aborted; called about ten times a second.

        Raises:
            TrainerError: the process refused, failed, ended or hung.  If it ended or hung, a new one is starting.
            Aborted: `aborted` returned True.  The process was killed and a new one is starting.
        """
        # Imported here, like torch everywhere in this process: the child starts first, and both import at once.
        from omnifm.state import decode, encode, write_atomic
        from omnifm.update import Update

        request, reply = self.exchange / "request.state", self.exchange / "reply.state"
        try:
            write_atomic(request, encode(*payload.pack()))
            self._send(Request(request=str(request), reply=str(reply)))
            answer = self._wait(aborted)
            if not answer["ok"]:
                raise TrainerError(answer["reason"])
            return Update.unpack(*decode(reply.read_bytes()))
        finally:
            for file in (request, reply):
                file.unlink(missing_ok=True)

    def stop(self) -> None:
        """Kill the process and all processes that it started; delete requests and replies."""
        self._kill()
        if self.identity is not None:
            shutil.rmtree(self.exchange, ignore_errors=True)

    def _wait(self, aborted: Callable[[], bool]) -> Answer:
        assert self.process is not None
        timer = IdleTimer(self.process.pid)
        while True:
            try:
                line = self.answers.get(timeout=POLL_S)
            except queue.Empty:
                if aborted():
                    self._replace()
                    raise Aborted from None
                if timer.idle_s() > HUNG_S:
                    self._replace()
                    raise TrainerError(f"trainer process hung: no CPU time for {HUNG_S:.0f} s") from None
                continue
            if line is None:
                code = self._replace()
                end = f"signal {-code}" if code < 0 else f"exit code {code}"
                raise TrainerError(f"trainer process ended ({end})")
            return json.loads(line)

    def _replace(self) -> int:
        """Kill the process and start the next one for the same site; return the exit code of the old one.

        The next one starts now, so that it imports its libraries while the site waits for the next round.
        """
        code = self._kill()
        self.start()
        if self.identity is not None:
            self._send(self.identity)
        return code

    def _send(self, message: Identity | Request) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # the process has ended; `_wait` finds that out and says so
            self.process.stdin.write(json.dumps(message) + "\n")

    def _kill(self) -> int:
        """Kill the process group if it runs; return the process's exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()


def _read_answers(process: subprocess.Popen[str], answers: queue.Queue[str | None]) -> None:
    """Put each line that the process writes into the queue, and None when it has ended."""
    assert process.stdout is not None
    for line in process.stdout:
        answers.put(line)
    answers.put(None)
