"""A densely connected network like U2Fusion's as a backbone, for image fusion.

Xu et al. 2022, "U2Fusion", IEEE TPAMI 44(1), https://doi.org/10.1109/TPAMI.2020.3012548.
Letters: b batch, n growth, q = 6n width, h w the picture's axes, l cells of `cell` x `cell` pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from omnifm.task import Backbone, Batch

NUM_DENSE = 5
SLOPE = 0.1
"""Slope of the final tanh.  U2Fusion has 1; there, with a learning rate of 0.01, the output of one short run in three
became black and stayed so."""


class U2FusionBackbone(Backbone):
    """Fuses two luminances into one; every layer keeps the full size of the picture.

    The encoder has one 3 x 3 convolution, and five more that each read the outputs of all before them.  The decoder
    reduces the encoder's 6n maps to one.  There is no bottleneck.  The tokens are the means of the encoder's maps over
    square cells; the changes of the tokens are interpolated and added to the maps.  So unchanged tokens give the
    prediction of the plain network.  The head (personal by default) is the decoder's last convolution.

    Resolved: the decoder predicts a correction of the sources' average, while U2Fusion predicts the whole picture.  A
    federation with few short rounds then starts from the average and does not have to learn it first.

    Args:
        growth: number of maps that each encoder layer adds, n; U2Fusion has 44.
        decoder: number of maps of each decoder layer except the last; U2Fusion has 128, 64, 32.
        cell: side of the cell of one token, in pixels.
    """

    reads = "middle"

    def __init__(self, growth: int, decoder: Sequence[int], cell: int) -> None:
        super().__init__()
        self.width = (NUM_DENSE + 1) * growth
        self.cell = cell
        self.first = _convolution(2, growth)
        self.dense = nn.ModuleList(_convolution(depth * growth, growth) for depth in range(1, NUM_DENSE + 1))
        widths = (self.width, *decoder, 1)
        self.decoder = nn.ModuleList(_convolution(*pair) for pair in pairwise(widths))

    def encode(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Run the encoder; the features for `decode` are its maps, their means over cells, and the sources' average."""
        maps = _activated(self.first(batch["image"]))
        for layer in self.dense:
            maps = torch.cat([_activated(layer(maps)), maps], dim=1)
        cells = F.avg_pool2d(maps, self.cell, ceil_mode=True)  # cells at the far edges may be smaller
        return cells.flatten(2).transpose(1, 2), (maps, cells, batch["image"].mean(dim=1, keepdim=True))

    def decode(
        self, tokens: Float[Tensor, "b l q"], features: tuple[Tensor, Tensor, Tensor], batch: Batch
    ) -> Float[Tensor, "b 1 h w"]:
        """Add the changes of the tokens to the maps and run the decoder; the luminance differs by less than 1 from
        the sources' average."""
        maps, cells, average = features
        change = tokens.transpose(1, 2).reshape(cells.shape) - cells
        maps = maps + F.interpolate(change, size=maps.shape[2:], mode="bilinear")
        for layer in self.decoder[:-1]:
            maps = _activated(layer(maps))
        return average + torch.tanh(SLOPE * self.decoder[-1](maps))

    def head(self) -> Sequence[nn.Module]:
        """The decoder's last convolution."""
        return [self.decoder[-1]]


def _convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, padding_mode="reflect")


def _activated(maps: Tensor) -> Tensor:
    return F.leaky_relu(maps, 0.2)
