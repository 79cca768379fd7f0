"""The contract of a task: how cases become a loss, predictions and metrics, and which parameters are its head.

A task is one file in `omnifm/tasks/`.  Letters: b batch, c channels, l tokens, q backbone width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from monai.transforms import Compose
from torch import Tensor, nn

from omnifm.data.prediction import Prediction
from omnifm.metrics.defined import mean_of_defined
from omnifm.metrics.intervals import mean_interval
from omnifm.records import Json
from omnifm.statistics import Statistics
from omnifm.update import Score

Batch = Json
"""One case or one batch of cases: tensors, texts and numbers by the task's own names."""
Forward = Callable[[Batch], Tensor]


class Backbone(nn.Module, ABC):
    """A network in two halves: `encode` turns images into tokens, `decode` turns tokens into a prediction."""

    width: int
    """Token width q."""
    reads: Literal["middle", "suffix", "all"]
    """Which tokens the prediction is read from: the image's (dense maps), the suffix (one answer), or all of them."""

    @abstractmethod
    def encode(self, batch: Batch) -> tuple[Tensor, Any]:
        """Return (tokens b l q, whatever else `decode` needs)."""

    @abstractmethod
    def decode(self, tokens: Tensor, features: Any, batch: Batch) -> Tensor:
        """Return the prediction.  With the tokens of `encode` unchanged, it is that of the plain network."""

    @abstractmethod
    def head(self) -> Sequence[nn.Module]:
        """Return the modules of the task's head, which stay at the site."""

    def schedule(self, progress: float) -> None:
        """Freeze what is not trained at this point of the run; nothing by default.

        The partition was fixed before.  A tensor that is frozen for some rounds still travels, unchanged to the last
        bit, and no method changes it meanwhile.

        Args:
            progress: share of the rounds that are over, in [0, 1).
        """


class Planned(NamedTuple):
    """One value of the plan, in words."""

    what: str
    value: str
    why: str


class Task(ABC):
    """One kind of work, such as segmentation.

    `Settings` and `Model` are strict dataclasses for the task and model sections of a job.
    """

    Settings: ClassVar[type]
    Model: ClassVar[type]
    required: ClassVar[tuple[str, ...]]
    """Keys that every item of dataset.json must have."""
    given: ClassVar[tuple[str, ...]]
    """The keys among them that a new case also has: all except the truth."""
    metrics: ClassVar[Mapping[str, bool]]
    """Metric name -> whether higher is better; the first one picks checkpoints on validation."""
    panels: ClassVar[tuple[str, ...]] = ()
    """What stands side by side in `picture`, from left to right; empty if it is one picture, or says it itself."""

    def __init__(self, settings: Any, model: Any) -> None:
        self.settings, self.model = settings, model
        self.spec: Json = {}

    # Before round 0: what the data are.
    @abstractmethod
    def read(self, item: Json, labels: Mapping[int, str]) -> Batch:
        """Read and check one case.

        Raises:
            RefusedImage: the case cannot be used; no other error may be raised.
        """

    @abstractmethod
    def case_facts(self, case: Batch) -> Json:
        """Return what one case says about the data, such as dimensions, channels and spacing."""

    @abstractmethod
    def facts(self, cases: Sequence[Json], labels: Mapping[int, str]) -> Json:
        """Return everything that a site tells the server about its data.

        Raises:
            ValueError: the site's cases contradict each other.
        """

    @abstractmethod
    def agree(self, facts: Mapping[str, Json]) -> Json:
        """Fix the common specification from the facts of all sites.

        Raises:
            ValueError: sites contradict each other; the message says which site differs in what.
        """

    def configure(self, spec: Json) -> None:
        """Take the agreed specification.  All methods below may rely on `self.spec`."""
        self.spec = dict(spec)

    def planned(self) -> list[Planned]:
        """Return what the agreed specification holds, in words, and why; for `omnifm plan` and results/plan.json."""
        return []

    def observe(self, training: Sequence[Json]) -> None:
        """See a site's own training items once, for trivial rivals that are scored beside the model.

        Nothing of it may leave the site.
        """

    # The network and its loss.
    @abstractmethod
    def backbone(self) -> Backbone:
        """Build the network for the agreed specification from the current random state."""

    @abstractmethod
    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, a scalar."""

    # Cases as the network sees them.
    @abstractmethod
    def prepare(self, case: Batch) -> Batch:
        """Preprocess one case without randomness; the result is cached.  Its `image` has shape (c, *space)."""

    @abstractmethod
    def augment(self) -> Compose:
        """Return MONAI's random transforms from a prepared case to a training sample; they must not need metadata."""

    @abstractmethod
    def view(self, case: Batch) -> Tensor:
        """Return the image (c, *space) from which a prepared case's spectral token is computed, without randomness."""

    # Evaluation.
    @abstractmethod
    def score(self, forward: Forward, case: Batch) -> dict[str, float | None]:
        """Return the metrics of one prepared case; None where a metric is undefined."""

    def scores(self, forward: Forward, cases: Iterable[Batch]) -> Iterable[Mapping[str, float | None]]:
        """Return the `score` of every case.  A task with small cases of one size may predict several at once.

        A row may hold more than the metrics, for `details`.  If the rows are in another order than the cases, each says
        its case's `position`, from 0.
        """
        return (self.score(forward, case) for case in cases)

    def summarise(self, scores: Iterable[Mapping[str, float | None]]) -> dict[str, Score]:
        """Average each metric over the cases that define it, and count these cases and the others."""
        rows = list(scores)
        return {name: _score([row[name] for row in rows]) for name in self.metrics}

    def intervals(self, scores: Sequence[Mapping[str, float | None]]) -> dict[str, list[float]]:
        """Return the 95 % bootstrap interval over cases of each metric that has one, as [low, high]."""
        found = {name: mean_interval([row[name] for row in scores]) for name in self.metrics}
        return {name: interval for name, interval in found.items() if interval is not None}

    def details(self, scores: Sequence[Mapping[str, float | None]]) -> Statistics:
        """Return what the report of the test cases says beside the metrics; what is too small stays at the site."""
        return {}

    def case_score(self, row: Mapping[str, float | None]) -> tuple[str, float | None]:
        """Return name and value of the score by which a report orders cases: the first metric."""
        name = next(iter(self.metrics))
        return name, row[name]

    @abstractmethod
    def picture(self, forward: Forward, case: Batch) -> np.ndarray:
        """Draw a case beside its prediction, uint8 (rows, columns, 3), for the site's own report."""

    # Use.
    @abstractmethod
    def infer(self, forward: Forward, item: Json) -> Prediction:
        """Predict a new case on the grid of its image.

        Args:
            item: only the keys in `given` are used.

        Raises:
            RefusedImage: the image cannot be read correctly, or is of another kind than the model was made for.
        """

    def better(self, new: Mapping[str, Score], old: Mapping[str, Score]) -> bool:
        """Return whether `new` is strictly better than `old` in the first metric.

        An undefined score is worse than any defined one, and not better than another undefined one.
        """
        name, higher = next(iter(self.metrics.items()))
        values = [scores[name].mean if name in scores else None for scores in (new, old)]
        sign = 1.0 if higher else -1.0
        new_value, old_value = (-math.inf if value is None else sign * value for value in values)
        return new_value > old_value


def _score(values: Sequence[float | None]) -> Score:
    undefined = sum(value is None for value in values)
    return Score(mean=mean_of_defined(values), support=len(values) - undefined, undefined=undefined)
