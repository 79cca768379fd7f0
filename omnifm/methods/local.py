"""Local: nothing is shared; what every site would have alone, with the same budget."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from omnifm.config import STRICT
from omnifm.method import Model, Partition
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """Local has nothing to set."""


class Local(FedAvg):
    """No federation: the floor that a federated method must not fall below at any site."""

    Settings = Settings

    def partition(self, model: Model) -> Partition:
        """Everything stays home."""
        return Partition.of(model, only=())
