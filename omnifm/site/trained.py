"""A site's trained personal model, built again from its checkpoint `after`, which validation chose.

The checkpoint holds the shared part, the personal part, the buffers and the method's own tensors (for example retrieved
prototypes).  It does not hold the frozen part: that is built again, and its digest must be the one that the checkpoint
names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from omnifm.config import Experiment, parse
from omnifm.method import Model, Partition, Tensors
from omnifm.plugins import load_method, load_task
from omnifm.site.device import device_named, to_device
from omnifm.site.personal import CheckpointRecord
from omnifm.state import History
from omnifm.task import Batch, Task
from omnifm.update import digest, under

NEEDED = {"experiment", "spec", "partition", "frozen", "extra", "round"}
"""Keys of a checkpoint's record without which the model cannot be built."""


@dataclass(frozen=True, eq=False)
class Personal:
    """A site's trained model.

    Attributes:
        extra: the method's own tensors, on the device.
        record: what the checkpoint says about the model: job, round, specification, scores.
        digest: SHA-256 of all its tensors; it tells which model made a prediction.
    """

    experiment: Experiment
    task: Task
    model: Model
    extra: Tensors
    record: CheckpointRecord
    digest: str
    device: torch.device

    def forward(self, batch: Batch) -> Tensor:
        """The prediction for a batch."""
        return self.model(to_device(batch, self.device), self.extra).prediction


def trained_folder(state_dir: Path, job: str | None = None) -> Path:
    """The folder with one job's checkpoints: `state_dir` itself, or a folder in it.

    Raises:
        ValueError: there is no such folder, or there are several and `job` names none of them.
    """
    if not state_dir.is_dir():
        raise ValueError("personal must be a site's state folder; there is no such folder")
    if _holds_model(state_dir):
        return state_dir
    jobs = sorted(folder.name for folder in state_dir.iterdir() if folder.is_dir() and _holds_model(folder))
    if jobs and job is not None and job not in jobs:
        raise ValueError(f"job must be one of {', '.join(jobs)} in this state folder; got {job!r}")
    if not jobs:
        raise ValueError(_no_model(state_dir))
    if job is None and len(jobs) > 1:
        raise ValueError(f"personal must hold one job, or job must name one of {', '.join(jobs)}")
    return state_dir / (job or jobs[0])


def load_personal(folder: Path, device: str = "auto") -> Personal:
    """Build a job's personal model from its checkpoint, after checking that all its parts belong together.

    Args:
        folder: the job's folder, from `trained_folder`.
        device: auto, cpu or cuda:N.

    Raises:
        ValueError: the model was never trained, its file is damaged, or a part belongs to another model.
    """
    tensors, record = _checkpoint(folder)
    experiment = parse(Experiment, json.dumps(record["experiment"]), "the model's experiment")
    task, method = load_task(experiment), load_method(experiment)
    task.configure(record["spec"])
    torch.manual_seed(experiment.seed)  # a frozen part may hold random values of this seed
    model = method.build(task)
    parts = under(tensors, "model")
    extra = under(tensors, "extra")
    _check_parts(method.partition(model), model, parts, extra, record)
    model.load_state_dict(parts, strict=False)
    place = device_named(device)
    on_device = {name: value.to(place) for name, value in extra.items()}
    return Personal(experiment, task, model.to(place).eval(), on_device, record, digest(tensors), place)


def _no_model(folder: Path) -> str:
    """The refusal of a folder without a trained job; it names the sites if this is the folder above theirs."""
    below = [site for site in folder.iterdir() if site.is_dir() and not site.name.startswith(".")]
    sites = sorted(site.name for site in below if any(_holds_model(job) for job in site.iterdir() if job.is_dir()))
    if sites:
        return (
            f"no trained model here. Sites below: {', '.join(sites)}. "
            f"Choose one: --personal .../{folder.resolve().name}/{sites[0]}"
        )
    return "no trained model here: give the site's state folder, state_dir in local/omnifm_site.json, after a training"


def _holds_model(folder: Path) -> bool:
    return any(History(folder, moment).rounds() for moment in ("before", "after"))


def _checkpoint(folder: Path) -> tuple[Tensors, CheckpointRecord]:
    history = History(folder, "after", keep=1)
    found = history.load()
    if found is None and history.rounds():
        raise ValueError(
            "the personal model's file must match its SHA-256; it is damaged: restore it from a backup, or train again"
        )
    if found is None or not found.record.get("trained"):
        raise ValueError("the personal model must have been trained; no local round of this job is complete")
    if missing := sorted(NEEDED - found.record.keys()):
        raise ValueError(
            f"the personal model's file must hold {', '.join(missing)}; an older version wrote it: train again"
        )
    return found.tensors, cast(CheckpointRecord, found.record)


def _check_parts(partition: Partition, model: Model, parts: Tensors, extra: Tensors, record: CheckpointRecord) -> None:
    """Refuse parts that do not make up the model that was trained."""
    if partition.hash() != record["partition"]:
        raise ValueError("the personal model's partition must be the one that its job gives; it differs")
    kept = {*partition.shared, *partition.personal, *partition.buffers}
    if odd := kept ^ parts.keys():
        lacking, foreign = len(odd & kept), len(odd - kept)
        raise ValueError(
            f"the personal model must hold exactly its own tensors; {lacking} are missing, {foreign} belong to another"
        )
    for name, value in parts.items():
        if (str(value.dtype), tuple(value.shape)) != partition.sizes[name] or not torch.isfinite(value).all():
            raise ValueError(f"{name!r} must be finite and {partition.sizes[name]} in the personal model; it is not")
    if sorted(extra) != record["extra"]:
        raise ValueError(f"the personal model must hold the tensors of its method, {record['extra']}; it does not")
    if digest(partition.pick(model, "frozen")) != record["frozen"]:
        raise ValueError(
            "the frozen backbone must be the one this model was trained with; its digest differs: restore those weights"
        )
