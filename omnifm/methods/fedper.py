"""FedPer: the backbone is shared, the head stays home (Arivazhagan et al. 2019, arXiv 1912.00818)."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from omnifm.config import STRICT
from omnifm.method import Method, Model, Partition
from omnifm.model import Capacity
from omnifm.task import Task


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """FedPer's section of a job."""

    share_buffers: bool = False
    """Whether normalisation statistics are averaged."""


class FedPer(Method):
    """Personal head, shared backbone."""

    Settings = Settings

    def build(self, task: Task) -> Model:
        """The plain or the matched model."""
        return self.settings.around(task.backbone())

    def partition(self, model: Model) -> Partition:
        """The head, and what belongs to it in the matched model, stays home."""
        return Partition.of(model, personal=model.personal(), share_buffers=self.settings.share_buffers)
