"""FedRep: first the personal head, then the shared representation (Collins et al. 2021, arXiv 2102.07078)."""

from __future__ import annotations

from collections.abc import Collection

from pydantic.dataclasses import dataclass
from torch import nn

from omnifm.config import STRICT, Count
from omnifm.method import LocalRound
from omnifm.methods import fedper


@dataclass(frozen=True, config=STRICT)
class Settings(fedper.Settings):
    """FedRep's section of a job."""

    head_epochs: Count = 1
    """Passes that train the head alone, before `local_epochs` that train the rest; the paper takes 10."""


class FedRep(fedper.FedPer):
    """Personal head and shared backbone, trained in turn (algorithm 1).

    What is not its turn is frozen with its normalisation statistics, which freezing weights alone would not do.
    """

    Settings = Settings

    def train(self, local: LocalRound) -> float:
        """Head, then representation; returns the mean loss of the latter's steps."""
        head = {module for part in local.model.personal() for module in _modules(part)}
        self._train_part(local, local.partition.personal, head, self.settings.head_epochs)
        rest = set(local.model.modules()) - head
        return self._train_part(local, local.partition.shared, rest, local.num_epochs)

    def _train_part(self, local: LocalRound, names: Collection[str], modules: set[nn.Module], num_epochs: int) -> float:
        frozen = [p for name, p in local.model.named_parameters() if p.requires_grad and name not in names]
        for module in local.model.modules():
            module.training = module in modules
        for parameter in frozen:
            parameter.requires_grad_(False)
        losses: list[float] = []
        if trained := [parameter for parameter in local.model.parameters() if parameter.requires_grad]:
            optimizer = local.optimizer(trained)
            for _ in range(num_epochs):
                losses += [self.step(local, batch, optimizer) for batch in local.batches()]
        for parameter in frozen:
            parameter.requires_grad_(True)
        return sum(losses) / len(losses) if losses else 0.0


def _modules(part: nn.Module | nn.Parameter) -> list[nn.Module]:
    return list(part.modules()) if isinstance(part, nn.Module) else []
