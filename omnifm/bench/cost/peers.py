"""Our in-process rounds beside a plain loop, pfl-research, Flower and stock NVFLARE, on the same work.

Every peer runs in a child process (`peer_process`), one after another, so that memory is its own and a package that is
missing costs its row alone.  Equal work is proved by the weights after the first round: the norm of their difference
from the plain loop's, as a share of the plain loop's norm.  The same of the last weights stands beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from omnifm.bench.cost import flare_round
from omnifm.bench.cost.peer_process import DRIVERS, MISSING
from omnifm.bench.tables.markdown import grid
from omnifm.config import Experiment
from omnifm.state import write_atomic

BAR = 1.2
"""The most that a round of our in-process driver may take, as a ratio to the plain loop's."""
TOLERANCE = 1e-6
"""Largest such share after the first round that counts as equal: who sums in another order is a last bit away there
(1e-8 here), and by the last round far, since AdamW's first steps look at signs."""
TIMEOUT_S = 900
WORDS = {
    "plain": "plain torch loop",
    "ours": "omnifm, in process",
    "pfl": "pfl-research 0.6",
    "flower": "Flower simulation",
    "flare": "stock NVFLARE FedAvg",
}


def run(out: Path | None, *, job: Path, num_rounds: int = 5, flare: bool = True) -> dict[str, Any]:
    """Run every peer, print a line each, and write peers.json and peers.md.

    Args:
        out: folder of the results; None writes none.
        job: segmentation job folder, whose FedAvg on demo cases is the work.
        num_rounds: at least 2; the first one, with its start-up, is not counted.
        flare: whether stock NVFLARE is timed too (minutes).

    Raises:
        ValueError: `num_rounds` is below 2, the job is not there, or the plain loop failed.
    """
    if num_rounds < 2:
        raise ValueError(f"num_rounds must be at least 2, since the first is not counted; got {num_rounds}")
    flare_round.check(job)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="omnifm-peers-") as name:
        folder = Path(name)
        prepare(folder, job, num_rounds)
        for peer in DRIVERS:
            rows[peer] = measure(peer, folder)
            print(line(peer, rows), flush=True)
    if "reason" in rows["plain"]:
        raise ValueError(
            f"the plain loop must finish, since all others are compared with it; {rows['plain']['reason']}"
        )
    if flare:
        rows["flare"] = _flare(job, num_rounds)
        print(line("flare", rows), flush=True)
    result = {
        "schema": 1,
        "num_rounds": num_rounds,
        "load": list(os.getloadavg()),
        "rows": rows,
        "bar": BAR,
        "holds": ratio(rows, "ours") <= BAR,
    }
    if out is not None:
        write_atomic(out / "peers.json", json.dumps(result, indent=1).encode())
        write_atomic(out / "peers.md", markdown(result).encode())
    return result


def prepare(folder: Path, job: Path, num_rounds: int) -> None:
    """Write what a peer reads: experiment.json and two demo sites of equal size."""
    experiment = Experiment.from_job(job)
    train = replace(experiment.train, num_rounds=num_rounds)
    record = {
        "job": "peers",
        "task": experiment.task,
        "data": {"name": "demo"},
        "model": experiment.model,
        "method": {"name": "fedavg"},
        "seed": 0,
        "train": {
            key: getattr(train, key) for key in ("num_rounds", "local_epochs", "batch_size", "lr", "num_threads")
        },
    }
    flare_round._data(folder / "data")
    (folder / "experiment.json").write_text(json.dumps(record))


def measure(peer: str, folder: Path) -> dict[str, Any]:
    """Run one peer in a child process: seconds of every round after the first, peak memory, bytes, final weights."""
    start = "from omnifm.bench.cost.peer_process import main; main()"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", start, peer, str(folder)],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with sampled(process.pid) as peak, flare_round.sampled(process.pid) as samples:
            try:
                code = process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                flare_round.end(process)
                return {"reason": f"it took longer than {TIMEOUT_S} s"}
        log.seek(0)
        last = (log.read().strip().splitlines() or ["no output"])[-1]
    if code:
        return {"reason": last[:200] if code == MISSING else f"exit code {code}: {last[:200]}"}
    stamps = json.loads((folder / f"{peer}.json").read_text())["stamps"]
    spent = flare_round.spent(stamps, samples)
    weights, reference = (load_file(folder / f"{name}.safetensors") for name in (peer, "plain"))
    first, first_reference = (load_file(folder / f"{name}-first.safetensors") for name in (peer, "plain"))
    return {
        "seconds": [wall for wall, _ in spent],
        "cpu_seconds": [cpu for _, cpu in spent],
        "peak_bytes": peak[0],
        "bytes_up": _bytes_up(peer, folder),
        "checksum": checksum(weights),
        "difference": difference(weights, reference),
        "first_difference": difference(first, first_reference),
    }


def difference(weights: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """Norm of the difference of all floating-point weights, as a share of the reference's norm."""
    names = [name for name, value in reference.items() if value.is_floating_point()]
    gap, norm = (
        sum(float(v.double().square().sum()) for v in values)
        for values in ([weights[n].double() - reference[n].double() for n in names], [reference[n] for n in names])
    )
    return float(np.sqrt(gap / norm))


def checksum(weights: Mapping[str, Any]) -> str:
    """Of all floating-point weights, to their last bit."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        if value.is_floating_point():
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _bytes_up(peer: str, folder: Path) -> int | None:
    """What a site sends in one round; None where nothing is serialised."""
    if peer == "ours":
        history = json.loads((folder / peer / "results/summary.json").read_text())["history"]
        return int(np.mean([row["bytes_up"] for row in history[-1]["sites"].values()]))
    return int(sum(v.nbytes for v in load_file(folder / "flower.safetensors").values())) if peer == "flower" else None


def _flare(job: Path, num_rounds: int) -> dict[str, Any]:
    """Stock NVFLARE shuffles by itself, so that its weights are not compared; time only."""
    try:
        (found,) = flare_round.measure(job, num_rounds, 1, runs=("stock",))
    except ValueError as error:
        return {"reason": str(error)[:200]}
    return {
        "seconds": [wall for wall, _ in found["stock"]],
        "cpu_seconds": [cpu for _, cpu in found["stock"]],
        "peak_bytes": None,
        "bytes_up": None,
        "checksum": None,
        "difference": None,
        "first_difference": None,
    }


@contextmanager
def sampled(root: int) -> Iterator[list[int]]:
    """The largest memory of a process and its descendants so far, looked at five times a second."""
    peak = [0]

    def look() -> None:
        peak[0] = max(peak[0], memory(root))

    with flare_round.repeated(0.2, look):
        yield peak


def memory(root: int) -> int:
    """Bytes that a process and its descendants hold; pages shared among them count once (PSS)."""
    total = 0
    for member in flare_round.descendants(root):
        with suppress(OSError, ValueError):  # it ended meanwhile
            text = Path(f"/proc/{member}/smaps_rollup").read_text()
            total += 1024 * int(next(row for row in text.splitlines() if row.startswith("Pss:")).split()[1])
    return total


def ratio(rows: Mapping[str, Mapping[str, Any]], peer: str, what: str = "seconds") -> float:
    """Median round by the plain loop's median round, of wall or `cpu_seconds`; NaN where either is missing."""
    if any(what not in rows.get(name, {}) for name in ("plain", peer)):
        return float("nan")
    return float(np.median(rows[peer][what]) / max(1e-9, np.median(rows["plain"][what])))


def cells(peer: str, rows: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """Seconds, ratios of wall and CPU time, memory, bytes and equality of one peer, as words."""
    row = rows[peer]
    if "reason" in row:
        return [f"left out: {row['reason']}", "", "", "", "", ""]
    first, gap = row["first_difference"], row["difference"]
    equal = "not compared" if gap is None else "equal, every bit"
    if gap:
        equal = f"relative difference {first:.1e} after round 1, {gap:.1e} at the end"
        equal += "" if first <= TOLERANCE else ": NOT THE SAME WORK"
    peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f} MiB"
    sent = "" if row["bytes_up"] is None else f"{row['bytes_up']:,}"
    ratios = [f"{ratio(rows, peer, what):.2f}" for what in ("seconds", "cpu_seconds")]
    return [f"{np.median(row['seconds']):.2f} s", *ratios, peak, sent, equal]


def line(peer: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for people."""
    names = ("round", "vs plain", "CPU vs plain", "memory", "bytes up", "weights")
    said = [f"{name} {cell}" for name, cell in zip(names, cells(peer, rows), strict=True) if cell]
    return f"{WORDS[peer]}: {cells(peer, rows)[0] if 'reason' in rows[peer] else '; '.join(said)}"


def markdown(result: Mapping[str, Any]) -> str:
    """The rows as a table for people."""
    lines = [
        f"Federated averaging of two demo sites, {result['num_rounds']} rounds, the first not counted; medians; "
        f"load {result['load'][0]:.1f}; one process after another",
        "",
    ]
    heads = ["peer", "round", "vs plain", "CPU vs plain", "peak memory", "bytes up per site", "final weights"]
    lines += grid(heads, [[WORDS[peer], *cells(peer, result["rows"])] for peer in result["rows"]])
    return "\n".join(lines) + "\n"
