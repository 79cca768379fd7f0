"""FedYogi: FedAdam with a slower second moment (Reddi et al. 2021, arXiv 2003.00295, algorithm 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from omnifm.methods.fedadam import FedAdam


class FedYogi(FedAdam):
    """FedAdam with v <- v - (1 - b2) d^2 sign(v - d^2): v grows as fast as in FedAdam and falls more slowly.

    The settings are those of FedAdam.
    """

    when = "Choose it like FedAdam, where FedAdam's steps become unstable because few sites take part in a round."

    def second_moment(self, v: Tensor, squared: Tensor) -> None:
        """Update Yogi's v in place."""
        v.sub_((1 - self.settings.beta2) * squared * torch.sign(v - squared))
