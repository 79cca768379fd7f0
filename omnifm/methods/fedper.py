"""FedPer: the backbone is shared, the head is personal (Arivazhagan et al. 2019, arXiv 1912.00818)."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from omnifm.config import STRICT
from omnifm.method import Model, Partition
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """The method section of a job that uses FedPer."""

    share_buffers: bool = False
    """Whether normalisation statistics of the backbone are averaged.  False keeps each site's own."""


class FedPer(FedAvg):
    """FedAvg of the backbone; every site keeps its own head."""

    Settings: ClassVar[type[Any]] = Settings  # a type, so that a subclass may have another
    travels = "The backbone; every head stays at its site."
    when = "Choose it where sites differ in their labels or in how they label; it is the simplest personal method."

    def partition(self, model: Model) -> Partition:
        """The head is personal; in the matched model also the suffix and the reader."""
        return Partition.of(model, personal=model.personal(), share_buffers=self.settings.share_buffers)
