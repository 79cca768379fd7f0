"""Time and memory of a process and its descendants, from /proc, and a clean end of all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a session, with everything in that session, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def repeated(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Call `action` every `seconds` from a second thread while the block runs."""
    done = threading.Event()

    def until_done() -> None:
        while not done.wait(seconds):
            action()

    thread = threading.Thread(target=until_done, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def cpu_samples(root: int) -> Iterator[list[tuple[float, float]]]:
    """Four times a second: (clock time, CPU seconds so far of a process and its descendants)."""
    samples: list[tuple[float, float]] = []
    with repeated(0.25, lambda: samples.append((time.time(), cpu_seconds(root)))):
        yield samples


@contextmanager
def peak_memory(root: int) -> Iterator[list[int]]:
    """The largest memory so far of a process and its descendants, in bytes; looked at five times a second.

    The list holds one number, which grows while the block runs.
    """
    peak = [0]

    def look() -> None:
        peak[0] = max(peak[0], memory(root))

    with repeated(0.2, look):
        yield peak


def cpu_seconds(root: int) -> float:
    """CPU seconds of a process and its living descendants; 0 where there is no /proc."""
    ticks = 0
    for member in descendants(root):
        with suppress(OSError):  # the process has ended since it was listed
            fields = _stat(member)
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(root: int) -> int:
    """Bytes that a process and its living descendants hold; pages shared among them count once (PSS)."""
    total = 0
    for member in descendants(root):
        with suppress(OSError, ValueError):  # the process has ended since it was listed
            text = Path(f"/proc/{member}/smaps_rollup").read_text()
            total += 1024 * int(next(row for row in text.splitlines() if row.startswith("Pss:")).split()[1])
    return total


def descendants(root: int) -> set[int]:
    """Process numbers of a process and its living descendants."""
    parent: dict[int, int] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            number = int(file.parent.name)
            parent[number] = int(_stat(number)[1])
    tree = {root}
    while found := {child for child, above in parent.items() if above in tree} - tree:
        tree |= found
    return tree


def _stat(process: int) -> list[str]:
    """Fields of /proc/<process>/stat after the command's name, which may contain spaces."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
