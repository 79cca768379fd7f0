"""The parent's handle on the trainer process: start it, ask it, notice its death, end it."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from omnifm.config import SiteConfig
from omnifm_flare.site_state import private_folder

if TYPE_CHECKING:
    from omnifm.update import Payload, Update

POLL_S = 0.1
HUNG_S = 120.0
"""Seconds without any CPU time of the process and those it started while it is asked: they are stopped, deadlocked, or
wait for a dead disk.  An image may take its reader longer than this, but not without CPU time of the reader's."""
MODULE = "omnifm_flare.trainer_process"


class TrainerError(Exception):
    """The trainer gave no update; the text says why and holds nothing about a patient."""


class Aborted(Exception):
    """The job was aborted while the trainer worked."""


class Trainer:
    """One site's trainer process.  `start` it, `introduce` it to the site, then `ask`."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.answers: queue.Queue[str | None] = queue.Queue()
        self.who: dict[str, object] = {}
        self.exchange = Path()

    def start(self) -> None:
        """Start the process; it imports its libraries while the caller goes on."""
        path = os.pathsep.join(entry for entry in sys.path if entry)  # wherever the job's code came from
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
        threading.Thread(target=_listen, args=(self.process, self.answers), daemon=True).start()

    def introduce(self, experiment: Path, site: str, config: SiteConfig, exchange: Path) -> None:
        """Tell the process who it is.

        Args:
            experiment: the job's experiment.json.
            site: the site's name.
            config: where its data and state lie.
            exchange: folder for messages; emptied now, readable by its owner only.
        """
        shutil.rmtree(exchange, ignore_errors=True)  # what a killed predecessor left
        self.exchange = private_folder(exchange)
        self.who = {"experiment": str(experiment), "site": site, "config": asdict(config)}
        self._say(self.who)

    def ask(self, payload: Payload, aborted: Callable[[], bool] = lambda: False) -> Update:
        """Have the process answer one payload.

        Raises:
            TrainerError: it refused, failed, died or hung; after the last two the next one is already starting.
            Aborted: `aborted` became true; the process has been killed, the next one is already starting.
        """
        # Imported here, like torch everywhere in this process: the child starts first, and both import at once.
        from omnifm.state import decode, encode, write_atomic
        from omnifm.update import Update

        request, reply = self.exchange / "request.state", self.exchange / "reply.state"
        try:
            write_atomic(request, encode(*payload.pack()))
            self._say({"request": str(request), "reply": str(reply)})
            answer = self._wait(aborted)
            if not answer["ok"]:
                raise TrainerError(answer["reason"])
            return Update.unpack(*decode(reply.read_bytes()))
        finally:
            for file in (request, reply):
                file.unlink(missing_ok=True)

    def stop(self) -> None:
        """Kill the process and all it started; remove the messages."""
        self._kill()
        if self.who:
            shutil.rmtree(self.exchange, ignore_errors=True)

    def restart(self) -> None:
        """Start the next process as the same site."""
        self.start()
        self._say(self.who)

    def _wait(self, aborted: Callable[[], bool]) -> dict[str, str]:
        worked, since = self._cpu_ticks(), time.monotonic()
        while True:
            try:
                line = self.answers.get(timeout=POLL_S)
            except queue.Empty:
                if aborted():
                    self._kill()
                    self.restart()
                    raise Aborted from None
                if (ticks := self._cpu_ticks()) != worked:
                    worked, since = ticks, time.monotonic()
                elif ticks is not None and time.monotonic() - since > HUNG_S:
                    self._kill()
                    self.restart()
                    raise TrainerError(f"trainer hung: it did nothing for {HUNG_S:.0f} s") from None
                continue
            if line is None:
                raise TrainerError(self._restart_after_death())
            return json.loads(line)

    def _cpu_ticks(self) -> int | None:
        """CPU time that the process and those it started have used, in clock ticks; None where nobody says."""
        assert self.process is not None
        ticks = [_ticks(pid) for pid in (self.process.pid, *_children(self.process.pid))]
        known = [used for used in ticks if used is not None]
        return sum(known) if known else None

    def _restart_after_death(self) -> str:
        """Say how it died, and start the next one: its imports then overlap the wait for the next round."""
        assert self.process is not None
        code = self._kill()
        self.restart()
        return f"trainer died (signal {-code})" if code < 0 else f"trainer died (exit code {code})"

    def _say(self, message: object) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead; whoever waits for its answer will read so
            self.process.stdin.write(json.dumps(message) + "\n")

    def _kill(self) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()


def _ticks(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return int(fields[11]) + int(fields[12])


def _children(pid: int) -> list[int]:
    """Processes that any thread of this one has started; none where the system does not say."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found += map(int, file.read_text().split())
    return found


def _listen(process: subprocess.Popen[str], answers: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        answers.put(line)
    answers.put(None)
