"""Measure the memory and time of our in-process driver as the number of sites grows, up to a thousand.

All sites are hard links to the same few tiny demo cases, so that growing memory is the driver's own.  Every number of
sites is measured in a child process of its own.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from omnifm import simulation
from omnifm.bench.inputs import keep_few
from omnifm.config import Experiment
from omnifm.data.demo import demo_site
from omnifm.state import write_atomic

RECORD = {
    "job": "scale",
    "task": {"name": "classification", "image_size": 16},
    "data": {"name": "demo"},
    "model": {"channels": [8, 8, 8, 8]},
    "method": {"name": "fedavg"},
    "seed": 0,
    "train": {"num_rounds": 1, "local_epochs": 1, "batch_size": 4, "lr": 0.001, "num_threads": 1},
}
CASES = {"training": 2, "validation": 1, "test": 1}
"""Demo cases per site by split."""
TIMEOUT_S = 3600


class ScaleRow(TypedDict):
    """What one number of sites cost."""

    sites: int
    seconds: float
    """Wall time of the whole run of one round."""
    peak_bytes: int


def run(counts: Sequence[int], out: Path | None = None) -> list[ScaleRow]:
    """Measure each number of sites and print a line each.

    Args:
        counts: numbers of sites, each at least 2.
        out: folder for scale.json, written after each number.

    Raises:
        ValueError: a count is below 2, or a run failed.
    """
    if min(counts) < 2:
        raise ValueError(f"sites must be at least 2; got {min(counts)}")
    rows: list[ScaleRow] = []
    for count in counts:
        command = [sys.executable, "-c", "from omnifm.bench.cost.scale import main; main()", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise ValueError(f"a run of {count} sites must finish; exit code {done.returncode}: {last[:200]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(line(rows), flush=True)
        if out is not None:
            write_atomic(out / "scale.json", json.dumps({"schema": 1, "rows": rows}, indent=1).encode())
    return rows


def line(rows: Sequence[ScaleRow]) -> str:
    """The last row for people, with the memory per additional site compared with the first row."""
    first, last = rows[0], rows[-1]
    text = (
        f"{last['sites']} sites: {last['seconds']:.1f} s, {last['seconds'] / last['sites']:.3f} s per site, peak "
        f"{last['peak_bytes'] / 2**20:.0f} MiB"
    )
    more = last["sites"] - first["sites"]
    if not more:
        return text
    growth = (last["peak_bytes"] - first["peak_bytes"]) / more
    return f"{text}, {growth / 2**10:.1f} KiB per site more"


def main() -> None:
    """Run one number of sites and print its measurements as JSON."""
    count = int(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="omnifm-scale-") as name:
        names = sites(Path(name), count)
        started = time.perf_counter()
        summary = simulation.run(Experiment.from_json(json.dumps(RECORD)), name, names)
        seconds = time.perf_counter() - started
    if summary["status"] != "COMPLETE":
        raise ValueError(f"the run must be complete; got {summary['reason']}")
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"sites": count, "seconds": seconds, "peak_bytes": peak}))


def sites(root: Path, count: int) -> list[str]:
    """Make the folders of `count` sites that hold the same few cases, as hard links; returns their names."""
    template = root / "template"
    shutil.copytree(demo_site("classification", "site-1"), template)
    keep_few(template / "dataset.json", CASES)
    names = [f"site-{number}" for number in range(1, count + 1)]
    for name in names:
        shutil.copytree(template, root / name, copy_function=os.link)
    return names
