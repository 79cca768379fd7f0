"""DEeR's deviation eliminator: A and B of low-rank updates are trained in turn (Zhu et al. 2024, arXiv 2410.12926)."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic.dataclasses import dataclass

from omnifm.config import STRICT
from omnifm.method import LocalRound, Model, Partition, ServerView, Tensors, weighted_mean
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity
from omnifm.update import Update


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """DEeR has nothing to set; rank and alpha are the model's."""


class DEeR(FedAvg):
    """B is trained and averaged in odd rounds, A in even ones; the other one is common to all sites meanwhile.

    So the mean of the products is the product of the means, which it is not where both move at once.  B is zero at
    first, so it is first.  Trained weights outside LoRA are averaged every round.  The paper's noise regulator, which
    the published code applies at the server, is left out: noise belongs to the site's own filters.

    Raises:
        ValueError: from `partition`, where the model has no LoRA.
    """

    Settings = Settings

    def partition(self, model: Model) -> Partition:
        """Everything that is trained; A and B both travel, so that a site absent for a round has both."""
        parts = Partition.of(model)
        if not any(_is_part(name, "lora_B") for name in parts.shared):
            raise ValueError("deer needs a model with LoRA (weights named lora_A and lora_B); this one has none")
        return parts

    def begin(self, local: LocalRound) -> None:
        """Freeze the one whose turn it is not."""
        for name, parameter in local.model.named_parameters():
            if _is_part(name, _resting(local.round)):
                parameter.requires_grad_(False)

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """Weighted mean of what was trained; the other stays exactly as it was."""
        mean, resting = weighted_mean(shared, updates), _resting(view.round)
        return {name: shared[name] if _is_part(name, resting) else value for name, value in mean.items()}


def _resting(round_number: int) -> str:
    return "lora_A" if round_number % 2 else "lora_B"


def _is_part(name: str, part: str) -> bool:
    return part in name.split(".")
