"""One site: its data, its personal state, one local round and one evaluation, for every task and method.

Both drivers, the simulation in one process and FLARE's executor, do nothing at a site but `Site.reply`.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset, get_track_meta, set_track_meta
from monai.transforms import Compose, Transform
from PIL import Image
from torch import Tensor, nn

from omnifm.check import inspection as check
from omnifm.config import Experiment, SiteConfig
from omnifm.data.datalist import Datalist, fingerprint, owners, read_datalist, without
from omnifm.data.refusal import RefusedImage
from omnifm.method import LocalRound, Model, Partition, Tensors
from omnifm.plugins import load_method, load_task
from omnifm.state import History, StateError, decode, encode, locked, write_atomic
from omnifm.task import Backbone, Batch, Task
from omnifm.update import Payload, Score, Update, clean, digest, under

SPLITS = ("training", "validation", "test")
NUM_PICTURES = 3
LOCK_WAIT_S = 60.0
"""Seconds that a trainer waits for the one of a job that is ending."""
UNUSABLE: dict[str, str] = {}
"""What this process found wrong with data, by their fingerprint: a site that cannot begin is asked again every round,
and must not read all its cases, while everybody waits, until one of its files has changed."""
Scores = dict[str, Score]
logger = logging.getLogger("omnifm.site.stages")


class Prepare(Transform):
    """Read and prepare one case; CacheDataset caches only what is declared a deterministic Transform."""

    def __init__(self, task: Task, labels: Mapping[int, str]) -> None:
        self.task, self.labels = task, labels

    def __call__(self, data: dict[str, Any]) -> Batch:
        try:
            return self.task.prepare(self.task.read(data, self.labels))
        except RefusedImage as refusal:  # checked when the run began, but its file has changed or its disk has gone
            split, position = data["origin"]
            raise RefusedImage(refusal.reason, f"item {position} of '{split}': {refusal}") from None


class Refusing(Compose):
    """MONAI's Compose, but what is wrong with a case passes as it was raised, not as the cause of MONAI's own error."""

    def __call__(self, input_: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(input_, *args, **kwargs)
        except RuntimeError as error:
            if isinstance(error.__cause__, ValueError):
                raise error.__cause__ from None
            raise


class Untracked(Compose):
    """MONAI's Compose without the bookkeeping of metadata, which costs four times as much as moving a thumbnail."""

    def __call__(self, input_: Any, *args: Any, **kwargs: Any) -> Any:
        was = get_track_meta()
        set_track_meta(False)
        try:
            return super().__call__(input_, *args, **kwargs)
        finally:
            set_track_meta(was)


class Site:
    """One hospital.  `reply` is all that a driver needs.

    Args:
        experiment: the job.
        name: the site's name in the federation.
        config: where its data and state lie; never leaves.

    Raises:
        ValueError: the data or the configuration is not as it must be, in one line.
    """

    def __init__(self, experiment: Experiment, name: str, config: SiteConfig) -> None:
        self.experiment, self.name, self.config = experiment, name, config
        self.method, self.task = load_method(experiment), load_task(experiment)
        self.folder = Path(config.state_dir) / experiment.job
        self.device = device_named(config.device)
        self.datalist, self.num_refused, self.case_facts = self._checked_data()
        self.task.observe(self.datalist.training)
        self.datasets: dict[str, Dataset] = {}
        self.spec: dict[str, Any] | None = None
        self.frozen: str | None = None

    def reply(self, payload: Payload) -> Update:
        """Do what the payload asks and return everything that may leave the site."""
        started = time.monotonic()
        threads = torch.get_num_threads()
        torch.set_num_threads(self.experiment.train.num_threads)  # sums depend on it in the last bit
        try:
            with locked(self.folder, LOCK_WAIT_S):
                update = getattr(self, f"_{payload.stage}")(payload)
        finally:
            torch.set_num_threads(threads)
        if reason := self.method.undeclared(update, self.task.metrics):
            raise ValueError(f"nothing is sent: {reason}")
        return replace(update, seconds=round(time.monotonic() - started, 3))

    # The four stages.
    def _describe(self, payload: Payload) -> Update:
        """Counts and data facts, nothing else."""
        splits = {split: getattr(self.datalist, split) for split in SPLITS}
        modalities: dict[str, int] = {}
        for item in [item for split in splits.values() for item in split]:
            modality = str(item.get("modality") or self.datalist.modality.get("0", "unknown"))
            modalities[modality] = modalities.get(modality, 0) + 1
        counts = {f"num_{split.removesuffix('ing')}": len(items) for split, items in splits.items()}
        facts = {**counts, "num_refused": self.num_refused, "modalities": modalities, "source": self.datalist.source}
        data = self.task.facts(self.case_facts, self.datalist.labels)
        return Update(self.name, "describe", 0, payload.digest(), facts={**facts, "data": data})

    def _seed(self, payload: Payload) -> Update:
        """Answer round 0 with the initial shared weights; nothing is trained."""
        local, partition = self._open(payload)
        extra, facts = self.method.seed(local)
        return Update(self.name, "seed", 0, payload.digest(), partition.hash(), extra=_clean(extra), facts=facts)

    def _train(self, payload: Payload) -> Update:
        """One local round, with the validation scores before and after it."""
        local, partition = self._open(payload)
        before = local.validate()
        self._keep_best("before", payload, local, before)
        self.method.begin(local)
        loss = self.method.train(local)
        extra, facts = self.method.finish(local)
        shared = partition.pick(local.model, "shared")
        self.method.personalise(local)
        _refuse_divergence(local)
        after = local.validate()
        self._keep_best("after", payload, local, after)
        self._save(payload, local)
        update = Update(
            self.name,
            "train",
            payload.round,
            payload.digest(),
            partition.hash(),
            shared=shared,
            extra=_clean(extra),
            facts=facts,
            num_samples=len(self.datalist.training),
            train_loss=loss,
            before=before,
            after=after,
        )
        if reason := partition.refuse(update.shared):
            raise ValueError(f"nothing is sent: the trained shared part {reason}")
        return update

    def _evaluate(self, payload: Payload) -> Update:
        """Touch the test split once: the checkpoints that validation picked, before and after local training."""
        local, partition = self._open(payload)
        self._keep_best("before", payload, local, local.validate())
        self.method.begin(local)
        loss = self.method.train(local)
        self.method.finish(local)
        self.method.personalise(local)
        _refuse_divergence(local)
        self._keep_best("after", payload, local, local.validate())
        before = self._scores(local.model, self._load_best("before", local), "test")
        best = self._load_best("after", local)
        after = self._scores(local.model, best, "test")
        pictures = self._pictures(local.model, best)
        return Update(
            self.name,
            "evaluate",
            payload.round,
            payload.digest(),
            partition.hash(),
            num_samples=len(self.datalist.training),
            train_loss=loss,
            before=before,
            after=after,
            pictures=pictures,
        )

    # The model of this round.
    def _open(self, payload: Payload) -> tuple[LocalRound, Partition]:
        """Build the site's model for this payload: received shared part, own personal part."""
        model, partition = self._model(payload.spec)
        if reason := partition.refuse(payload.shared):
            raise ValueError(f"the received shared part {reason}")
        state = self._load(payload, partition)
        home = under(state, "personal")
        model.load_state_dict({**payload.shared, **home}, strict=False)
        model.to(self.device)
        progress = max(0, payload.round - 1) / self.experiment.train.num_rounds
        for backbone in [module for module in model.modules() if isinstance(module, Backbone)]:  # Ditto has two
            backbone.schedule(progress)
        seed = _seed_all(self.experiment.seed, self.name, payload.stage, payload.round)
        train, on_device = self.experiment.train, self._on_device
        extra = on_device(payload.extra)
        local = LocalRound(
            site=self.name,
            round=payload.round,
            seed=seed,
            num_epochs=train.local_epochs,
            model=model,
            task=self.task,
            partition=partition,
            received=on_device(payload.shared),
            extra=extra,
            memory=under(state, "memory"),
            batches=self._batches(seed),
            side_batches=self._batches(seed + 1),
            views=self._views,
            optimizer=self._optimizer,
            validate=lambda: self._scores(model, extra, "validation"),
        )
        self.method.receive(local)
        return local, partition

    def _model(self, spec: dict[str, Any]) -> tuple[Model, Partition]:
        if self.spec != spec:
            self.task.configure(spec)
            self.spec, self.datasets, self.frozen = spec, {}, None
        torch.manual_seed(self.experiment.seed)  # the server draws the same initial values
        model = self.method.build(self.task)
        return model, self.method.partition(model)

    def _optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        train = self.experiment.train
        kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        return kinds[train.optimizer](parameters, lr=train.lr, weight_decay=train.weight_decay)

    # Personal state, on the site's own disk.
    def _load(self, payload: Payload, partition: Partition) -> Tensors:
        """The state before this round of this run; of an earlier run only for a warm start."""
        history = History(self.folder, "personal")
        found = history.load()
        if found is not None and found[2]["run_id"] == payload.run_id:
            found = history.load(before=payload.round + (payload.stage == "evaluate"))
        elif found is not None and payload.warm_start and found[2]["partition"] == partition.hash():
            # As round 0 of this run: if it is killed in round 1, it starts from here again.
            history.save(0, found[1], found[2] | {"run_id": payload.run_id})
        elif found is not None:
            found = None
            for name in ("personal", "before", "after"):
                History(self.folder, name).clear()
        return {} if found is None else found[1]

    def _save(self, payload: Payload, local: LocalRound) -> None:
        home = local.partition.pick(local.model, "personal") | local.partition.pick(local.model, "buffers")
        tensors = {f"personal/{k}": v for k, v in home.items()} | {
            f"memory/{k}": clean(v) for k, v in local.memory.items()
        }
        record = {"run_id": payload.run_id, "partition": local.partition.hash()}
        History(self.folder, "personal").save(payload.round, tensors, record)

    def _keep_best(self, moment: str, payload: Payload, local: LocalRound, scores: Scores) -> None:
        """Keep what is not frozen of the model if validation likes it better than the best so far, or cannot tell."""
        history = History(self.folder, moment, keep=1)
        found = history.load()
        if found is not None and found[2]["run_id"] == payload.run_id:
            best = {name: Score(**score) for name, score in found[2]["scores"].items()}
            unknown = scores[next(iter(self.task.metrics))].mean is None
            if not unknown and not self.task.better(scores, best):
                return
        owned = (local.partition.pick(local.model, part) for part in ("shared", "personal", "buffers"))
        parts = {f"model/{name}": value for tensors in owned for name, value in tensors.items()}
        parts |= {f"extra/{name}": clean(value) for name, value in local.extra.items()}
        record = {
            "run_id": payload.run_id,
            "round": payload.round,
            "partition": local.partition.hash(),
            "spec": payload.spec,
            "experiment": asdict(self.experiment),
            "scores": {name: asdict(s) for name, s in scores.items()},
            "labels": self.datalist.labels,
            "trained": moment == "after" or payload.round > 1,
            "frozen": self._frozen(local),
            "extra": sorted(local.extra),
        }
        history.save(payload.round, parts, record)

    def _frozen(self, local: LocalRound) -> str:
        """Digest of what is never trained and so not kept: whoever uses the checkpoint must hold the same."""
        if self.frozen is None:
            self.frozen = digest(local.partition.pick(local.model, "frozen"))
        return self.frozen

    def _load_best(self, moment: str, local: LocalRound) -> Tensors:
        """Load the checkpoint that validation picked into the model; return its share of the payload."""
        found = History(self.folder, moment, keep=1).load()
        if found is None:
            raise ValueError(f"the checkpoint {moment!r} of this run must be readable; it is missing or damaged")
        tensors = found[1]
        local.model.load_state_dict(under(tensors, "model"), strict=False)
        return self._on_device(under(tensors, "extra"))

    # Data.
    def _checked_data(self) -> tuple[Datalist, int, list[dict[str, Any]]]:
        """Read every case once, strictly; the outcome is kept until a file changes."""
        datalist = read_datalist(
            Path(self.config.data_root),
            required=self.task.required,
            allowed_roots=tuple(Path(root) for root in self.config.allowed_roots),
            seed=self.experiment.seed,
        )
        datalist = replace(datalist, source=self.config.source)
        asked = [check.SCHEMA, fingerprint(datalist), self.experiment.task, self.config.max_refused_fraction]
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        file = self.folder / "check.state"
        if (kept := _kept(file))["key"] == key:
            refusals = {(refusal["split"], refusal["position"]) for refusal in kept["report"]["refusals"]}
            return without(datalist, refusals), len(refusals), kept["facts"]
        if key in UNUSABLE:
            raise ValueError(UNUSABLE[key])
        name, limit = self.experiment.task["name"], self.config.max_refused_fraction
        found = check.inspect(datalist, self.task, limit, name=name)
        found.save(self.folder)
        if found.problems:
            said = "; ".join(found.problems)
            if not {refusal.reason for refusal in found.refusals} & {"too_slow", "too_large"}:  # which may pass
                UNUSABLE[key] = said
            raise ValueError(said)
        if found.refusals:
            logger.warning("%s: %d cases refused, see check.html in its state folder", self.name, len(found.refusals))
        for warning in found.report["warnings"]:
            logger.warning("%s: %s", self.name, warning)
        write_atomic(file, encode({}, {"key": key, "facts": found.facts, "report": found.report}))
        return found.datalist, len(found.refusals), found.facts

    def _dataset(self, split: str) -> Dataset:
        """Prepared cases of a split, as many cached as the configured memory holds; a split may be empty."""
        if not getattr(self.datalist, split):
            return Dataset([])
        if split not in self.datasets:
            items = [dict(item) for item in getattr(self.datalist, split)]
            prepare = Prepare(self.task, self.datalist.labels)
            first = prepare(items[0])
            share = len(items) / sum(len(getattr(self.datalist, s)) for s in SPLITS)
            budget = self.experiment.data.cache_gib * 2**30 * share
            held = int(budget // max(1, sum(v.nbytes for v in first.values() if hasattr(v, "nbytes"))))
            self.datasets[split] = CacheDataset(
                items, Refusing(prepare), cache_num=held, num_workers=None, progress=False
            )
        return self.datasets[split]

    def _batches(self, seed: int) -> Callable[[], Iterator[Batch]]:
        """Training batches in a new random order per call; the sequence of calls depends on `seed` alone."""
        samples = Dataset(self._dataset("training"), Untracked(self.task.augment().transforms))
        order = torch.Generator().manual_seed(seed)

        def batches() -> Iterator[Batch]:
            epoch = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=order)))
            size = self.experiment.train.batch_size
            for batch in DataLoader(samples, batch_size=size, shuffle=True, num_workers=0, generator=epoch):
                yield self._on_device(batch)

        return batches

    def _views(self) -> Iterator[tuple[Tensor, str, str]]:
        items, dataset, first = self.datalist.training, self._dataset("training"), dict[str, int]()
        for position, (item, owner) in enumerate(zip(items, owners(items, self.datalist.root), strict=True)):
            modality = str(item.get("modality") or self.datalist.modality.get("0", ""))
            view = self.task.view(dataset[position])[None].to(self.device)
            # Where no patient is named an image stands for one, by the first place it has in the list.
            place = first.setdefault(owner, position)
            yield view, owner if "patient" in items[place] else f"image {place}", modality

    def _scores(self, model: Model, extra: Tensors, split: str) -> Scores:
        model.eval()
        with torch.no_grad():

            def forward(batch: Batch) -> Tensor:
                return model(self._on_device(batch), extra).prediction

            return self.task.summarise(self.task.scores(forward, iter(self._dataset(split))))

    def _pictures(self, model: Model, extra: Tensors) -> Tensors:
        """Draw a few test cases for the site's own eyes; only synthetic ones may be returned."""
        drawn: Tensors = {}
        model.eval()
        for number, case in zip(range(NUM_PICTURES), self._dataset("test"), strict=False):
            with torch.no_grad():
                pixels = self.task.picture(lambda b: model(self._on_device(b), extra).prediction, case)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, format="PNG")
            write_atomic(self.folder / f"prediction-{number + 1}.png", buffer.getvalue())
            drawn[f"test case {number + 1}"] = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        return drawn if self.datalist.source == "demo" else {}

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {k: v.as_subclass(Tensor).to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def _kept(file: Path) -> dict[str, Any]:
    """The outcome of the last check of the data; of one that is missing or damaged, an outcome of nothing."""
    try:
        return decode(file.read_bytes())[1]
    except (OSError, StateError):
        return {"key": None}


def _clean(tensors: Tensors) -> Tensors:
    return {name: clean(value) for name, value in tensors.items()}


def _seed_all(*parts: Any) -> int:
    """Seed every generator from the run's seed, the site, the stage and the round; return the number."""
    seed = int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "little") >> 1
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def _refuse_divergence(local: LocalRound) -> None:
    """Before anything is kept: the next round starts from what the site kept last, which must be usable.

    Raises:
        ValueError: a trained tensor, or one that the method remembers, is not finite.
    """
    state = local.model.state_dict()
    parts = ("shared", "personal", "buffers")
    kept = {part: {name: state[name] for name in getattr(local.partition, part)} for part in parts}
    for part, tensors in (kept | {"remembered": local.memory}).items():
        for name, value in tensors.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ValueError(
                    f"nothing is sent: the trained {part} part {name!r} must be finite; got NaN or infinity"
                )


def device_named(name: str) -> torch.device:
    """auto, cpu or cuda:N as a device; raises ValueError where this machine has none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise ValueError(f"device must be auto, cpu or cuda:N; got {name!r}")
    device, num_gpus = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise ValueError(f"device must exist; got {name!r} on a machine with {num_gpus} usable GPUs")
    return device
