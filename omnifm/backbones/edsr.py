"""EDSR as a backbone, for super-resolution.

Letters: b batch, c channels, h w rows and columns at low resolution, l tokens, q width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from monai.networks.blocks import ResidualUnit, SubpixelUpsample
from torch import Tensor, nn
from torch.nn import functional as F

from omnifm.task import Backbone, Batch

TOKEN_STRIDE = 8
"""A token stands for 8 x 8 low-resolution pixels: the cost of attention grows with the square of the token count."""


class EDSRBackbone(Backbone):
    """Residual blocks at low resolution, then pixel shuffles: EDSR's baseline (Lim et al. 2017, arXiv 1707.02921).

    The network predicts the difference from bicubic interpolation.  Its last convolution starts at zero, so that
    training starts from the bicubic picture.  A token is the mean of the deep low-resolution features over 8 x 8
    positions.  The changes of the tokens are interpolated to all positions and added to the features.  The head
    (personal by default) consists of the pixel shuffles and the last convolution.

    Args:
        num_channels: number of channels of the picture, 1 or 3.
        scale: 2, 4 or 8.
        width: number of feature channels, which is also the token width.
        num_blocks: number of residual blocks.
    """

    reads = "middle"

    def __init__(self, num_channels: int, scale: int, width: int, num_blocks: int) -> None:
        super().__init__()
        self.width = width
        self.scale = scale
        self.entry = nn.Conv2d(num_channels, width, 3, padding=1)
        blocks = [
            ResidualUnit(2, width, width, subunits=2, norm=None, act="relu", last_conv_only=True)
            for _ in range(num_blocks)
        ]
        self.body = nn.Sequential(*blocks, nn.Conv2d(width, width, 3, padding=1))
        shuffles = [SubpixelUpsample(2, width, width, 2, apply_pad_pool=False) for _ in range(int(math.log2(scale)))]
        last = nn.Conv2d(width, num_channels, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.tail = nn.Sequential(*shuffles, last)

    def encode(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Compute the tokens; the features for `decode` are the deep feature map and the tokens as a map."""
        entry = self.entry(batch["image"] - 0.5)
        deep = entry + self.body(entry)
        means = F.avg_pool2d(deep, TOKEN_STRIDE, ceil_mode=True, count_include_pad=False)
        return means.flatten(2).transpose(1, 2), (deep, means)

    def decode(self, tokens: Tensor, features: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """The picture (b, c, scale * h, scale * w); grey levels are about 0 to 1, without clipping."""
        deep, means = features
        change = tokens.transpose(1, 2).reshape(means.shape) - means
        deep = deep + F.interpolate(change, size=deep.shape[2:], mode="bilinear")
        return bicubic(batch["image"], self.scale) + self.tail(deep)

    def head(self) -> Sequence[nn.Module]:
        """The pixel shuffles and the last convolution."""
        return [self.tail]


def bicubic(image: Float[Tensor, "b c h w"], scale: int) -> Float[Tensor, "b c high wide"]:
    """The picture enlarged by bicubic interpolation: the baseline of super-resolution."""
    return F.interpolate(image, scale_factor=scale, mode="bicubic")
