"""What tests share: the real data, if this machine has them, and a small synthetic federation."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from omnifm.config import Experiment

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"

if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: one core each, their child processes too
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-n", default=1000, type=int, help="mutated files per format (tests/data/test_fuzz.py)")


SLOW_FOLDERS = ("flare", "provisioning")
"""Folders under tests/ that start FLARE or make startup kits: every test in them is slow."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test is `slow` if it or its folder says so.  All others are `fast`, without being told."""
    for item in items:
        if item.path.parent.name in SLOW_FOLDERS:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.fast)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real medical data for tests; never part of the project."""
    if not DATA.is_dir():
        pytest.skip("../shared/data is absent: real data are not on this machine")
    return DATA


def experiment(**changes: object) -> Experiment:
    """A federation of tiny volumes that trains in seconds."""
    record = {
        "job": "tiny",
        "task": {"name": "segmentation", "patch_size": 16},
        "data": {"name": "tiny"},
        "model": {"channels": [4, 8]},
        "method": {"name": "omnifm", "dim": 8, "num_bands": 8},
        "train": {"num_rounds": 2, "local_epochs": 1, "batch_size": 2, "lr": 0.01, "num_threads": 1},
        "seed": 3,
    }
    for key, value in changes.items():
        section = record.get(key)
        record[key] = {**section, **value} if isinstance(section, dict) and isinstance(value, dict) else value
    if isinstance(changes.get("method"), dict) and "name" in changes["method"]:
        record["method"] = changes["method"]
    return Experiment.from_json(json.dumps(record))


def write_site(folder: Path, *, num: int = 6, seed: int = 0, side: int = 16) -> Path:
    """A site of small NIfTI volumes: a bright ball in noise; 4 training, 1 validation, 1 test case of 6."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"))
    items = []
    for case in range(num):
        centre = rng.uniform(0.35 * side, 0.65 * side, (3, 1, 1, 1))
        ball = ((grid - centre) ** 2).sum(0) < (side / 4) ** 2
        image = (100 + 200 * ball + rng.normal(0, 20, ball.shape)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"images/{case}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(ball.astype(np.uint8), np.eye(4)), folder / f"labels/{case}.nii.gz")
        items.append({"image": f"images/{case}.nii.gz", "label": f"labels/{case}.nii.gz", "patient": f"p{case}"})
    record = {
        "name": "tiny",
        "modality": {"0": "MR"},
        "labels": {"0": "background", "1": "ball"},
        "training": items[:-2],
        "validation": items[-2:-1],
        "test": items[-1:],
    }
    (folder / "dataset.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites of different size."""
    root = tmp_path_factory.mktemp("federation")
    for number, num in enumerate((6, 5, 7), 1):
        write_site(root / f"site-{number}", num=num, seed=number)
    return root
