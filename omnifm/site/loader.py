"""A site's cases: checked once, prepared and cached, and given out as batches, single cases or views."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.data import CacheDataset, DataLoader, Dataset, get_track_meta, set_track_meta
from monai.transforms import Compose, Transform
from torch import Tensor

from omnifm.config import Experiment, SiteConfig
from omnifm.data.datalist import SPLITS, Datalist, fingerprint, owners, read_datalist, without
from omnifm.data.items import Item
from omnifm.data.refusal import RefusedImage
from omnifm.data.splits import settle
from omnifm.quality import inspection
from omnifm.quality.findings import Content
from omnifm.records import Json
from omnifm.site.device import to_device
from omnifm.site.patients import Contents, Patients
from omnifm.state import StateError, decode, encode, write_atomic
from omnifm.task import Batch, Task

UNUSABLE: dict[str, str] = {}
"""Why this process refused a site's data, by their fingerprint.  A site that cannot start is asked again in every
round.  It must not read all its cases again, while the other sites wait, before one of its files has changed."""
logger = logging.getLogger("omnifm.site.loader")


class Prepare(Transform):
    """Read and prepare one case.  It is a MONAI Transform because CacheDataset caches only the results of those."""

    def __init__(self, task: Task, labels: Mapping[int, str]) -> None:
        self.task = task
        self.labels = labels

    def __call__(self, data: Item) -> Batch:
        try:
            return self.task.prepare(self.task.read(data, self.labels))
        except RefusedImage as refusal:  # the check accepted it, but since then the file has changed or is gone
            split, position = data["origin"]
            raise RefusedImage(refusal.reason, f"item {position} of '{split}': {refusal}") from None


class Refusing(Compose):
    """MONAI's Compose, except that our own ValueError about a case is raised as it is, not wrapped by MONAI."""

    def __call__(self, input_: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(input_, *args, **kwargs)
        except RuntimeError as error:
            if isinstance(error.__cause__, ValueError):
                raise error.__cause__ from None
            raise


class Untracked(Compose):
    """MONAI's Compose without the tracking of metadata, which takes four times as long as moving a small image."""

    def __call__(self, input_: Any, *args: Any, **kwargs: Any) -> Any:
        was_tracking = get_track_meta()
        set_track_meta(False)
        try:
            return super().__call__(input_, *args, **kwargs)
        finally:
            set_track_meta(was_tracking)


class CheckedCases(NamedTuple):
    """The result of reading every case of a site once.

    Attributes:
        datalist: the cases that can be used.
        num_refused: number of the others.
        facts: what the task notes about each usable case.
        listed: all cases, with those that cannot be used.
        contents: digests of each usable case.
    """

    datalist: Datalist
    num_refused: int
    facts: list[Json]
    listed: Datalist
    contents: Contents


def check_data(
    experiment: Experiment, config: SiteConfig, task: Task, name: str, *, is_same_run: bool = True
) -> CheckedCases:
    """Read every case once and judge the site's data; the result is kept on disk until a file changes.

    Patients whom this job has used before keep the split that they had.

    Args:
        name: the site's, for its own log.
        is_same_run: as in `Patients.splits`.

    Raises:
        ValueError: the data cannot be used; one line that names no patient and no file.
    """
    folder = Path(config.state_dir) / experiment.job
    listed = read_datalist(
        Path(config.data_root),
        required=task.required,
        allowed_roots=tuple(Path(root) for root in config.allowed_roots),
        seed=experiment.seed,
    )
    listed = replace(listed, source=config.source)
    patients = Patients(folder, experiment.seed)
    contents: Contents = {}
    while True:
        known = patients.splits(listed, contents, is_same_run=is_same_run)
        settled = settle(listed, experiment.seed, known)
        checked = _checked(settled, experiment, config, task, name)
        if patients.splits(listed, checked.contents, is_same_run=is_same_run) == known:
            return checked
        contents = checked.contents  # an image is known, whose patient has another name now: it keeps its split


def _checked(datalist: Datalist, experiment: Experiment, config: SiteConfig, task: Task, name: str) -> CheckedCases:
    """Read every case once, or take what the last check of the same files found."""
    folder = Path(config.state_dir) / experiment.job
    asked = [inspection.SCHEMA, fingerprint(datalist), experiment.task, config.max_refused_fraction]
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    file = folder / "check.state"
    if (kept := _kept_check(file))["key"] == key:
        refusals = {(refusal["split"], refusal["position"]) for refusal in kept["report"]["refusals"]}
        usable = without(datalist, refusals)
        contents = {(row[0], row[1]): Content(tuple(row[2]), row[3]) for row in kept["contents"]}
        return CheckedCases(usable, len(refusals), kept["facts"], datalist, contents)
    if key in UNUSABLE:
        raise ValueError(UNUSABLE[key])
    found = inspection.inspect(datalist, task, config.max_refused_fraction, name=experiment.task["name"])
    found.save(folder)
    if found.problems:
        message = "; ".join(found.problems)
        # A slow disk or a full memory may be better the next time: then the cases are read again.
        if not {refusal.reason for refusal in found.refusals} & {"too_slow", "too_large"}:
            UNUSABLE[key] = message
        raise ValueError(message)
    if found.refusals:
        logger.warning("%s: %d cases refused, see check.html in its state folder", name, len(found.refusals))
    for warning in found.report["warnings"]:
        logger.warning("%s: %s", name, warning)
    rows = [[*place, *content] for place, content in found.contents.items()]
    write_atomic(file, encode({}, {"key": key, "facts": found.facts, "report": found.report, "contents": rows}))
    return CheckedCases(found.datalist, len(found.refusals), found.facts, datalist, found.contents)


def _kept_check(file: Path) -> Json:
    """The last check of the data; without a key if there is none or its file is damaged."""
    try:
        return decode(file.read_bytes())[1]
    except (OSError, StateError):
        return {"key": None}


class Loader:
    """Gives out a site's cases as the network sees them.

    Args:
        datalist: the cases.
        task: reads, prepares and augments them.
        device: where batches and views are put.
        batch_size: number of training cases in one batch.
        cache_gib: memory for prepared cases, in GiB; the rest is prepared anew each time it is used.
    """

    def __init__(
        self, datalist: Datalist, task: Task, device: torch.device, *, batch_size: int, cache_gib: float
    ) -> None:
        self.datalist = datalist
        self.task = task
        self.device = device
        self.batch_size = batch_size
        self.cache_gib = cache_gib
        self._prepared: dict[str, Dataset] = {}

    def restrict(self, **splits: Sequence[Item]) -> None:
        """Use only these items of the splits that are named; the other splits are as before."""
        every = self.datalist.splits() | {split: tuple(items) for split, items in splits.items()}
        training, validation, test = (every[split] for split in SPLITS)
        self.datalist = replace(self.datalist, training=training, validation=validation, test=test)
        self.forget_prepared()

    def forget_prepared(self) -> None:
        """Drop the prepared cases, because the task prepares them in another way from now on."""
        self._prepared = {}

    def cases(self, split: str) -> Dataset:
        """The prepared cases of a split, in the order of the list; a split may be empty.

        As many cases stay in memory as the split's share of `cache_gib` holds.
        """
        if not self.datalist.splits()[split]:
            return Dataset([])
        if split not in self._prepared:
            items = [dict(item) for item in self.datalist.splits()[split]]
            prepare = Prepare(self.task, self.datalist.labels)
            first = prepare(items[0])
            share = len(items) / sum(len(self.datalist.splits()[name]) for name in SPLITS)
            budget = self.cache_gib * 2**30 * share
            num_cached = int(budget // max(1, sum(v.nbytes for v in first.values() if hasattr(v, "nbytes"))))
            self._prepared[split] = CacheDataset(
                items, Refusing(prepare), cache_num=num_cached, num_workers=None, progress=False
            )
        return self._prepared[split]

    def batches(self, seed: int) -> Callable[[], Iterator[Batch]]:
        """Return a function whose every call gives one epoch of training batches on the device, in a new random order.

        Args:
            seed: decides the order of every epoch, whatever else draws random numbers.
        """
        samples = Dataset(self.cases("training"), Untracked(self.task.augment().transforms))
        seeds = torch.Generator().manual_seed(seed)

        def epoch() -> Iterator[Batch]:
            order = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=seeds)))
            for batch in DataLoader(samples, batch_size=self.batch_size, shuffle=True, num_workers=0, generator=order):
                yield to_device(batch, self.device)

        return epoch

    def views(self) -> Iterator[tuple[Tensor, str, str]]:
        """(view (1, c, *space), patient, modality) of every training case, in order.

        Where the list names no patient, all cases of one image count as one patient.
        """
        items = self.datalist.training
        prepared = self.cases("training")
        first_of: dict[str, int] = {}
        for position, (item, owner) in enumerate(zip(items, owners(items, self.datalist.root), strict=True)):
            modality = str(item.get("modality") or self.datalist.modality.get("0", ""))
            view = self.task.view(prepared[position])[None].to(self.device)
            first = first_of.setdefault(owner, position)
            yield view, owner if "patient" in items[first] else f"image {first}", modality
