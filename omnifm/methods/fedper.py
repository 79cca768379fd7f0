"""FedPer: the backbone is shared, the head stays home (Arivazhagan et al. 2019, arXiv 1912.00818)."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from omnifm.config import STRICT
from omnifm.method import Model, Partition
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """FedPer's section of a job."""

    share_buffers: bool = False
    """Whether normalisation statistics are averaged."""


class FedPer(FedAvg):
    """Personal head, shared backbone."""

    Settings: ClassVar[type[Any]] = Settings  # a type, so that a subclass may have another

    def partition(self, model: Model) -> Partition:
        """The head, and what belongs to it in the matched model, stays home."""
        return Partition.of(model, personal=model.personal(), share_buffers=self.settings.share_buffers)
