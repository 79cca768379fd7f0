"""What OmniFM costs: each number is a ratio of two things timed alternately in one run, against its bar.

`measure` holds the arithmetic, `training_step` the models.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from omnifm.bench.cost import flare_round
from omnifm.bench.cost.measure import Measure, Seconds, duration, interleave, ratio, shown, timed
from omnifm.bench.cost.training_step import UNETS, training_steps, unet_steps
from omnifm.bench.tables.markdown import grid
from omnifm.parts.knowledge import KnowledgeBank
from omnifm.parts.spectral import SpectralTokenizer, low_band
from omnifm.state import write_atomic

SIDES = (64, 96, 128, 160)
"""Sides of the volumes whose low band is taken, voxels."""
BARS = {"tokenizer": 0.03, "low_band": 1.0, "agreement": 1e-5, "bank_s": 0.050, "flare": 1.15}
"""The highest allowed value of each measure."""


class Machine(TypedDict):
    """Where the measures were taken."""

    cores: int | None
    load: list[float]
    """Load averages over 1, 5 and 15 minutes."""
    processor: str
    torch: str
    threads: int


def run(out: Path | None, with_flare: bool, threads: int = 1, job: Path = Path("seg_fets")) -> list[Measure]:
    """Measure everything, print a line per measure, and write cost.json and cost.md.

    Args:
        out: folder of the results; None writes none.
        with_flare: whether FLARE rounds are timed too (minutes).
        threads: CPU threads of torch, at least 1; trainers under FLARE use the job's own number.
        job: segmentation job folder that FLARE runs.

    Raises:
        ValueError: `threads` is below 1, or NVFLARE or the job is absent.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1; got {threads}")
    if with_flare:
        flare_round.check(job)
    measures = []
    with _threads(threads):
        for section in (training_steps, tokenizer, low_bands, bank):
            measures += _printed(section())
    if with_flare:
        measures += _printed(flare_rounds(job))
    if out is not None:
        write(out, measures, threads)
    return measures


def _printed(section: Iterator[Measure]) -> list[Measure]:
    """The measures of a section, each printed as soon as it is there."""
    measures = []
    for measure in section:
        print(measure.line(), flush=True)
        measures.append(measure)
    return measures


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let torch use so many CPU threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tokenizer(channels: tuple[int, ...] = UNETS[0], side: int = 64, num_pairs: int = 15) -> Iterator[Measure]:
    """Time of spectrum and tokenizer, forward and backward, as a share of a training step of the plain UNet."""
    model = SpectralTokenizer()
    image, direction = torch.randn(2, 1, side, side, side), torch.randn(model.dim)
    _, step = unet_steps(channels, side)
    pairs = interleave(lambda: (model(image) @ direction).sum().backward(), step, num_pairs)
    yield ratio("tokenizer in a step", pairs, BARS["tokenizer"], f"of the plain UNet's step, 2 patches of {side}^3")


def low_bands(sides: Sequence[int] = SIDES, keep: float = 0.25, num_pairs: int = 25) -> Iterator[Measure]:
    """`low_band` against a full transform that is cropped afterwards: ratio of times, and largest difference."""
    differences: list[float] = []
    for side in sides:
        image = torch.randn(1, 1, side, side, side)
        pairs = interleave(partial(low_band, image, keep), partial(cropped, image, keep), num_pairs)
        yield ratio(f"low_band {side}^3", pairs, BARS["low_band"], f"against rfftn and crop, keep {keep}")
        differences.append(float((low_band(image, keep) - cropped(image, keep)).abs().max()))
    worst = max(differences)
    what = "largest over these sides, unit noise, norm ortho"
    yield Measure("low_band agrees", worst, worst, worst, None, BARS["agreement"], "difference", what)


def cropped(image: Tensor, keep: float) -> Tensor:
    """The obvious way to take a low band: transform everything, then keep the corners of low frequency."""
    size = image.shape[-1]  # all sides are equal here
    top = int(keep * size / 2)
    spectrum = torch.fft.rfftn(image, dim=tuple(range(2, image.ndim)), norm="ortho")[..., : top + 1]
    for axis in range(2, image.ndim - 1):
        if 2 * top + 1 < size:
            spectrum = torch.cat([spectrum.narrow(axis, 0, top + 1), spectrum.narrow(axis, size - top, top)], dim=axis)
    return spectrum.abs()


def bank(size: int = 256, dim: int = 64, num_sites: int = 100, num_rounds: int = 15) -> Iterator[Measure]:
    """Seconds that the knowledge bank takes in one round of many sites: insert all, step, one shortlist per site."""
    knowledge, sites = KnowledgeBank(dim, max_size=size), [f"site-{number}" for number in range(num_sites)]
    offered: dict[str, list[int]] = {}
    filling = 1 + math.ceil(min(size, knowledge.ring * num_sites) / num_sites)
    times, references, matrix = [], [], torch.randn(512, 512)
    for number in range(filling + num_rounds):
        centroids = F.normalize(torch.randn(num_sites, dim), dim=1)
        references.append(timed(lambda: matrix @ matrix).wall)
        times.append(timed(partial(_bank_round, knowledge, sites, centroids, offered, number)))
    walls, cpus = [t.wall for t in times[filling:]], [t.cpu for t in times[filling:]]
    low, middle, high = np.percentile(walls, (25, 50, 75)).tolist()
    what = (
        f"{len(knowledge)} x {dim}: insert, step and shortlist of one round of {num_sites} sites; "
        f"a 512 x 512 matrix product takes {duration(float(np.median(references)))} here"
    )
    yield Measure("bank, one round", middle, low, high, float(np.median(cpus)), BARS["bank_s"], "s", what)


def _bank_round(
    knowledge: KnowledgeBank, sites: Sequence[str], centroids: Tensor, offered: dict[str, list[int]], number: int
) -> None:
    """One round: insert each site's centroid, count use, give each site a shortlist (written to `offered`)."""
    for row, site in enumerate(sites):
        knowledge.insert(centroids[row : row + 1], site, "MR", number)
    used = {site: dict.fromkeys(ids, 0.0) | dict.fromkeys(ids[:2], 1.0) for site, ids in offered.items()}
    knowledge.step(number, used)
    for row, site in enumerate(sites):
        offered[site] = knowledge.shortlist(centroids[row : row + 1], site)[0]


def flare_rounds(job: Path, num_rounds: int = 8, repeats: int = 2) -> Iterator[Measure]:
    """A round of ours against stock NVFLARE FedAvg on the same network, cases, threads and poll intervals."""
    runs = list(flare_round.measure(job, num_rounds, repeats))
    for method in ("fedavg", "omnifm"):
        yield round_ratio(method, runs)


def round_ratio(method: str, runs: Sequence[Mapping[str, Sequence[tuple[float, float]]]]) -> Measure:
    """Each round of a method against stock's round of the same number and repeat; CPU time is of all processes."""
    pairs = [
        (Seconds(*ours), Seconds(*stock)) for run in runs for ours, stock in zip(run[method], run["stock"], strict=True)
    ]
    what = "against stock FedAvg; 2 sites, 1 thread each; equal network, cases, steps, scores and polls"
    return ratio(f"FLARE round, {method}", pairs, BARS["flare"], what)


def write(out: Path, measures: Sequence[Measure], threads: int) -> None:
    """Write cost.json and cost.md."""
    machine: Machine = {
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()),
        "processor": platform.machine(),
        "torch": torch.__version__,
        "threads": threads,
    }
    rows = [asdict(measure) | {"holds": measure.holds} for measure in measures]
    write_atomic(out / "cost.json", json.dumps({"schema": 1, "machine": machine, "measures": rows}, indent=1).encode())
    write_atomic(out / "cost.md", markdown(measures, machine).encode())


def markdown(measures: Sequence[Measure], machine: Machine) -> str:
    """The measures as a table for people."""
    lines = [
        "Median of paired ratios [quartiles] in one run; "
        f"{machine['threads']} thread(s), {machine['cores']} cores, load {machine['load'][0]:.1f}, "
        f"torch {machine['torch']}",
        "",
    ]
    rows = []
    for measure in measures:
        cpu = "" if measure.cpu is None else shown(measure.cpu)
        verdict = "holds" if measure.holds else "**does not hold**"
        rows.append([measure.name, measure.shown(), cpu, shown(measure.bar), verdict, measure.what])
    lines += grid(["measure", "value", "CPU", "bar", "verdict", "what"], rows)
    return "\n".join(lines) + "\n"
