"""FedAvg: everything is shared and averaged (McMahan et al. 2017, arXiv 1602.05629)."""

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
    """FedAvg's section of a job."""

    share_buffers: bool = True
    """Whether normalisation statistics are averaged too; false keeps each site's own."""


class FedAvg(Method):
    """One global model; weights n_k / N (eq. 2)."""

    Settings: ClassVar[type[Any]] = Settings  # a type, so that a subclass may have another

    def build(self, task: Task) -> Model:
        """The plain or the matched model; notes the names of its trained weights, which others treat apart from
        statistics."""
        model = self.settings.around(task.backbone())
        self.weights = weights(model)
        return model

    def partition(self, model: Model) -> Partition:
        """Everything, the head included."""
        return Partition.of(model, share_buffers=self.settings.share_buffers)

    def personalise(self, local: LocalRound) -> None:
        """With `soup`, keep the mixture of received and trained weights that scores best on validation."""
        if isinstance(self.settings, Capacity) and self.settings.soup:
            mix_with_received(local)
