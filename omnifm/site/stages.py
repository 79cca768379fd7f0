"""One site: the four stages of a run (describe, seed, train, evaluate), for every task and method.

Both drivers, the simulation in one process and FLARE's executor, only call `Site.reply`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from omnifm.config import Experiment, SiteConfig
from omnifm.data.datalist import Datalist
from omnifm.data.items import Item
from omnifm.method import LocalRound, Model, Partition, Tensors
from omnifm.plugins import load_method, load_task
from omnifm.records import DATA_CHANGED, Facts, Json, ListFacts
from omnifm.report.data_changes import sentence
from omnifm.report.site_record import site_record
from omnifm.site.device import device_named, to_device
from omnifm.site.loader import CheckedCases, Loader, check_data
from omnifm.site.own_page import write_site_page
from omnifm.site.patients import Changes, Patients, fingerprint, list_facts
from omnifm.site.personal import PersonalState
from omnifm.site.pictures import as_tensors, draw_cases
from omnifm.site.training import Course, autocast_for, make_optimizer, refuse_divergence, scaler_for, seed_everything
from omnifm.state import locked
from omnifm.statistics import Statistics, for_server
from omnifm.task import Backbone, Batch, Forward
from omnifm.update import Payload, Score, Update, clean, under

LOCK_WAIT_S = 60.0
"""Seconds that a site waits while an earlier process of the same job, which is just ending, still uses its state."""
OTHER_DATA = (
    "none of the images that this run has used is in the site's list any more, so that it is another data set: give "
    "the run its own data again, or start a new run (another seed or job name, or an empty state folder)"
)
"""Why a site takes no part in a run that began on other data."""
Scores = dict[str, Score]
logger = logging.getLogger("omnifm.site")


class Site:
    """One hospital.  A driver only needs `reply`.

    Args:
        experiment: the job.
        name: the site's name in the federation.
        config: where its data and state are; this never leaves the site.
        on_trained: is told the seconds that each training of the model took.

    Attributes:
        loader: its cases.
        personal: its state on disk.
        num_refused: number of cases that cannot be used.
        case_facts: what the task notes about each usable case.
        spec: what the federation agreed on; None until a payload says it.

    Raises:
        ValueError: the data or the configuration break a rule; one line says which.
    """

    def __init__(
        self,
        experiment: Experiment,
        name: str,
        config: SiteConfig,
        on_trained: Callable[[float], None] | None = None,
    ) -> None:
        self.experiment = experiment
        self.name = name
        self.config = config
        self.on_trained = on_trained
        self.method = load_method(experiment)
        self.task = load_task(experiment)
        self.folder = Path(config.state_dir) / experiment.job
        self.device = device_named(config.device)
        self.spec: Json | None = None
        self.run_id = ""
        self.list_facts: ListFacts | None = None
        self._use(check_data(experiment, config, self.task, name))

    def _use(self, checked: CheckedCases) -> None:
        """Take these cases from now on."""
        self.checked, self.num_refused, self.case_facts = checked, checked.num_refused, checked.facts
        self.task.observe(checked.datalist.training)
        batch_size, cache_gib = self.experiment.train.batch_size, self.experiment.data.cache_gib
        self.loader = Loader(checked.datalist, self.task, self.device, batch_size=batch_size, cache_gib=cache_gib)
        validation = fingerprint(replace(checked.datalist, training=(), test=()), checked.contents)
        self.personal = PersonalState(self.folder, self.experiment, self.task, checked.datalist.labels, validation)

    @property
    def datalist(self) -> Datalist:
        """The cases that it uses."""
        return self.loader.datalist

    def reply(self, payload: Payload) -> Update:
        """Do what the payload asks and return everything that may leave the site.

        Raises:
            ValueError: the payload does not fit this site, or the update holds what the method does not declare.
        """
        started = time.monotonic()
        threads = torch.get_num_threads()
        torch.set_num_threads(self.experiment.train.num_threads)  # the last bit of a sum depends on it
        try:
            with locked(self.folder, LOCK_WAIT_S):
                self._join(payload)
                update = self._stage(payload)
        finally:
            torch.set_num_threads(threads)
        if reason := self.method.undeclared(update, self.task.metrics):
            raise ValueError(f"nothing is sent: {reason}")
        return replace(update, seconds=round(time.monotonic() - started, 3))

    def _join(self, payload: Payload) -> None:
        """Write down the split of every patient before a run uses it; compare the list if the run has used one before.

        Raises:
            ValueError: the run has used other data, or it must hear first how the data have changed.
        """
        if payload.run_id == self.run_id:
            return
        patients = Patients(self.folder, self.experiment.seed)
        is_same_run = patients.run_id == payload.run_id
        if not is_same_run and not payload.warm_start and patients.fingerprint:
            checked = check_data(self.experiment, self.config, self.task, self.name, is_same_run=False)
            if checked.datalist != self.checked.datalist:
                self._use(checked)
        listed, contents = self.checked.listed, self.checked.contents
        if is_same_run and patients.are_others(listed, contents):
            raise ValueError(OTHER_DATA)
        changes = patients.changes(listed, contents) if is_same_run or payload.warm_start else Changes()
        is_changed = is_same_run and patients.fingerprint != fingerprint(listed, contents)
        if is_changed and payload.stage != "describe":
            raise ValueError(DATA_CHANGED)
        if is_changed or changes.moved:
            logger.warning("%s", sentence(f"{self.name}: the data have changed since this run used them", changes))
        patients.remember(payload.run_id, listed, contents)
        self.run_id, self.list_facts = payload.run_id, list_facts(patients, changes, is_known=is_same_run)

    def _stage(self, payload: Payload) -> Update:
        match payload.stage:
            case "describe":
                return self._describe(payload)
            case "seed":
                return self._seed(payload)
            case "train":
                return self._train(payload)
            case "evaluate":
                return self._evaluate(payload)

    # The four stages.
    def _describe(self, payload: Payload) -> Update:
        """Send the numbers of cases and the facts about the data, nothing else."""
        return Update(self.name, "describe", 0, payload.digest(), facts=dict(self._facts()))

    def _facts(self) -> Facts:
        splits = self.datalist.splits()
        modalities: dict[str, int] = {}
        for item in [item for items in splits.values() for item in items]:
            modality = str(item.get("modality") or self.datalist.modality.get("0", "unknown"))
            modalities[modality] = modalities.get(modality, 0) + 1
        facts: Facts = {
            "num_train": len(splits["training"]),
            "num_validation": len(splits["validation"]),
            "num_test": len(splits["test"]),
            "num_refused": self.num_refused,
            "modalities": modalities,
            "source": self.datalist.source,
            "split_by": _split_by(splits),
            "data": self.task.facts(self.case_facts, self.datalist.labels),
        }
        return facts if self.list_facts is None else {**facts, "list": self.list_facts}

    def _seed(self, payload: Payload) -> Update:
        """Answer round 0 with the initial shared weights; nothing is trained."""
        local = self.open_round(payload)
        extra, facts = self.method.seed(local)
        return Update(
            self.name,
            "seed",
            0,
            payload.digest(),
            local.partition.hash(),
            extra={name: clean(value) for name, value in extra.items()},
            facts=facts,
        )

    def _train(self, payload: Payload) -> Update:
        """Train one local round; validate before and after it."""
        local = self.open_round(payload)
        before = local.validate()
        self.personal.keep_best("before", payload, local, before)
        self.method.begin(local)
        loss = self._train_model(local)
        extra, facts = self.method.finish(local)
        shared = local.partition.pick(local.model, "shared")
        self.method.personalise(local)
        refuse_divergence(local)
        after = local.validate()
        self.personal.keep_best("after", payload, local, after)
        self.personal.save(payload, local)
        if reason := local.partition.refuse(shared):
            raise ValueError(f"nothing is sent: the trained shared part {reason}")
        return Update(
            self.name,
            "train",
            payload.round,
            payload.digest(),
            local.partition.hash(),
            shared=shared,
            extra={name: clean(value) for name, value in extra.items()},
            facts=facts,
            num_samples=len(self.datalist.training),
            train_loss=loss,
            before=before,
            after=after,
        )

    def _evaluate(self, payload: Payload) -> Update:
        """Train once more, then score on the test split the two checkpoints that validation chose."""
        local = self.open_round(payload)
        self.personal.keep_best("before", payload, local, local.validate())
        self.method.begin(local)
        loss = self._train_model(local)
        self.method.finish(local)
        self.method.personalise(local)
        refuse_divergence(local)
        self.personal.keep_best("after", payload, local, local.validate())
        received = self.personal.load_best("before", local)
        rows_before = self._rows(local.model, self._on_device(received.extra), "test")
        trained = self.personal.load_best("after", local)
        extra = self._on_device(trained.extra)
        rows = self._rows(local.model, extra, "test")
        whole: Statistics = {
            "checkpoints": {"before": received.chosen, "after": trained.chosen},
            "intervals": {"before": self.task.intervals(rows_before), "after": self.task.intervals(rows)},
            **self.task.details(rows),
        }
        drawn = draw_cases(self.task, self._forward(local.model, extra), self.loader.cases("test"), rows, self.folder)
        update = Update(
            self.name,
            "evaluate",
            payload.round,
            payload.digest(),
            local.partition.hash(),
            num_samples=len(self.datalist.training),
            train_loss=loss,
            before=self.task.summarise(rows_before),
            after=self.task.summarise(rows),
            pictures=as_tensors(drawn) if self.datalist.source == "demo" else {},
            statistics=dict(for_server(whole)),
        )
        own = site_record(self._facts(), replace(update, statistics=dict(whole)))
        write_site_page(self.name, self.experiment, own, drawn, self.folder)
        return update

    # What the stages, and the benchmarks, are made of.
    def open_round(self, payload: Payload) -> LocalRound:
        """Build the site's model for this payload: the received shared part and the site's own personal part.

        Raises:
            ValueError: the received shared part is not exactly the model's.
        """
        model, partition = self.build_model(payload.spec)
        if reason := partition.refuse(payload.shared):
            raise ValueError(f"the received shared part {reason}")
        state = self.personal.load(payload, partition)
        model.load_state_dict({**payload.shared, **under(state, "personal")}, strict=False)
        model.to(self.device)
        progress = max(0, payload.round - 1) / self.experiment.train.num_rounds
        for backbone in [module for module in model.modules() if isinstance(module, Backbone)]:  # Ditto has two
            backbone.schedule(progress)
        seed = seed_everything(self.experiment.seed, self.name, payload.stage, payload.round)
        extra = self._on_device(payload.extra)
        train = self.experiment.train
        course = Course.of(train, len(self.datalist.training), payload.round, alone=payload.stage == "evaluate")
        local = LocalRound(
            site=self.name,
            round=payload.round,
            seed=seed,
            num_epochs=self.experiment.train.local_epochs,
            model=model,
            task=self.task,
            partition=partition,
            received=self._on_device(payload.shared),
            extra=extra,
            memory=under(state, "memory"),
            batches=self.loader.batches(seed),
            side_batches=self.loader.batches(seed + 1),
            views=self.loader.views,
            optimizer=partial(make_optimizer, train, course),
            validate=lambda: self.score(model, extra, "validation"),
            accumulate=train.accumulate,
            autocast=autocast_for(train, self.device),
            scaler=scaler_for(train, self.device),
        )
        self.method.receive(local)
        return local

    def build_model(self, spec: Json) -> tuple[Model, Partition]:
        """Build the initial model for the agreed specification; the server and every site get the same values."""
        if self.spec != spec:
            self.task.configure(spec)
            self.spec = spec
            self.loader.forget_prepared()
            self.personal.forget_frozen_digest()
        torch.manual_seed(self.experiment.seed)
        model = self.method.build(self.task)
        return model, self.method.partition(model)

    def score(self, model: Model, extra: Tensors, split: str) -> Scores:
        """The task's metrics over the cases of a split; `extra` holds the method's own tensors on the device."""
        return self.task.summarise(self._rows(model, extra, split))

    def _rows(self, model: Model, extra: Tensors, split: str) -> list[Mapping[str, float | None]]:
        """The scores of each case of a split."""
        model.eval()
        with torch.no_grad():
            return list(self.task.scores(self._forward(model, extra), iter(self.loader.cases(split))))

    def _train_model(self, local: LocalRound) -> float:
        started = time.monotonic()
        loss = self.method.train(local)
        if self.on_trained is not None:
            self.on_trained(time.monotonic() - started)
        return loss

    def _forward(self, model: Model, extra: Tensors) -> Forward:
        def forward(batch: Batch) -> Tensor:
            return model(self._on_device(batch), extra).prediction

        return forward

    def _on_device(self, batch: Batch) -> Batch:
        return to_device(batch, self.device)


def _split_by(splits: Mapping[str, tuple[Item, ...]]) -> str:
    """What keeps the splits apart: `patient` if every item names its patient, else `image`."""
    known = all("patient" in item for items in splits.values() for item in items)
    return "patient" if known else "image"
