"""DEeR's deviation eliminator: LoRA's matrices A and B are trained in turn (Zhu et al. 2024, arXiv 2410.12926)."""

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
    """DEeR adds no settings; rank and alpha of LoRA are set in the model section."""


class DEeR(FedAvg):
    """B is trained and averaged in odd rounds, A in even rounds; the other matrix is then equal at all sites.

    So the mean of the sites' products BA is the product of the means.  This is not true if both are trained at once.
    B comes first, because it starts at zero.  Trained weights outside LoRA are averaged in every round.  The paper's
    noise regulator is left out: the published code applies it at the server, and in this project noise is added by the
    site's own filters.

    Raises:
        ValueError: from `partition`, where the model has no LoRA.
    """

    Settings = Settings
    travels = "LoRA's matrices A and B, in turn, and other trained weights."
    when = (
        "Choose it to tune a large pretrained network with LoRA where the sites' products BA must be averaged exactly."
    )

    def partition(self, model: Model) -> Partition:
        """Share all trained weights.  A and B are both sent, so that a site that missed a round receives both."""
        parts = Partition.of(model)
        if not any(_is_part(name, "lora_B") for name in parts.shared):
            raise ValueError("deer needs a model with LoRA (weights named lora_A and lora_B); this one has none")
        return parts

    def begin(self, local: LocalRound) -> None:
        """Freeze the matrix that is not trained in this round."""
        for name, parameter in local.model.named_parameters():
            if _is_part(name, _frozen(local.round)):
                parameter.requires_grad_(False)

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """Weighted mean of the trained tensors; the frozen matrix keeps its exact values."""
        mean = weighted_mean(shared, updates)
        frozen = _frozen(view.round)
        return {name: shared[name] if _is_part(name, frozen) else value for name, value in mean.items()}


def _frozen(round_number: int) -> str:
    """Name of the matrix that is frozen in this round.

    >>> [_frozen(round_number) for round_number in (1, 2, 3)]
    ['lora_A', 'lora_B', 'lora_A']
    """
    return "lora_A" if round_number % 2 else "lora_B"


def _is_part(name: str, part: str) -> bool:
    """Whether a parameter belongs to this LoRA matrix."""
    return part in name.split(".")
