"""What the method costs: each number is a ratio of two things timed alternately in one run, against its bar.

A ratio is the median over pairs (A B, B A, A B ...), so that a machine that is slow for a while is slow for both; wall
time decides, CPU time is shown beside it, because other people's work disturbs it less.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import resnet18
from torch import Tensor, nn
from torch.nn import functional as F

from omnifm.backbones.unet import UNetBackbone
from omnifm.bench.cost import flare_round
from omnifm.bench.tables.markdown import grid
from omnifm.method import Model, Tensors
from omnifm.model import OmniModel, Parts, PlainModel
from omnifm.parts.alignment import spectral_alignment
from omnifm.parts.knowledge import KnowledgeBank
from omnifm.parts.spectral import SpectralTokenizer, low_band
from omnifm.plugins import plugin
from omnifm.state import write_atomic
from omnifm.task import Backbone, Batch

UNETS = ((16, 32, 64, 128, 256), (16, 32, 64, 128))
"""Widths of MONAI's UNet: its documentation's, and one level less."""
SIDES = (64, 96, 128, 160)
"""Sides of the volumes whose low band is taken, voxels."""
BARS = {
    "unet": 1.10,
    "resnet": 1.20,
    "tokenizer": 0.03,
    "low_band": 1.0,
    "agreement": 1e-5,
    "bank_s": 0.050,
    "flare": 1.15,
}
"""The most that each measure may be."""
BUDGET_S = 25.0
"""A comparison stops after this long, if it has its smallest number of pairs."""
MIN_PAIRS = 3
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Seconds:
    """One timing."""

    wall: float
    cpu: float
    """Of all threads."""


@dataclass(frozen=True)
class Measure:
    """One number and its bar.

    Attributes:
        value: what is compared with the bar: the median of the wall ratios, or another quantity in `unit`.
        low, high: quartiles.
        cpu: the same from CPU time, where that makes sense.
        bar: the most it may be.
        unit: `x` for a ratio, `s` for seconds, `difference` for a largest absolute difference.
    """

    name: str
    value: float
    low: float
    high: float
    cpu: float | None
    bar: float
    unit: str
    what: str

    @property
    def holds(self) -> bool:
        """Whether the bar is kept; NaN keeps none."""
        return self.value <= self.bar

    def line(self) -> str:
        """One line for people."""
        cpu = "" if self.cpu is None else f", CPU {_shown(self.cpu)}"
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        return f"{self.name}: {self.shown()}{cpu}; bar {_shown(self.bar)}: {verdict} ({self.what})"

    def shown(self) -> str:
        """Value, unit and quartiles."""
        spread = "" if self.low == self.high else f" [{_shown(self.low)}, {_shown(self.high)}]"
        return f"{_shown(self.value)} {self.unit}{spread}"


def run(out: Path | None, with_flare: bool, threads: int = 1, job: Path = Path("seg_fets")) -> list[Measure]:
    """Measure everything, print a line per measure, and write cost.json and cost.md.

    Args:
        out: folder of the results; None writes none.
        with_flare: whether FLARE rounds are timed too (minutes).
        threads: CPU threads of torch, at least 1; FLARE's trainers use the job's own number.
        job: segmentation job folder that FLARE runs.

    Raises:
        ValueError: `threads` is below 1, or FLARE or the job is not there.
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
    measures = []
    for measure in section:
        print(measure.line(), flush=True)
        measures.append(measure)
    return measures


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# The arithmetic of ratios.
def interleave(
    ours: Callable[[], Any], theirs: Callable[[], Any], num_pairs: int, budget_s: float = BUDGET_S
) -> list[tuple[Seconds, Seconds]]:
    """Time both alternately, after one untimed call of each; (ours, theirs) per pair.

    Every second pair runs in the other order, so that neither always finds the cache as the other left it.
    """
    ours()
    theirs()
    started, pairs = time.perf_counter(), list[tuple[Seconds, Seconds]]()
    while len(pairs) < min(MIN_PAIRS, num_pairs) or (
        len(pairs) < num_pairs and time.perf_counter() - started < budget_s
    ):
        if len(pairs) % 2:
            second, first = timed(theirs), timed(ours)
        else:
            first, second = timed(ours), timed(theirs)
        pairs.append((first, second))
    return pairs


def timed(work: Callable[[], Any]) -> Seconds:
    """Seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def ratio(name: str, pairs: Sequence[tuple[Seconds, Seconds]], bar: float, what: str) -> Measure:
    """The median of ours / theirs over pairs, with quartiles.

    Raises:
        ValueError: there is no pair.
    """
    if not pairs:
        raise ValueError("pairs must hold at least one timing; got none")
    low, middle, high = np.percentile([a.wall / b.wall for a, b in pairs], (25, 50, 75)).tolist()
    # A clock that did not tick gives no CPU ratio.
    cpus = [a.cpu / b.cpu for a, b in pairs if a.cpu > 0 and b.cpu > 0]
    seconds = [float(np.median([pair[side].wall for pair in pairs])) for side in (0, 1)]
    told = f"{what}; {_time(seconds[0])} against {_time(seconds[1])}, {len(pairs)} pairs"
    return Measure(name, middle, low, high, float(np.median(cpus)) if cpus else None, bar, "x", told)


# (a) The parts' share of a training step.
class ResNetStandIn(Backbone):
    """MONAI's 2-D ResNet-18 as a classifier; it stands in until the classification task brings its own backbone."""

    reads = "suffix"

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.width = 512
        self.net = resnet18(spatial_dims=2, n_input_channels=in_channels, feed_forward=False)
        self.classify = nn.Sequential(nn.LayerNorm(self.width), nn.Linear(self.width, num_classes))

    def encode(self, batch: Batch) -> tuple[Tensor, None]:
        """The feature map before pooling, one token per position."""
        net = self.net
        image = net.maxpool(net.act(net.bn1(net.conv1(batch["image"]))))
        image = net.layer4(net.layer3(net.layer2(net.layer1(image))))
        return image.flatten(2).transpose(1, 2), None

    def decode(self, tokens: Tensor, features: None, batch: Batch) -> Tensor:
        """Logits from the mean token."""
        return self.classify(tokens.mean(dim=1))

    def head(self) -> Sequence[nn.Module]:
        """Norm and linear layer."""
        return [self.classify]


def training_steps(
    unets: Sequence[tuple[int, ...]] = UNETS,
    side_3d: int = 64,
    side_2d: int = 128,
    batch_2d: int = 4,
    num_pairs: int = 15,
) -> Iterator[Measure]:
    """OmniModel against PlainModel around the same network: forward, loss, backward, optimiser step."""
    for channels in unets:
        ours, theirs = unet_steps(channels, side_3d)
        what = f"UNet {'-'.join(map(str, channels))}, 2 patches of {side_3d}^3"
        yield ratio("step, 3-D UNet", interleave(ours, theirs, num_pairs), BARS["unet"], what)
    batch = {"image": torch.randn(batch_2d, 3, side_2d, side_2d), "label": torch.randint(8, (batch_2d,))}
    ours, theirs = _pair(lambda: ResNetStandIn(3, 8), batch, lambda logits: F.cross_entropy(logits, batch["label"]))
    what = f"MONAI ResNet-18 stand-in, {batch_2d} pictures of {side_2d}^2"
    yield ratio("step, 2-D ResNet-18", interleave(ours, theirs, num_pairs), BARS["resnet"], what)


def unet_steps(channels: tuple[int, ...], side: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """One training step of OmniModel and one of PlainModel on the same two 3-D patches."""
    batch = {"image": torch.randn(2, 1, side, side, side)}
    label = torch.randint(2, (2, 1, side, side, side)).float()
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    return _pair(lambda: UNetBackbone(3, 1, 2, channels), batch, lambda logits: loss(logits, label))


def _pair(backbone: Callable[[], Backbone], batch: Batch, loss: Loss) -> tuple[Callable[[], None], Callable[[], None]]:
    settings = plugin("methods", "omnifm").Settings()
    parts = Parts(**{field.name: getattr(settings, field.name) for field in fields(Parts)})
    vectors = F.normalize(torch.randn(settings.shortlist, settings.dim), dim=1)
    extra = {"prototypes": vectors, "mean": vectors.mean(dim=0)}
    return (
        _step(OmniModel(backbone(), parts), batch, extra, loss, settings.align_weight),
        _step(PlainModel(backbone()), batch, {}, loss, 0.0),
    )


def _step(model: Model, batch: Batch, extra: Tensors, loss: Loss, align_weight: float) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        output = model(batch, extra)
        total = loss(output.prediction)
        if output.token is not None and output.retrieved is not None:
            total = total + align_weight * spectral_alignment(output.token, output.retrieved)
        total.backward()
        optimizer.step()

    return step


# (b) The tokenizer and its spectrum.
def tokenizer(channels: tuple[int, ...] = UNETS[0], side: int = 64, num_pairs: int = 15) -> Iterator[Measure]:
    """Spectrum and tokenizer, forward and backward, as a share of the plain UNet's step."""
    model = SpectralTokenizer()
    image, direction = torch.randn(2, 1, side, side, side), torch.randn(model.dim)
    _, step = unet_steps(channels, side)
    pairs = interleave(lambda: (model(image) @ direction).sum().backward(), step, num_pairs)
    yield ratio("tokenizer in a step", pairs, BARS["tokenizer"], f"of the plain UNet's step, 2 patches of {side}^3")


def low_bands(sides: Sequence[int] = SIDES, keep: float = 0.25, num_pairs: int = 25) -> Iterator[Measure]:
    """`low_band` against a full rfftn that is cropped afterwards: time, and the largest difference."""
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
    """The straightforward way: transform everything, keep the corners of low frequency."""
    size = image.shape[-1]  # all sides are equal here
    top = int(keep * size / 2)
    spectrum = torch.fft.rfftn(image, dim=tuple(range(2, image.ndim)), norm="ortho")[..., : top + 1]
    for axis in range(2, image.ndim - 1):
        if 2 * top + 1 < size:
            spectrum = torch.cat([spectrum.narrow(axis, 0, top + 1), spectrum.narrow(axis, size - top, top)], dim=axis)
    return spectrum.abs()


# (d) The knowledge bank.
def bank(size: int = 256, dim: int = 64, num_sites: int = 100, num_rounds: int = 15) -> Iterator[Measure]:
    """The bank's work in one round of many sites: insert all, step, one shortlist per site."""
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
        f"a 512 x 512 matrix product takes {_time(float(np.median(references)))} here"
    )
    yield Measure("bank, one round", middle, low, high, float(np.median(cpus)), BARS["bank_s"], "s", what)


def _bank_round(
    knowledge: KnowledgeBank, sites: Sequence[str], centroids: Tensor, offered: dict[str, list[int]], number: int
) -> None:
    """One round: everybody's centroid enters, use is counted, everybody gets a shortlist (kept in `offered`)."""
    for row, site in enumerate(sites):
        knowledge.insert(centroids[row : row + 1], site, "MR", number)
    used = {site: dict.fromkeys(ids, 0.0) | dict.fromkeys(ids[:2], 1.0) for site, ids in offered.items()}
    knowledge.step(number, used)
    for row, site in enumerate(sites):
        offered[site] = knowledge.shortlist(centroids[row : row + 1], site)[0]


# (c) A round over FLARE.
def flare_rounds(job: Path, num_rounds: int = 8, repeats: int = 2) -> Iterator[Measure]:
    """A round of ours against stock NVFLARE FedAvg on the same network, cases, threads and poll intervals."""
    runs = list(flare_round.measure(job, num_rounds, repeats))
    for method in ("fedavg", "omnifm"):
        yield round_ratio(method, runs)


def round_ratio(method: str, runs: Sequence[Mapping[str, Sequence[flare_round.Spent]]]) -> Measure:
    """Round by round against stock's round of the same number and repeat; CPU time is that of all processes."""
    pairs = [
        (Seconds(*ours), Seconds(*stock)) for run in runs for ours, stock in zip(run[method], run["stock"], strict=True)
    ]
    what = "against stock FedAvg; 2 sites, 1 thread each; equal network, cases, steps, scores and polls"
    return ratio(f"FLARE round, {method}", pairs, BARS["flare"], what)


# What remains.
def write(out: Path, measures: Sequence[Measure], threads: int) -> None:
    """Write cost.json and cost.md."""
    machine = {
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()),
        "processor": platform.machine(),
        "torch": torch.__version__,
        "threads": threads,
    }
    rows = [asdict(measure) | {"holds": measure.holds} for measure in measures]
    write_atomic(out / "cost.json", json.dumps({"schema": 1, "machine": machine, "measures": rows}, indent=1).encode())
    write_atomic(out / "cost.md", markdown(measures, machine).encode())


def markdown(measures: Sequence[Measure], machine: dict[str, Any]) -> str:
    """The measures as a table for people."""
    lines = [
        "Median of paired ratios [quartiles] in one run; "
        f"{machine['threads']} thread(s), {machine['cores']} cores, load {machine['load'][0]:.1f}, "
        f"torch {machine['torch']}",
        "",
    ]
    rows = [
        [
            m.name,
            m.shown(),
            "" if m.cpu is None else _shown(m.cpu),
            _shown(m.bar),
            "holds" if m.holds else "**does not hold**",
            m.what,
        ]
        for m in measures
    ]
    lines += grid(["measure", "value", "CPU", "bar", "verdict", "what"], rows)
    return "\n".join(lines) + "\n"


def _shown(value: float) -> str:
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
