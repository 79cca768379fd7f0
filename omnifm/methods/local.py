"""Local: every site trains alone, for as many rounds and epochs as the federated methods (no paper)."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from omnifm.config import STRICT
from omnifm.method import Model, Partition
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """Local adds no settings."""


class Local(FedAvg):
    """No federation: the reference that a federated method should beat at every site."""

    Settings = Settings
    travels = "Nothing."
    when = "Run it beside any other method: it shows what a site gains by taking part."

    def partition(self, model: Model) -> Partition:
        """Everything is personal."""
        return Partition.of(model, only=())
