"""The files that come with the package and are no Python code: jobs, and templates for a deployment.

In a checkout they are the folders `jobs/` and `provisioning/`.  The wheel holds a copy of both in `omnifm/_shipped/`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from omnifm.nearest import did_you_mean

PACKAGE = Path(__file__).resolve().parent
EXPERIMENT = "app/config/experiment.json"
"""Where a job folder holds its experiment."""


class ShippedJob(NamedTuple):
    """One job that comes with the package."""

    name: str
    task: str
    about: str
    """What it does, in one line."""


def shipped(name: str) -> Path:
    """The folder `jobs` or `provisioning`: the checkout's own, or else the copy in the installed package.

    Raises:
        ValueError: this installation holds no such folder.
    """
    checkout = PACKAGE.parent
    folder = (checkout if (checkout / "pyproject.toml").is_file() else PACKAGE / "_shipped") / name
    if not folder.is_dir():
        raise ValueError(f"this installation of omnifm must hold the folder {name!r}; install the package again")
    return folder


def job_names() -> list[str]:
    """Names of the shipped jobs, sorted."""
    return sorted(file.parents[2].name for file in shipped("jobs").glob(f"*/{EXPERIMENT}"))


def job_folder(job: str | Path) -> Path:
    """The folder of a job: a path to it, or else the name of a shipped job.

    Raises:
        ValueError: it is neither.
    """
    if (Path(job) / EXPERIMENT).is_file():
        return Path(job)
    if str(job) in job_names():
        return shipped("jobs") / job
    raise ValueError(
        f"job must be a job folder (it holds {EXPERIMENT}) or one of {', '.join(job_names())}; "
        f"{Path(job).name!r:.80} is neither{did_you_mean(Path(job).name, job_names())}"
    )


def job_file(job: str | Path) -> Path:
    """The experiment.json of a job.

    Args:
        job: a job folder, an experiment.json, or the name of a shipped job.

    Raises:
        ValueError: it is none of these.
    """
    return Path(job) if Path(job).is_file() else job_folder(job) / EXPERIMENT


def jobs() -> list[ShippedJob]:
    """The shipped jobs, sorted by name."""
    found = []
    for name in job_names():
        record = json.loads(job_file(name).read_text(encoding="utf-8"))
        train = record["train"]
        about = (
            f"data {record['data']['name']}; method {record['method']['name']}; {train['num_rounds']} rounds of "
            f"{train['local_epochs']} local epochs; presets {', '.join(record['presets'])}"
        )
        found.append(ShippedJob(name, record["task"]["name"], about))
    return found


def new_job(job: str | Path, destination: Path) -> Path:
    """Copy a job to a new folder, to edit its experiment.json; returns that file.

    Raises:
        ValueError: there is no such job, or the destination exists.
    """
    source = job_folder(job)
    if destination.exists() or destination.is_symlink():
        raise ValueError("destination must be a new folder; it exists already")
    shutil.copytree(source, destination, ignore=shutil.ignore_patterns("__pycache__"))
    return destination / EXPERIMENT
