"""MONAI's UNet as a backbone, for segmentation.

Letters: b batch, c channels, l tokens, q width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from omnifm.task import Backbone, Batch

Skips = list[tuple[Tensor, nn.Module]]
"""Top level first: the output of a level's encoder block, and the level's decoder block."""


class UNetBackbone(Backbone):
    """MONAI's residual UNet, 2-D or 3-D, divided at its bottleneck.

    The positions of the bottleneck are the tokens.  The head (personal by default) is the last block of the decoder.

    Args:
        spatial_dims: 2 or 3.
        in_channels: number of image channels.
        out_channels: number of classes.
        channels: width of each level, top first; the last is the token width.
        norm: "instance", "batch" or "group".  Instance norm has neither weights nor statistics to share.
    """

    reads = "middle"

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, channels: Sequence[int], norm: str = "instance"
    ) -> None:
        super().__init__()
        self.width = channels[-1]
        strides = (2,) * (len(channels) - 1)
        # One group, because the last block has one channel per class, which any other number may not divide.
        kind = ("group", {"num_groups": 1}) if norm == "group" else norm
        self.unet = UNet(spatial_dims, in_channels, out_channels, tuple(channels), strides, num_res_units=2, norm=kind)

    def encode(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Skips]]:
        """Run the encoder; the features for `decode` are the bottleneck map and the skip connections."""
        block = self.unet.model
        image = batch["image"]
        skips = Skips()
        while isinstance(block, nn.Sequential):  # (encoder block, skip connection around the next level, decoder block)
            image = block[0](image)
            skips.append((image, block[2]))
            block = block[1].submodule
        bottom = block(image)
        return bottom.flatten(2).transpose(1, 2), (bottom, skips)

    def decode(self, tokens: Tensor, features: tuple[Tensor, Skips], batch: Batch) -> Tensor:
        """Run the decoder from the tokens as bottleneck map; returns logits (b, classes, *space)."""
        bottom, skips = features
        image = tokens.transpose(1, 2).reshape(bottom.shape)
        for skip, up in reversed(skips):
            image = up(torch.cat([skip, image], dim=1))
        return image

    def head(self) -> Sequence[nn.Module]:
        """The last block of the decoder."""
        return [self.unet.model[2]]
