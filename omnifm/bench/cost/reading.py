"""What strict reading costs: our reader and loader against MONAI's own on the same files, as ratios in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, PydicomReader
from monai.transforms import (
    ClipIntensityPercentiles,
    Compose,
    EnsureChannelFirstd,
    LoadImage,
    LoadImaged,
    NormalizeIntensity,
    Orientationd,
    SelectItemsd,
    Spacingd,
    SpatialPadd,
)

from omnifm.bench.cost.measure import Measure, interleave, ratio
from omnifm.config import Data, Experiment, SiteConfig, Train
from omnifm.data.datalist import read_datalist
from omnifm.data.volume import RefusedImage, read_volume
from omnifm.site.stages import Site

BARS = {"series": 1.3, "epoch": 1.1}
"""The highest allowed value of each ratio."""
MIN_SLICES = 10
"""Shorter series are passed over: their time is mostly start-up, not reading."""


def run(series: Path | None, site: Path | None, num_pairs: int = 9) -> list[Measure]:
    """Measure what is given, and print a line for each measure.

    Args:
        series: folder of folders, each one DICOM series; series that either side refuses are passed over.
        site: a 3-D segmentation site with dataset.json.
        num_pairs: most timings of each side.

    Raises:
        ValueError: neither is given, or a folder holds nothing to measure.
    """
    if series is None and site is None:
        raise ValueError("give a folder of series, a site, or both; got neither")
    torch.set_num_threads(1)
    measures = []
    for measure in _measures(series, site, num_pairs):
        print(measure.line(), flush=True)
        measures.append(measure)
    return measures


def _measures(series: Path | None, site: Path | None, num_pairs: int) -> Iterator[Measure]:
    if series is not None:
        yield from read_series(series, num_pairs)
    if site is not None:
        yield from epochs(site, num_pairs)


def read_series(root: Path, num_pairs: int) -> Iterator[Measure]:
    """Read, orient to RAS, clip and standardise each readable series: our reader against MONAI's PydicomReader."""
    load = LoadImage(reader=PydicomReader(), image_only=True, ensure_channel_first=True)
    folders = [f for f in sorted(root.iterdir()) if f.is_dir() and len(list(f.iterdir())) >= MIN_SLICES]
    measured = 0
    for number, folder in enumerate(folders):
        try:
            shape = read_volume(folder).array.shape
            load(folder)
        except (RefusedImage, RuntimeError, ValueError, AttributeError, KeyError):
            continue  # a series that one side cannot read gives no ratio
        measured += 1
        pairs = interleave(partial(_ours, folder), partial(_theirs, load, folder), num_pairs)
        size = "x".join(map(str, shape))
        yield ratio(f"series {number}", pairs, BARS["series"], f"read and preprocess {size}, against MONAI's reader")
    if not measured:
        raise ValueError(f"series must hold a readable folder of at least {MIN_SLICES} slices; it has none")


def _ours(folder: Path) -> torch.Tensor:
    return _preprocessed(torch.from_numpy(read_volume(folder).in_ras().array[None]))


def _theirs(load: LoadImage, folder: Path) -> torch.Tensor:
    return _preprocessed(load(folder))


def _preprocessed(image: torch.Tensor) -> torch.Tensor:
    return NormalizeIntensity()(ClipIntensityPercentiles(0.5, 99.5)(image))


def epochs(site: Path, num_pairs: int) -> Iterator[Measure]:
    """One epoch over a site's prepared cases: our loader against a CacheDataset of MONAI's own transforms."""
    experiment = Experiment(
        job="reading",
        task={"name": "segmentation", "patch_size": 32},
        data=Data(name="reading"),
        method={"name": "fedavg"},
        train=Train(num_rounds=1, local_epochs=1, batch_size=2, lr=0.001),
    )
    with tempfile.TemporaryDirectory() as state:
        ours = Site(experiment, "site-1", SiteConfig(data_root=str(site), state_dir=state))
        ours.task.configure(ours.task.agree({"site-1": ours.task.facts(ours.case_facts, ours.datalist.labels)}))
        batches = ours.loader.batches(0)
        theirs = _monai_loader(site, ours)
        pairs = interleave(lambda: [None for _ in batches()], lambda: [None for _ in theirs], num_pairs)
        what = (
            f"{len(ours.datalist.training)} cached volumes, patches of {ours.task.spec['patch']}, against CacheDataset"
        )
        yield ratio("epoch", pairs, BARS["epoch"], what)


def _monai_loader(site: Path, ours: Site) -> DataLoader:
    """MONAI's usual pipeline, with the same spacing, patch and random transforms as ours."""
    datalist = read_datalist(site, required=("image", "label"))
    both = ["image", "label"]
    fixed = Compose(
        [
            LoadImaged(both, image_only=True),
            EnsureChannelFirstd(both),
            Orientationd(both, axcodes="RAS", labels=None),
            Spacingd(both, pixdim=ours.task.spec["spacing_mm"], mode=("bilinear", "nearest")),
            SpatialPadd(both, ours.task.spec["patch"], method="end"),
            SelectItemsd(both),
            _finish,
        ]
    )
    items = [{key: str(item[key]) for key in both} for item in datalist.training]
    cached = CacheDataset(items, fixed, num_workers=None, progress=False)
    samples = Dataset([cached[i] for i in range(len(cached))], ours.task.augment())
    return DataLoader(samples, batch_size=2, shuffle=True, num_workers=0)


def _finish(case: dict[str, MetaTensor]) -> dict[str, object]:
    label = np.asarray(case["label"]).reshape(-1)
    image = _preprocessed(case["image"].as_tensor())
    return {
        "image": image,
        "label": case["label"].as_tensor(),
        "fg": np.flatnonzero(label),
        "bg": np.flatnonzero(label == 0),
    }
