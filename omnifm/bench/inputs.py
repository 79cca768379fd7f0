"""What every benchmark is given: a federation's folder, and a job whose experiment it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from omnifm.config import Experiment


def site_names(data: Path, least: int = 0) -> list[str]:
    """Folders in a federation's folder that hold a dataset.json, sorted.

    Raises:
        ValueError: they are fewer than `least`.
    """
    names = sorted(file.parent.name for file in data.glob("*/dataset.json"))
    if len(names) < least:
        raise ValueError(f"data must hold at least {least} sites with a dataset.json; got {len(names)}")
    return names


def job_experiment(job: Path, num_rounds: int | None = None, num_epochs: int | None = None) -> Experiment:
    """A job folder's experiment, with other rounds and local epochs per round where they are given.

    Raises:
        ValueError: the folder holds none, or it is not as it must be.
    """
    file = job / "app/config/experiment.json"
    if not file.is_file():
        raise ValueError("job must be a folder with app/config/experiment.json; it has none")
    experiment = Experiment.from_json(file.read_text())
    train = experiment.train
    train = replace(train, num_rounds=num_rounds or train.num_rounds, local_epochs=num_epochs or train.local_epochs)
    return replace(experiment, train=train)


def keep_few(file: Path, cases: Mapping[str, int]) -> None:
    """Cut the splits of a dataset.json of our own to their first cases."""
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {split: content[split][:number] for split, number in cases.items()}))
