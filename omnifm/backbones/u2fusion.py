"""A densely connected fusion network like U2Fusion's as a backbone: gives tokens (b l q) and takes them back.

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
"""Of the final tanh; 1 in U2Fusion, where at a learning rate of 0.01 one short run in three went black for good."""


class U2FusionBackbone(Backbone):
    """Two luminances in, one fused luminance out; every layer keeps the picture's full size.

    The encoder is one 3 x 3 convolution and five more that each read all before them; the decoder narrows its 6n maps
    to one.  The network has no bottleneck, so the tokens are the encoder's maps averaged over square cells, and what
    was changed in them is added back to the maps, interpolated: unchanged tokens are the plain network.
    Its head, personal by default, is the decoder's last convolution.

    Resolved: the decoder corrects the sources' average, where U2Fusion draws the picture from nothing.  A federation of
    few short rounds then starts at the plain average instead of spending them on getting there.

    Args:
        growth: maps that each encoder layer adds, n; U2Fusion has 44.
        decoder: maps of the decoder's layers before the last; U2Fusion has 128, 64, 32.
        cell: pixels per token and axis.
    """

    reads = "middle"

    def __init__(self, growth: int, decoder: Sequence[int], cell: int) -> None:
        super().__init__()
        self.width, self.cell = (NUM_DENSE + 1) * growth, cell
        self.first = _convolution(2, growth)
        self.dense = nn.ModuleList(_convolution(depth * growth, growth) for depth in range(1, NUM_DENSE + 1))
        widths = (self.width, *decoder, 1)
        self.decoder = nn.ModuleList(_convolution(*pair) for pair in pairwise(widths))

    def encode(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Run the encoder; features are its maps at full size, their cell means as a grid, and the sources' average."""
        maps = _activated(self.first(batch["image"]))
        for layer in self.dense:
            maps = torch.cat([_activated(layer(maps)), maps], dim=1)
        cells = F.avg_pool2d(maps, self.cell, ceil_mode=True)  # cells at the far edges may be smaller
        return cells.flatten(2).transpose(1, 2), (maps, cells, batch["image"].mean(dim=1, keepdim=True))

    def decode(
        self, tokens: Float[Tensor, "b l q"], features: tuple[Tensor, Tensor, Tensor], batch: Batch
    ) -> Float[Tensor, "b 1 h w"]:
        """Add the change of the tokens to the maps and run the decoder; luminance, at most 1 from the average."""
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
