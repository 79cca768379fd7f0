"""What a site keeps of one job on its own disk: its personal state, and the checkpoints that validation chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, TypedDict

from omnifm.config import Experiment
from omnifm.method import LocalRound, Partition, Tensors
from omnifm.records import Json
from omnifm.state import History
from omnifm.statistics import Checkpoint, Moment
from omnifm.task import Task
from omnifm.update import Payload, Score, clean, digest, under


class Best(NamedTuple):
    """What `PersonalState.load_best` found beside the model.

    Attributes:
        extra: the method's own tensors that were received with it, on the CPU.
        chosen: where the checkpoint comes from, and why it was chosen.
    """

    extra: Tensors
    chosen: Checkpoint


class PersonalRecord(TypedDict):
    """The record of `personal.<round>.state`."""

    run_id: str
    partition: str
    """Hash of the partition of the model."""


class CheckpointRecord(TypedDict):
    """The record of `before.<round>.state` and `after.<round>.state`."""

    run_id: str
    round: int
    last: bool
    """Whether it comes from the additional training after the last round."""
    partition: str
    """Hash of the partition of the model."""
    spec: Json
    """What the federation agreed on."""
    experiment: Json
    """The job."""
    scores: dict[str, Json]
    """On the validation split, by metric: the fields of `Score`."""
    validation: str
    """Fingerprint of the validation split; a score on another one cannot be compared."""
    labels: dict[str, str]
    """Meaning by label value; empty for tasks without labels."""
    trained: bool
    """Whether any local training went into the model."""
    frozen: str
    """Digest of the frozen part, which is not in the file."""
    extra: list[str]
    """Names of the method's own tensors in the file."""


class PersonalState:
    """The files `personal.<round>.state`, `before.<round>.state` and `after.<round>.state` of a job.

    Args:
        folder: the job's folder in the site's state folder.
        labels: label value -> meaning; a checkpoint names them for whoever uses it later.
        validation: fingerprint of the validation split.
    """

    def __init__(
        self, folder: Path, experiment: Experiment, task: Task, labels: Mapping[int, str], validation: str
    ) -> None:
        self.folder = folder
        self.experiment = experiment
        self.task = task
        self.labels = labels
        self.validation = validation
        self._frozen_digest: str | None = None

    def load(self, payload: Payload, partition: Partition) -> Tensors:
        """The personal state before this round of this run, as `personal/...` and `memory/...`; empty if there is none.

        The state of an earlier run is used only for a warm start; otherwise all files of that run are removed.
        """
        history = History(self.folder, "personal")
        found = history.load()
        if found is None:
            return {}
        if found.record["run_id"] == payload.run_id:
            found = history.load(before=payload.round + (payload.stage == "evaluate"))
            return {} if found is None else found.tensors
        if payload.warm_start and found.record["partition"] == partition.hash():
            # As round 0 of this run: a site that is killed in round 1 starts from here again.
            history.save(0, found.tensors, found.record | {"run_id": payload.run_id})
            return found.tensors
        for name in ("personal", "before", "after"):
            History(self.folder, name).clear()
        return {}

    def save(self, payload: Payload, local: LocalRound) -> None:
        """Keep the personal part, the buffers and the method's memory as the state after this round."""
        parts = local.partition.pick(local.model, "personal") | local.partition.pick(local.model, "buffers")
        tensors = {f"personal/{name}": value for name, value in parts.items()}
        tensors |= {f"memory/{name}": clean(value) for name, value in local.memory.items()}
        record: PersonalRecord = {"run_id": payload.run_id, "partition": local.partition.hash()}
        History(self.folder, "personal").save(payload.round, tensors, record)

    def keep_best(self, moment: Moment, payload: Payload, local: LocalRound, scores: Mapping[str, Score]) -> None:
        """Keep the model as the checkpoint of this moment if it scores better on validation than the kept one.

        It is also kept if there is no checkpoint of this run yet, if its score is undefined, and if the validation
        split has changed since the kept one was scored.
        """
        history = History(self.folder, moment, keep=1)
        found = history.load()
        is_of_run = found is not None and found.record["run_id"] == payload.run_id
        if found is not None and is_of_run and found.record.get("validation", self.validation) == self.validation:
            best = {name: Score(**score) for name, score in found.record["scores"].items()}
            is_defined = scores[next(iter(self.task.metrics))].mean is not None
            if is_defined and not self.task.better(scores, best):
                return
        kept = (local.partition.pick(local.model, part) for part in ("shared", "personal", "buffers"))
        tensors = {f"model/{name}": value for part in kept for name, value in part.items()}
        tensors |= {f"extra/{name}": clean(value) for name, value in local.extra.items()}
        record: CheckpointRecord = {
            "run_id": payload.run_id,
            "round": payload.round,
            "last": payload.stage == "evaluate",
            "partition": local.partition.hash(),
            "spec": payload.spec,
            "experiment": asdict(self.experiment),
            "scores": {name: asdict(score) for name, score in scores.items()},
            "validation": self.validation,
            "labels": {str(value): meaning for value, meaning in self.labels.items()},
            "trained": moment == "after" or payload.round > 1,
            "frozen": self.frozen_digest(local),
            "extra": sorted(local.extra),
        }
        history.save(payload.round, tensors, record)

    def load_best(self, moment: Moment, local: LocalRound) -> Best:
        """Load the checkpoint of this moment into the model.

        Raises:
            ValueError: there is no checkpoint, or its file is damaged.
        """
        found = History(self.folder, moment, keep=1).load()
        if found is None:
            raise ValueError(f"the checkpoint {moment!r} of this run must be readable; it is missing or damaged")
        local.model.load_state_dict(under(found.tensors, "model"), strict=False)
        metric, record = next(iter(self.task.metrics)), found.record
        chosen: Checkpoint = {
            "round": record["round"],
            "last": record.get("last", False),  # an older version did not write it
            "metric": metric,
            "score": record["scores"].get(metric, {}).get("mean"),
        }
        return Best(under(found.tensors, "extra"), chosen)

    def frozen_digest(self, local: LocalRound) -> str:
        """SHA-256 of the frozen part, which is not kept: whoever uses a checkpoint must build the same one."""
        if self._frozen_digest is None:
            self._frozen_digest = digest(local.partition.pick(local.model, "frozen"))
        return self._frozen_digest

    def forget_frozen_digest(self) -> None:
        """Compute the digest again at its next use, because the task builds another model from now on."""
        self._frozen_digest = None
