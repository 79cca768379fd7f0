"""FedBN: batch normalisation is personal, its weights and its statistics (Li et al. 2021, arXiv 2102.07623)."""

from __future__ import annotations

import logging

from pydantic.dataclasses import dataclass

from omnifm.config import STRICT
from omnifm.method import Model, Partition, Tensors
from omnifm.methods._layers import batch_norms
from omnifm.methods.fedavg import FedAvg
from omnifm.model import Capacity

logger = logging.getLogger("omnifm.methods.fedbn")


@dataclass(frozen=True, config=STRICT)
class Settings(Capacity):
    """FedBN adds no settings."""


class FedBN(FedAvg):
    """Everything except batch normalisation is averaged.

    In a model without batch normalisation this is FedAvg, and the server logs a warning.  For SiloBN, which averages
    the weights of batch normalisation and keeps its statistics personal, use FedAvg with `share_buffers` false.  A site
    that joins late starts with the initial batch normalisation.
    """

    Settings = Settings
    travels = "Everything that is trained except batch normalisation."
    when = (
        "Choose it where scanners or stains differ and the network has batch normalisation; without it, this is FedAvg."
    )

    def partition(self, model: Model) -> Partition:
        """Batch normalisation is personal."""
        norms = batch_norms(model)
        self.num_norms = len(norms)
        return Partition.of(model, personal=norms)

    def start(self, shared: Tensors) -> None:
        """Warn, once and at the server, if the model has no batch normalisation."""
        if not self.num_norms:
            logger.warning("fedbn: the model has no batch normalisation, so this is FedAvg (see model.norm)")
