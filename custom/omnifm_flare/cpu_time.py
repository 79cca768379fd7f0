"""CPU time of the trainer process, from which the executor sees whether it still works."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil

CHECK_S = 1.0
"""Seconds between two measurements: one measurement looks at every process of the machine."""


def cpu_seconds(pid: int) -> float | None:
    """CPU seconds that a process and its direct children have used; None where the system does not tell."""
    used: list[float] = []
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children()):
            with suppress(psutil.Error):  # it has just ended, or the system does not tell
                times = member.cpu_times()
                used.append(times.user + times.system)
    return sum(used) if used else None


class IdleTimer:
    """Measures for how long a process and its direct children have used no CPU time.

    Args:
        pid: id of the process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.used_s = cpu_seconds(pid)
        self.measured_at = time.monotonic()
        self.active_at = self.measured_at

    def idle_s(self) -> float:
        """Seconds without CPU time up to the last measurement; 0 where the system does not tell CPU times."""
        now = time.monotonic()
        if now - self.measured_at >= CHECK_S:
            used_s = cpu_seconds(self.pid)
            if used_s is None or used_s != self.used_s:
                self.active_at = now
            self.used_s = used_s
            self.measured_at = now
        return self.measured_at - self.active_at
