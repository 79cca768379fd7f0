"""FedPer: the backbone is shared, the head stays home (Arivazhagan et al. 2019, arXiv 1912.00818)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from omnifm.config import STRICT
from omnifm.method import Method, Model, Partition
from omnifm.model import MatchedModel, PlainModel
from omnifm.task import Task


@dataclass(frozen=True, config=STRICT)
class Settings:
    """FedPer's section of a job."""

    capacity: Literal["paper", "matched"] = "paper"
    """`paper` is the plain head; `matched` has OmniFM's own head and suffix, without its spectral parts."""
    share_buffers: bool = False
    """Whether normalisation statistics are averaged."""
    num_suffix: Annotated[int, Field(ge=1, le=64)] = 4
    """Suffix tokens p of the matched head."""


class FedPer(Method):
    """Personal head, shared backbone."""

    Settings = Settings

    def build(self, task: Task) -> Model:
        """The plain or the matched model."""
        backbone = task.backbone()
        matched = self.settings.capacity == "matched"
        return MatchedModel(backbone, self.settings.num_suffix) if matched else PlainModel(backbone)

    def partition(self, model: Model) -> Partition:
        """The head, and what belongs to it in the matched model, stays home."""
        return Partition.of(model, personal=model.personal(), share_buffers=self.settings.share_buffers)
