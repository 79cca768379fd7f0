"""The toy task, as a plugin that only these tests see, and three sites of toy pictures."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

import omnifm.tasks
from omnifm.config import Experiment, SiteConfig
from omnifm.site.loader import CheckedCases, check_data
from omnifm.task import Task


@pytest.fixture(autouse=True)
def _toy_task(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(Path(__file__).parent / "toy_task")
    monkeypatch.setattr(omnifm.tasks, "__path__", [*omnifm.tasks.__path__, folder])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plots, no waiting for the disk, and a site's pictures are checked once per session: not what is tested."""
    monkeypatch.setattr("omnifm.federation.journal.write_report", lambda *_args: None)
    monkeypatch.setattr("os.fsync", lambda _handle: None)

    def checked(experiment: Experiment, config: SiteConfig, task: Task, name: str, **_how: bool) -> CheckedCases:
        if config.data_root not in CHECKED:
            CHECKED[config.data_root] = check_data(experiment, config, task, name)
        return CHECKED[config.data_root]

    monkeypatch.setattr("omnifm.site.stages.check_data", checked)


CHECKED: dict[str, CheckedCases] = {}


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites of different size, contrast and class frequencies; two cases each to validate and to test."""
    root = tmp_path_factory.mktemp("toys")
    for number, (num, contrast) in enumerate(((6, 0.5), (4, 1.0), (5, 2.0)), 1):
        rng = np.random.default_rng(number)
        folder = root / f"site-{number}"
        folder.mkdir()
        items = []
        for case in range(num + 4):
            label = int(case % (number + 1) == 0)
            picture = contrast * rng.normal(0, 1, (8, 8)) + label
            nibabel.save(nibabel.Nifti1Image(picture[..., None].astype(np.float32), np.eye(4)), folder / f"{case}.nii")
            items.append({"image": f"{case}.nii", "label": label, "patient": f"p{case}"})
        record = {
            "name": "toys",
            "modality": {"0": "MR"},
            "labels": {"0": "dark", "1": "bright"},
            "training": items[:num],
            "validation": items[num:-2],
            "test": items[-2:],
        }
        (folder / "dataset.json").write_text(json.dumps(record))
    return root
