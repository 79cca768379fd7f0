"""FedSA-LoRA: of each low-rank update only A is shared (Guo et al. 2024, arXiv 2410.01463)."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from omnifm.config import STRICT
from omnifm.method import Model, Partition
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """FedSA-LoRA has nothing to set; rank and alpha are the model's."""


class FedSALoRA(FedAvg):
    """A, which holds what sites have in common, is averaged; B and every other trained weight stay home.

    A stored configuration of the authors' keeps other names home than LoRA's, and so averages B as well; this is the
    paper's.  A and B are what peft calls `lora_A` and `lora_B`.

    Raises:
        ValueError: from `partition`, where the model has no LoRA.
    """

    Settings = Settings

    def partition(self, model: Model) -> Partition:
        """All but A stays home."""
        home = [parameter for name, parameter in model.named_parameters() if "lora_A" not in name.split(".")]
        parts = Partition.of(model, personal=home, share_buffers=False)
        if not parts.shared:
            raise ValueError("fedsa_lora needs a model with LoRA (weights named lora_A); this one has none")
        return parts
