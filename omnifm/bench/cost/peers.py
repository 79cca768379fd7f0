"""Compare our in-process rounds with a plain loop, pfl-research, Flower and stock NVFLARE on the same work.

Every peer runs in a child process (`peer_process`), one after another, so that its memory can be measured and a missing
package leaves out only its own row.  The weights after the first round show that the work is equal: the norm of their
difference from the plain loop's, as a share of the plain loop's norm.  The same number of the last weights stands
beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from omnifm.bench.cost import flare_round
from omnifm.bench.cost.peer_process import DRIVERS, MISSING
from omnifm.bench.cost.processes import cpu_samples, end, peak_memory
from omnifm.bench.tables.markdown import grid
from omnifm.config import Experiment
from omnifm.state import write_atomic

BAR = 1.2
"""Highest allowed time of a round of our in-process driver, as a ratio to the plain loop's."""
TOLERANCE = 1e-6
"""Largest difference after the first round that counts as equal work.  A peer that sums in another order differs in the
last bit there (1e-8).  By the last round it differs far more, because AdamW's first steps depend on signs."""
TIMEOUT_S = 900
"""A peer that takes longer is stopped and left out."""
WORDS = {
    "plain": "plain torch loop",
    "ours": "omnifm, in process",
    "pfl": "pfl-research 0.6",
    "flower": "Flower simulation",
    "flare": "stock NVFLARE FedAvg",
}
"""What a peer is called in the table."""
Clock = Literal["seconds", "cpu_seconds"]


class PeerRow(TypedDict, total=False):
    """What was measured of one peer; a peer that was left out has `reason` and nothing else."""

    reason: str
    seconds: list[float]
    """Wall time of each round after the first."""
    cpu_seconds: list[float]
    """The same in CPU time of all its processes."""
    peak_bytes: int | None
    bytes_up: int | None
    """What a site sends in one round; None where nothing is serialised."""
    checksum: str | None
    difference: float | None
    """Of the last weights to the plain loop's; None where they are not compared."""
    first_difference: float | None
    """Of the weights after the first round."""


class Result(TypedDict):
    """The content of peers.json."""

    schema: int
    num_rounds: int
    load: list[float]
    rows: dict[str, PeerRow]
    bar: float
    holds: bool


def run(out: Path | None, *, job: Path, num_rounds: int = 5, flare: bool = True) -> Result:
    """Run every peer, print a line each, and write peers.json and peers.md.

    Args:
        out: folder of the results; None writes none.
        job: segmentation job folder; its FedAvg on demo cases is the work.
        num_rounds: at least 2; the first one includes the start-up and is not counted.
        flare: whether stock NVFLARE is timed too (minutes).

    Raises:
        ValueError: `num_rounds` is below 2, the job is absent, or the plain loop failed.
    """
    if num_rounds < 2:
        raise ValueError(f"num_rounds must be at least 2, since the first is not counted; got {num_rounds}")
    flare_round.check(job)
    rows: dict[str, PeerRow] = {}
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
    result = Result(
        schema=1,
        num_rounds=num_rounds,
        load=list(os.getloadavg()),
        rows=rows,
        bar=BAR,
        holds=ratio(rows, "ours") <= BAR,
    )
    if out is not None:
        write_atomic(out / "peers.json", json.dumps(result, indent=1).encode())
        write_atomic(out / "peers.md", markdown(result).encode())
    return result


def prepare(folder: Path, job: Path, num_rounds: int) -> None:
    """Write what every peer reads: experiment.json and two demo sites of equal size."""
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
            "num_rounds": train.num_rounds,
            "local_epochs": train.local_epochs,
            "batch_size": train.batch_size,
            "lr": train.lr,
            "num_threads": train.num_threads,
        },
    }
    flare_round.demo_data(folder / "data")
    (folder / "experiment.json").write_text(json.dumps(record))


def measure(peer: str, folder: Path) -> PeerRow:
    """Run one peer in a child process and measure it."""
    start = "from omnifm.bench.cost.peer_process import main; main()"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", start, peer, str(folder)],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with peak_memory(process.pid) as peak, cpu_samples(process.pid) as samples:
            try:
                code = process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                end(process)
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


def difference(weights: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """Norm of the difference of all floating-point weights, as a share of the reference's norm."""
    names = [name for name, value in reference.items() if value.is_floating_point()]
    gap = sum(_squares(weights[name].double() - reference[name].double()) for name in names)
    norm = sum(_squares(reference[name]) for name in names)
    return float(np.sqrt(gap / norm))


def _squares(value: Tensor) -> float:
    return float(value.double().square().sum())


def checksum(weights: Mapping[str, Tensor]) -> str:
    """The first 16 characters of a SHA-256 of all floating-point weights, to their last bit."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        if value.is_floating_point():
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _bytes_up(peer: str, folder: Path) -> int | None:
    """What a site sends in one round; None where nothing is serialised."""
    match peer:
        case "ours":
            history = json.loads((folder / peer / "results/summary.json").read_text())["history"]
            return int(np.mean([row["bytes_up"] for row in history[-1]["sites"].values()]))
        case "flower":
            return sum(value.nbytes for value in load_file(folder / "flower.safetensors").values())
        case _:
            return None


def _flare(job: Path, num_rounds: int) -> PeerRow:
    """Time stock NVFLARE.  It shuffles in its own order, so its weights are not compared."""
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


def ratio(rows: Mapping[str, PeerRow], peer: str, clock: Clock = "seconds") -> float:
    """A peer's median round by the plain loop's, in wall or CPU time; NaN where either is missing."""
    if any(clock not in rows.get(name, {}) for name in ("plain", peer)):
        return float("nan")
    return float(np.median(rows[peer][clock]) / max(1e-9, np.median(rows["plain"][clock])))


def cells(peer: str, rows: Mapping[str, PeerRow]) -> Sequence[str]:
    """One peer as words: seconds, ratios of wall and CPU time, memory, bytes, and whether its weights are equal."""
    row = rows[peer]
    if "reason" in row:
        return [f"left out: {row['reason']}", "", "", "", "", ""]
    peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f} MiB"
    sent = "" if row["bytes_up"] is None else f"{row['bytes_up']:,}"
    wall, cpu = ratio(rows, peer, "seconds"), ratio(rows, peer, "cpu_seconds")
    return [f"{np.median(row['seconds']):.2f} s", f"{wall:.2f}", f"{cpu:.2f}", peak, sent, _equality(row)]


def _equality(row: PeerRow) -> str:
    """Whether the weights are those of the plain loop."""
    first, last = row["first_difference"], row["difference"]
    if first is None or last is None:
        return "not compared"
    if last == 0:
        return "equal, every bit"
    words = f"relative difference {first:.1e} after round 1, {last:.1e} at the end"
    return words if first <= TOLERANCE else f"{words}: NOT THE SAME WORK"


def line(peer: str, rows: Mapping[str, PeerRow]) -> str:
    """One line for people."""
    found = cells(peer, rows)
    if "reason" in rows[peer]:
        return f"{WORDS[peer]}: {found[0]}"
    names = ("round", "vs plain", "CPU vs plain", "memory", "bytes up", "weights")
    return f"{WORDS[peer]}: {'; '.join(f'{name} {cell}' for name, cell in zip(names, found, strict=True) if cell)}"


def markdown(result: Result) -> str:
    """The rows as a table for people."""
    lines = [
        f"Federated averaging of two demo sites, {result['num_rounds']} rounds, the first not counted; medians; "
        f"load {result['load'][0]:.1f}; one process after another",
        "",
    ]
    heads = ["peer", "round", "vs plain", "CPU vs plain", "peak memory", "bytes up per site", "final weights"]
    lines += grid(heads, [[WORDS[peer], *cells(peer, result["rows"])] for peer in result["rows"]])
    return "\n".join(lines) + "\n"
