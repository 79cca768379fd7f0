"""Real processes in tests: their environment, their ports, and the processes that they start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
"""Folder of this environment's console scripts."""


def clean_env(home: Path) -> dict[str, str]:
    """This environment without our and FLARE's variables, with our console scripts first and another home folder."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMNIFM_", "NVFLARE_"))}
    return kept | {"HOME": str(home), "PATH": f"{BIN}{os.pathsep}{kept['PATH']}"}


def free_port() -> int:
    """A free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_participant(kit: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Run a kit's start script in a new session.  Its output goes to console.log in the kit."""
    with (kit / "console.log").open("ab") as log:
        return subprocess.Popen(
            ["bash", "startup/sub_start.sh", "--once"],
            cwd=kit,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and whose parent has not yet asked for its exit code does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def tree(root: int) -> dict[int, str]:
    """Command lines of a running process and all running processes below it, by process id."""
    found: dict[int, str] = {}
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(root)
        for process in (top, *top.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = " ".join(process.cmdline())
    return found
