"""FedRep: train the personal head first, then the shared backbone (Collins et al. 2021, arXiv 2102.07078)."""

from __future__ import annotations

from collections.abc import Collection

from pydantic.dataclasses import dataclass
from torch import nn

from omnifm.config import STRICT, Count
from omnifm.method import LocalRound
from omnifm.methods import fedper


@dataclass(frozen=True, config=STRICT)
class Settings(fedper.Settings):
    """The method section of a job that uses FedRep."""

    head_epochs: Count = 1
    """Number of passes that train the head alone, >= 1, before `local_epochs` passes train the backbone.  More passes
    cost time and fit the head more closely.  The paper uses 10."""


class FedRep(fedper.FedPer):
    """Personal head and shared backbone, trained one after the other (algorithm 1).

    The part that is not trained is frozen together with its normalisation statistics; freezing its weights alone would
    not stop them.
    """

    Settings = Settings
    travels = "The backbone; every head stays at its site."
    when = (
        "Choose it like FedPer, where the head should fit the site closely and one more pass per round is affordable."
    )

    def train(self, local: LocalRound) -> float:
        """Train the head, then the rest; return the mean loss of the steps that train the rest."""
        head = {module for part in local.model.personal() for module in _modules(part)}
        self._train_part(local, local.partition.personal, head, self.settings.head_epochs)
        rest = set(local.model.modules()) - head
        return self._train_part(local, local.partition.shared, rest, local.num_epochs)

    def _train_part(self, local: LocalRound, names: Collection[str], modules: set[nn.Module], num_epochs: int) -> float:
        """Train only these parameters and modules; return the mean loss, 0 if there is nothing to train."""
        frozen = [p for name, p in local.model.named_parameters() if p.requires_grad and name not in names]
        for module in local.model.modules():
            module.training = module in modules
        for parameter in frozen:
            parameter.requires_grad_(False)
        losses: list[float] = []
        if trained := [parameter for parameter in local.model.parameters() if parameter.requires_grad]:
            optimizer = local.optimizer(trained)
            for _ in range(num_epochs):
                losses += self.epoch(local, optimizer)
        for parameter in frozen:
            parameter.requires_grad_(True)
        return sum(losses) / len(losses) if losses else 0.0


def _modules(part: nn.Module | nn.Parameter) -> list[nn.Module]:
    """A module with all modules inside it; a single parameter has none."""
    return list(part.modules()) if isinstance(part, nn.Module) else []
