"""FedYogi: FedAdam with a slower second moment (Reddi et al. 2021, arXiv 2003.00295, algorithm 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from omnifm.methods.fedadam import FedAdam


class FedYogi(FedAdam):
    """As FedAdam, with its settings, but v <- v - (1 - b2) d^2 sign(v - d^2): it grows as fast and falls slower."""

    def second_moment(self, v: Tensor, squared: Tensor) -> None:
        """Yogi's v, in place."""
        v.sub_((1 - self.settings.beta2) * squared * torch.sign(v - squared))
