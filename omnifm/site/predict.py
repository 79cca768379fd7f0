"""Predict new cases with a site's own personal model, and write the predictions into a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

import torch
from tqdm import tqdm

from omnifm import __version__
from omnifm.config import read_site_file
from omnifm.data.datalist import SPLITS, read_datalist
from omnifm.data.items import Item, file_of
from omnifm.data.local_lists import write_names
from omnifm.data.raster import SUFFIXES
from omnifm.data.volume import RefusedImage
from omnifm.data.writers import write
from omnifm.records import Json
from omnifm.site.trained import Personal, load_personal, trained_folder
from omnifm.state import write_atomic

SCHEMA = 1
"""Version of predictions.json."""
SINGLE = "input"
"""Name of the list in predictions.json if one image was given instead of a dataset.json."""
OPTIONS = {"image": "input", "image_a": "input", "image_b": "second", "question": "question"}
"""The option of `omnifm predict` that gives each key of a new case."""


class Predictions(TypedDict):
    """The content of predictions.json."""

    schema: int
    job: str
    task: str
    round: int
    """The round whose model validation chose."""
    model: str
    """Digest of the model."""
    version: str
    """Version of this software."""
    cases: list[Json]
    """For each case its list and position in dataset.json, and its prediction or the reason of its refusal."""
    note: str


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
) -> Predictions:
    """Predict new cases; write the predictions and predictions.json into a new folder.

    The images of a folder are numbered in alphabetical order; `names.txt` leads from the numbers to their names.

    A case that cannot be read is refused in predictions.json, and the others are still predicted.

    Args:
        personal: the site's state folder, or one job's folder in it.
        source: an image, a folder with one DICOM series, a folder of images (PNG, JPEG, TIFF, BMP or NIfTI, one case
            each), a dataset.json, or the folder that holds it.
        output: a new or empty folder.
        job: the job whose model is used; needed if the state folder holds several.
        second: the second image, for image fusion.
        question: the question about the image, or about each image of a folder, for visual question answering.
        split: training, validation or test; only this split of a dataset.json is predicted, None is every case.  Splits
            that the file does not give are drawn with the job's seed, as in training.
        site_file: the site's own configuration; its `allowed_roots` hold for the dataset.json.
        device: auto, cpu or cuda:N.

    Returns:
        The content of predictions.json.

    Raises:
        ValueError: the model, the input or the output breaks a rule.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError("output must be a new or an empty folder; it is not")
    if question is not None and not question.strip():
        raise ValueError("question must hold a word; it is empty")
    used = load_personal(trained_folder(personal, job), device)
    if job not in (None, used.experiment.job):
        raise ValueError(f"job must be what its model was trained for, {used.experiment.job!r}; got {job!r}")
    roots = () if site_file is None else tuple(map(Path, read_site_file(site_file).allowed_roots))
    items = _items(used, source, second, question, split, roots)
    if len(items) > 1 and items[0]["origin"][0] == SINGLE:
        write_names(output, [("-".join(map(str, item["origin"])), str(item[used.task.given[0]])) for item in items])
    rows = [_predicted(used, item, output) for item in tqdm(items, desc="predict", unit="case", disable=None)]
    index: Predictions = {
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


def _items(
    used: Personal, source: Path, second: Path | None, question: str | None, split: str | None, roots: tuple[Path, ...]
) -> tuple[Item, ...]:
    """The cases of a dataset.json, or the one case that the options give."""
    given = used.task.given
    if source.suffix.lower() == ".json" or (source / "dataset.json").is_file():
        if second is not None or question is not None:
            raise ValueError(
                "second and question go with one image; with dataset.json, write image_b or question into each item"
            )
        lists = read_datalist(source, required=given, allowed_roots=roots, seed=used.experiment.seed).splits()
        if split not in (None, *SPLITS):
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
        found = tuple(item for name, items in lists.items() if split in (None, name) for item in items)
        if not found:
            raise ValueError(f"split must hold a case; {split!r} of this dataset.json holds none")
        return found
    if split is not None:
        raise ValueError("split goes with dataset.json; the input is none")
    values: dict[str, Path | str | None] = {
        "input": source.absolute(),
        "second": None if second is None else second.absolute(),
        "question": question,
    }
    options = {OPTIONS[key] for key in given}
    images = _images_in(source)
    if images and "second" in options:
        raise ValueError("input must be one image for pairs of images; for several pairs give a dataset.json")
    for name, value in values.items():
        if (value is not None) != (name in options):
            rule = "must be given" if name in options else "must not be given"
            raise ValueError(f"{name} {rule} for {used.experiment.task['name']} of one image")
        if isinstance(value, Path) and not file_of(value).exists():
            raise ValueError(f"{name} must be an existing file or folder; it is not")
    return tuple(
        {key: values[OPTIONS[key]] for key in given} | {given[0]: image, "origin": (SINGLE, number)}
        for number, image in enumerate(images or [source.absolute()])
    )


def _images_in(folder: Path) -> list[Path]:
    """The images of a folder that is no DICOM series: all whose names end like those of NIfTI or of a picture."""
    files = sorted(folder.absolute().iterdir()) if folder.is_dir() else []
    visible = [file for file in files if file.is_file() and not file.name.startswith(".")]
    return [file for file in visible if file.name.lower().endswith((".nii", ".nii.gz", *SUFFIXES))]


def _predicted(used: Personal, item: Item, output: Path) -> Json:
    """Predict one case; return its entry in predictions.json."""
    name, position = item["origin"]
    row = {"list": name, "position": position}
    try:
        with torch.inference_mode():
            prediction = used.task.infer(used.forward, item)
    except RefusedImage as error:
        return row | {"status": "refused", "reason": error.reason, "message": str(error)}
    except (MemoryError, torch.OutOfMemoryError):
        message = "case must fit in memory together with the model; it does not"
        return row | {"status": "refused", "reason": "too_large", "message": message}
    source = item[used.task.given[0]]
    return row | {"status": "ok"} | write(prediction, source, output, f"{name}-{position}", used.digest, __version__)
