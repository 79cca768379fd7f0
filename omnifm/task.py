"""The contract of a task: how cases become a loss, predictions and metrics; which parameters are its head.

A task is one file in `omnifm/tasks/`.  Letters: b batch, c channels, l tokens, q backbone width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from monai.transforms import Compose
from torch import Tensor, nn

from omnifm.data.prediction import Prediction
from omnifm.update import Score

Batch = dict[str, Any]
Forward = Callable[[Batch], Tensor]


class Backbone(nn.Module, ABC):
    """A network cut in two: `encode` gives tokens, `decode` takes tokens back and predicts."""

    width: int
    """Token width q."""
    reads: Literal["middle", "suffix", "all"]
    """What the prediction is read from: the image tokens (dense maps), the suffix (one answer), or every token."""

    @abstractmethod
    def encode(self, batch: Batch) -> tuple[Tensor, Any]:
        """Return (tokens b l q, whatever `decode` needs beside them)."""

    @abstractmethod
    def decode(self, tokens: Tensor, features: Any, batch: Batch) -> Tensor:
        """Return the prediction; with the tokens of `encode` unchanged this is the plain network."""

    @abstractmethod
    def head(self) -> Sequence[nn.Module]:
        """Modules that stay at the site: the task's head."""

    def schedule(self, progress: float) -> None:
        """Freeze what is not trained when this share of the rounds, in [0, 1), is over; nothing by default.

        The partition is fixed before: what is frozen for a while travels unchanged, to the last bit, and no method
        moves it meanwhile.
        """


class Task(ABC):
    """One kind of work.  `Settings` and `Model` are strict dataclasses: the task and model sections of a job."""

    Settings: ClassVar[type]
    Model: ClassVar[type]
    required: ClassVar[tuple[str, ...]]
    """Keys that every item of dataset.json has."""
    given: ClassVar[tuple[str, ...]]
    """Those of them that a new case has too: all but its truth."""
    metrics: ClassVar[Mapping[str, bool]]
    """Metric name -> whether higher is better; the first one picks checkpoints on validation."""

    def __init__(self, settings: Any, model: Any) -> None:
        self.settings, self.model, self.spec = settings, model, dict[str, Any]()

    # Before round 0: what the data are.
    @abstractmethod
    def read(self, item: Mapping[str, Any], labels: Mapping[int, str]) -> Batch:
        """Read and check one case; raises RefusedImage with a reason, nothing else."""

    @abstractmethod
    def case_facts(self, case: Batch) -> dict[str, Any]:
        """What one case says about the data: dimensions, channels, spacing."""

    @abstractmethod
    def facts(self, cases: Sequence[Mapping[str, Any]], labels: Mapping[int, str]) -> dict[str, Any]:
        """What a site tells the server about its data, and nothing else; raises ValueError if its cases disagree."""

    @abstractmethod
    def agree(self, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Fix the common specification; raises ValueError naming who differs in what."""

    def configure(self, spec: Mapping[str, Any]) -> None:
        """Take the agreed specification; everything below may rely on `self.spec`."""
        self.spec = dict(spec)

    def observe(self, training: Sequence[Mapping[str, Any]]) -> None:
        """See a site's own training items, once, for what is scored beside the model; none of it may leave."""

    # The network and its loss.
    @abstractmethod
    def backbone(self) -> Backbone:
        """Build the network for the agreed specification from the current random state."""

    @abstractmethod
    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean loss of a batch, a scalar."""

    # Cases as the network sees them.
    @abstractmethod
    def prepare(self, case: Batch) -> Batch:
        """Deterministic preprocessing of one case; the result is cached.  `image` is (c, *space)."""

    @abstractmethod
    def augment(self) -> Compose:
        """Random transforms (MONAI's) from a prepared case to a training sample; they need no metadata."""

    @abstractmethod
    def view(self, case: Batch) -> Tensor:
        """The fixed view (c, *space) of a prepared case from which its spectral token is computed."""

    # Evaluation.
    @abstractmethod
    def score(self, forward: Forward, case: Batch) -> dict[str, float | None]:
        """Metrics of one prepared case; None where a metric is undefined."""

    def scores(self, forward: Forward, cases: Iterable[Batch]) -> Iterable[Mapping[str, float | None]]:
        """`score` of every case; a task whose cases are small and of one size may predict several at once."""
        return (self.score(forward, case) for case in cases)

    def summarise(self, scores: Iterable[Mapping[str, float | None]]) -> dict[str, Score]:
        """Mean over the cases where a metric is defined, with the number of those and of the others."""
        rows = list(scores)
        return {name: _mean([row[name] for row in rows]) for name in self.metrics}

    @abstractmethod
    def picture(self, forward: Forward, case: Batch) -> np.ndarray:
        """A case beside its prediction, uint8 (rows, columns, 3); for the site's own report."""

    # Use.
    @abstractmethod
    def infer(self, forward: Forward, item: Mapping[str, Any]) -> Prediction:
        """What the model says of a new case, on the grid of its image; of the item only `given` is looked at.

        Raises RefusedImage where the image cannot be read correctly, or the model was made for others.
        """

    def better(self, new: Mapping[str, Score], old: Mapping[str, Score]) -> bool:
        """Whether `new` beats `old` strictly in the first metric; an undefined score beats nothing and loses to all."""
        name, higher = next(iter(self.metrics.items()))
        values = [scores[name].mean if name in scores else None for scores in (new, old)]
        sign = 1.0 if higher else -1.0
        new_value, old_value = (-math.inf if value is None else sign * value for value in values)
        return new_value > old_value


def _mean(values: Sequence[float | None]) -> Score:
    defined = [value for value in values if value is not None]
    mean = float(np.mean(defined)) if defined else None
    return Score(mean=mean, support=len(defined), undefined=len(values) - len(defined))
