"""Using what was trained: a site's own personalised model on new cases.

The model is the site's checkpoint `after`: shared part, personal part, buffers and the share of the payload (the bank's
snapshot) that validation picked.  What is frozen was never kept; it is built again and compared by its digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from omnifm import __version__
from omnifm.config import Experiment, parse, read_site_file
from omnifm.data.datalist import SPLITS, read_datalist
from omnifm.data.items import Item, file_of
from omnifm.data.volume import RefusedImage
from omnifm.data.writers import write
from omnifm.method import Model, Partition, Tensors
from omnifm.plugins import load_method, load_task
from omnifm.site.device import device_named, to_device
from omnifm.state import History, write_atomic
from omnifm.task import Batch, Task
from omnifm.update import digest, under

SCHEMA = 1
"""Of predictions.json."""
SINGLE = "input"
"""Stands for the list in dataset.json where one image was given."""
OPTIONS = {"image": "input", "image_a": "input", "image_b": "second", "question": "question"}
"""Which option gives what a new case has."""


@dataclass(frozen=True, eq=False)
class Personal:
    """A site's trained model.

    Attributes:
        extra: its share of the payload.
        record: what was noted beside it: job, round, specification, scores.
        digest: of all its tensors; tells which model made a prediction.
    """

    experiment: Experiment
    task: Task
    model: Model
    extra: Tensors
    record: Mapping[str, Any]
    digest: str
    device: torch.device

    def forward(self, batch: Batch) -> Tensor:
        """The prediction for a batch."""
        return self.model(to_device(batch, self.device), self.extra).prediction


def predict(
    personal: Path,
    source: Path,
    output: Path,
    *,
    job: str | None = None,
    second: Path | None = None,
    question: str | None = None,
    split: str | None = None,
    site_file: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Predict new cases and write them and predictions.json into a new folder; one bad case does not stop the rest.

    Args:
        personal: the site's state folder, or one job's folder in it.
        source: an image, a folder holding one DICOM series, a dataset.json or the folder it lies in.
        output: new or empty.
        job: whose model, where the state folder holds several.
        second: image b of a fusion.
        question: about one image.
        split: training, validation or test of a dataset.json, as the job's seed completes them; None is every case.
        site_file: the site's own configuration, for `allowed_roots` of a dataset.json.
        device: auto, cpu or cuda:N.

    Returns:
        The content of predictions.json.

    Raises:
        ValueError: the model, the input's list or the output is not as it must be.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError("output must be a new or an empty folder; it is not")
    if question is not None and not question.strip():
        raise ValueError("question must hold a word; it is empty")
    used = load_personal(job_folder(personal, job), device)
    if job not in (None, used.experiment.job):
        raise ValueError(f"job must be what its model was trained for, {used.experiment.job!r}; got {job!r}")
    roots = () if site_file is None else tuple(map(Path, read_site_file(site_file).allowed_roots))
    items = _items(used, source, second, question, split, roots)
    rows = [_predicted(used, item, output) for item in tqdm(items, desc="predict", unit="case", disable=None)]
    index = {
        "schema": SCHEMA,
        "job": used.experiment.job,
        "task": used.experiment.task["name"],
        "round": used.record["round"],
        "model": used.digest,
        "version": __version__,
        "cases": rows,
        "note": "automatic predictions for research use, not for diagnosis",
    }
    write_atomic(output / "predictions.json", json.dumps(index, indent=1).encode())
    return index


def job_folder(state_dir: Path, job: str | None = None) -> Path:
    """The folder that holds one job's checkpoints: `state_dir` itself, or the one folder in it.

    Raises:
        ValueError: there is none, or there are several and no `job` names one.
    """
    if not state_dir.is_dir():
        raise ValueError("personal must be a site's state folder; there is no such folder")
    if _holds_model(state_dir):
        return state_dir
    jobs = sorted(folder.name for folder in state_dir.iterdir() if folder.is_dir() and _holds_model(folder))
    if job is not None and job not in jobs:
        raise ValueError(f"job must be one of {jobs} in this state folder; got {job!r}")
    if not jobs:
        raise ValueError("personal must hold a trained job; it holds none")
    if job is None and len(jobs) > 1:
        raise ValueError(f"personal must hold one job, or job must name one of {jobs}")
    return state_dir / (job or jobs[0])


def load_personal(folder: Path, device: str = "auto") -> Personal:
    """Build a job's personalised model from its checkpoint, once all its parts have proved to belong together.

    Raises:
        ValueError: the model was never trained, its file is damaged, or a part is another model's.
    """
    tensors, record = _checkpoint(folder)
    experiment = parse(Experiment, json.dumps(record["experiment"]), "the model's experiment")
    task, method = load_task(experiment), load_method(experiment)
    task.configure(record["spec"])
    torch.manual_seed(experiment.seed)  # what is frozen may have been drawn, not loaded
    model = method.build(task)
    parts = under(tensors, "model")
    extra = under(tensors, "extra")
    _check_parts(method.partition(model), model, parts, extra, record)
    model.load_state_dict(parts, strict=False)
    place = device_named(device)
    on_device = {name: value.to(place) for name, value in extra.items()}
    return Personal(experiment, task, model.to(place).eval(), on_device, record, digest(tensors), place)


def _holds_model(folder: Path) -> bool:
    return any(History(folder, moment).rounds() for moment in ("before", "after"))


def _checkpoint(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    history = History(folder, "after", keep=1)
    found = history.load()
    if found is None and history.rounds():
        raise ValueError("the personal model's file must match its SHA-256; it is damaged")
    if found is None or not found[2].get("trained"):
        raise ValueError("the personal model must have been trained; no local round of this job is complete")
    if missing := sorted({"experiment", "spec", "partition", "frozen", "extra", "round"} - found[2].keys()):
        raise ValueError(f"the personal model must say what it is made of; an earlier version left out {missing}")
    return found[1], found[2]


def _check_parts(partition: Partition, model: Model, parts: Tensors, extra: Tensors, record: Mapping[str, Any]) -> None:
    """Refuse parts that are not one model's."""
    if partition.hash() != record["partition"]:
        raise ValueError("the personal model's parts must be divided as its job divides them; the partition differs")
    kept = {*partition.shared, *partition.personal, *partition.buffers}
    if odd := kept ^ parts.keys():
        lacking, foreign = len(odd & kept), len(odd - kept)
        raise ValueError(f"the personal model must hold its own tensors; {lacking} are missing, {foreign} foreign")
    for name, value in parts.items():
        if (str(value.dtype), tuple(value.shape)) != partition.sizes[name] or not torch.isfinite(value).all():
            raise ValueError(f"{name!r} must be finite and {partition.sizes[name]} in the personal model; it is not")
    if sorted(extra) != record["extra"]:
        raise ValueError(f"the personal model must hold its share of the payload, {record['extra']}; it does not")
    if digest(partition.pick(model, "frozen")) != record["frozen"]:
        raise ValueError("the frozen backbone must be the one this model was trained with; its digest differs")


def _items(
    used: Personal, source: Path, second: Path | None, question: str | None, split: str | None, roots: tuple[Path, ...]
) -> tuple[Item, ...]:
    given = used.task.given
    if source.suffix.lower() == ".json" or (source / "dataset.json").is_file():
        if second is not None or question is not None:
            raise ValueError("second and question go with one image; dataset.json says them for each case")
        lists = read_datalist(source, required=given, allowed_roots=roots, seed=used.experiment.seed).splits()
        if split not in (None, *SPLITS):
            raise ValueError(f"split must be one of {list(SPLITS)}; got {split!r}")
        found = tuple(item for name, items in lists.items() if split in (None, name) for item in items)
        if not found:
            raise ValueError(f"split must hold a case; {split!r} of this dataset.json holds none")
        return found
    if split is not None:
        raise ValueError("split goes with dataset.json; the input is one image")
    said = {"input": source.absolute(), "second": second and second.absolute(), "question": question}
    options = {OPTIONS[key] for key in given}
    for name, value in said.items():
        if (value is not None) != (name in options):
            kind, rule = used.experiment.task["name"], "must be given" if name in options else "must not be given"
            raise ValueError(f"{name} {rule} for {kind} of one image")
        if isinstance(value, Path) and not file_of(value).exists():
            raise ValueError(f"{name} must be an existing file or folder; it is not")
    return ({key: said[OPTIONS[key]] for key in given} | {"origin": (SINGLE, 0)},)


def _predicted(used: Personal, item: Item, output: Path) -> dict[str, Any]:
    """Predict one case; its row of the index."""
    name, position = item["origin"]
    row = {"list": name, "position": position}
    try:
        with torch.inference_mode():
            prediction = used.task.infer(used.forward, item)
    except RefusedImage as error:
        return row | {"status": "refused", "reason": error.reason, "message": str(error)}
    except (MemoryError, torch.OutOfMemoryError):
        rule = "case must fit in memory beside the model; it does not"
        return row | {"status": "refused", "reason": "too_large", "message": rule}
    source = item[used.task.given[0]]
    return row | {"status": "ok"} | write(prediction, source, output, f"{name}-{position}", used.digest, __version__)
