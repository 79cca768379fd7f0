"""Real processes in tests: what they inherit, where they listen, and everything below them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
"""Folder of this environment's console scripts."""


def clean_env(home: Path) -> dict[str, str]:
    """This environment without settings of ours or FLARE's, with our console scripts first and a home of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMNIFM_", "NVFLARE_"))}
    return kept | {"HOME": str(home), "PATH": f"{BIN}{os.pathsep}{kept['PATH']}"}


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_participant(kit: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """A kit's own start script, in the foreground of a session of its own; its console is kept beside it."""
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


def tree(root: int) -> dict[int, str]:
    """Command lines of a process and all below it, by id; the dead that nobody has waited for are left out."""
    out = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,stat,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in out.splitlines()[1:]]
    living = [(int(pid), int(above), args) for pid, above, stat, args in rows if "Z" not in stat]
    found: dict[int, str] = {}
    todo = [root]
    while todo:
        parent = todo.pop()
        found |= {pid: args for pid, _, args in living if pid == parent}
        todo += [pid for pid, above, _ in living if above == parent]
    return found
