"""What every benchmark is given: a federation's folder, and a job whose experiment it runs."""

from __future__ import annotations

import json
import os
import tempfile
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


def out_folder(out: Path) -> Path:
    """The folder for results, made if absent; asked for before the first run, not after it.

    Raises:
        ValueError: it cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out
    except OSError as error:
        raise ValueError(f"out must be a folder that can be written to; it cannot be: {error.strerror}") from None


def federation(data: Path) -> Path:
    """A federation's folder by its own name, which `.` has not."""
    return Path(os.path.abspath(data))


def job_experiment(job: str | Path, num_rounds: int | None = None, num_epochs: int | None = None) -> Experiment:
    """A job folder's experiment, with other rounds and local epochs per round where they are given.

    Raises:
        ValueError: the folder holds none, or it is not as it must be.
    """
    experiment = Experiment.from_job(job)
    train = experiment.train
    train = replace(train, num_rounds=num_rounds or train.num_rounds, local_epochs=num_epochs or train.local_epochs)
    return replace(experiment, train=train)


def keep_few(file: Path, cases: Mapping[str, int]) -> None:
    """Cut the splits of a dataset.json of our own to their first cases."""
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {split: content[split][:number] for split, number in cases.items()}))
