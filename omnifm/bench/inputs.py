"""The inputs of every benchmark: a federation's folder, a folder for results, and a job whose experiment is run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from omnifm.config import Experiment


def site_names(data: Path, least: int = 0) -> list[str]:
    """Names of the sites in a federation's folder, sorted: its folders that hold a dataset.json.

    Raises:
        ValueError: there are fewer than `least`.
    """
    names = sorted(file.parent.name for file in data.glob("*/dataset.json"))
    if len(names) < least:
        raise ValueError(f"data must hold at least {least} sites with a dataset.json; got {len(names)}")
    return names


def out_folder(out: Path) -> Path:
    """Make the folder for results if it is absent, and check it before the first run.

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
    """A federation's folder as an absolute path, whose last part is its name (`.` has none)."""
    return Path(os.path.abspath(data))


def job_experiment(job: str | Path, num_rounds: int | None = None, num_epochs: int | None = None) -> Experiment:
    """A job folder's experiment, with other rounds and local epochs per round if they are given.

    Raises:
        ValueError: the folder has no experiment.json, or it is refused.
    """
    experiment = Experiment.from_job(job)
    train = experiment.train
    train = replace(train, num_rounds=num_rounds or train.num_rounds, local_epochs=num_epochs or train.local_epochs)
    return replace(experiment, train=train)


def keep_few(file: Path, cases: Mapping[str, int]) -> None:
    """Shorten the splits of a demo site's dataset.json to their first cases.

    Args:
        cases: split -> number of cases that remain.
    """
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {split: content[split][:number] for split, number in cases.items()}))
