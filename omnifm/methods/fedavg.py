"""FedAvg: one model for all sites, averaged every round (McMahan et al. 2017, arXiv 1602.05629, algorithm 1)."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from omnifm.config import STRICT
from omnifm.method import LocalRound, Method, Model, Partition
from omnifm.methods._layers import weights
from omnifm.methods._soup import mix_with_received
from omnifm.model import Capacity
from omnifm.task import Task


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """The method section of a job that uses FedAvg."""

    share_buffers: bool = True
    """Whether normalisation statistics are averaged too.  False keeps each site's own (SiloBN)."""


class FedAvg(Method):
    """The new model is the mean of the sites' models with weights n_k / N: site k has n_k of N training cases."""

    Settings: ClassVar[type[Any]] = Settings  # a type, so that a subclass may have another
    travels = "Everything that is trained, the head too, and normalisation statistics."
    when = "Choose it first: it is the usual baseline, and often the best where all sites do the same thing."

    def build(self, task: Task) -> Model:
        """Build the plain or the matched model, and note the names of its trained weights.

        Subclasses treat trained weights and normalisation statistics differently.
        """
        model = self.settings.around(task.backbone())
        self.weights = weights(model)
        return model

    def partition(self, model: Model) -> Partition:
        """Share everything, also the head."""
        return Partition.of(model, share_buffers=self.settings.share_buffers)

    def personalise(self, local: LocalRound) -> None:
        """With `soup`, keep the mixture of received and trained weights with the best validation score."""
        if isinstance(self.settings, Capacity) and self.settings.soup:
            mix_with_received(local)
