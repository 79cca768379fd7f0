"""Local: nothing is shared; what every site would have alone, with the same budget."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from omnifm.config import STRICT
from omnifm.method import Method, Model, Partition
from omnifm.model import PlainModel
from omnifm.task import Task


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Local has nothing to set."""


class Local(Method):
    """No federation: the floor that a federated method must not fall below at any site."""

    Settings = Settings

    def build(self, task: Task) -> Model:
        """The plain backbone."""
        return PlainModel(task.backbone())

    def partition(self, model: Model) -> Partition:
        """Everything stays home."""
        return Partition.of(model, only=())
