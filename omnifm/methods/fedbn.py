"""FedBN: batch normalisation stays home, weights and statistics (Li et al. 2021, arXiv 2102.07623)."""

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
    """FedBN has nothing to set."""


class FedBN(FedAvg):
    """Everything but batch normalisation is averaged; without any in the model this is FedAvg, and says so.

    SiloBN, which shares the weights of batch normalisation and keeps its statistics, is FedAvg with share_buffers
    false.  A new site has no normalisation of its own and starts with the initial one.
    """

    Settings = Settings

    def partition(self, model: Model) -> Partition:
        """Batch normalisation stays home."""
        norms = batch_norms(model)
        self.num_norms = len(norms)
        return Partition.of(model, personal=norms)

    def start(self, shared: Tensors) -> None:
        """Say it once, at the server, if there is nothing to keep home."""
        if not self.num_norms:
            logger.warning("fedbn: the model has no batch normalisation, so this is FedAvg (see model.norm)")
