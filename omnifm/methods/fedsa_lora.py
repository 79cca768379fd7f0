"""FedSA-LoRA: of LoRA's two matrices only A is shared (Guo et al. 2024, arXiv 2410.01463)."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from omnifm.config import STRICT
from omnifm.method import Model, Partition
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """FedSA-LoRA adds no settings; rank and alpha of LoRA are set in the model section."""


class FedSALoRA(FedAvg):
    """A holds what the sites have in common and is averaged; B and every other trained weight are personal.

    This follows the paper.  A configuration in the authors' code names other parameters than LoRA's as personal, and so
    averages B too.  A and B are the parameters that the library peft calls `lora_A` and `lora_B`.

    Raises:
        ValueError: from `partition`, where the model has no LoRA.
    """

    Settings = Settings
    travels = "LoRA's matrix A only."
    when = "Choose it to tune a large pretrained network with LoRA at little traffic, where sites' answers differ."

    def partition(self, model: Model) -> Partition:
        """Everything except A is personal."""
        personal = [parameter for name, parameter in model.named_parameters() if "lora_A" not in name.split(".")]
        parts = Partition.of(model, personal=personal, share_buffers=False)
        if not parts.shared:
            raise ValueError("fedsa_lora needs a model with LoRA (weights named lora_A); this one has none")
        return parts
