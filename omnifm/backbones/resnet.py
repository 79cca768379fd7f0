"""MONAI's ResNet-18 as a backbone: gives tokens (b l q) and takes them back.

Letters: b batch, c channels, l tokens, q width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.nets import ResNet
from torch import Tensor, nn

from omnifm.task import Backbone, Batch

NUM_GROUPS = 8
GROUP = ("group", {"num_groups": NUM_GROUPS})


class GroupResNet(ResNet):
    """MONAI's ResNet with group norm everywhere: 1.6.1 hands `norm` to the first layer alone (its issue 9028)."""

    def _make_layer(self, *args: Any, **options: Any) -> nn.Sequential:
        return super()._make_layer(*args, **{"norm": GROUP, **options})


class ResNetBackbone(Backbone):
    """MONAI's ResNet-18, 2-D or 3-D, opened before its average over positions.

    The last feature map's positions are the tokens; the class is read from the mean of whatever tokens come back.
    Its head, personal by default, is the linear classifier.

    Args:
        spatial_dims: 2 or 3.
        in_channels, num_classes: image channels and classes.
        channels: width of the four stages, multiples of 8; the last is the token width.  (64, 128, 256, 512) is
            ResNet-18.
        norm: "group" (of 8), or "batch", which needs more than one value per channel of a training batch.
        small: for thumbnails: the first convolution is 3 wide and nothing is halved before the second stage, so
            that 28 pixels become 4 and not 1.
    """

    reads = "suffix"

    def __init__(
        self, spatial_dims: int, in_channels: int, num_classes: int, channels: Sequence[int], norm: str, *, small: bool
    ) -> None:
        super().__init__()
        self.width = channels[-1]
        kind, named = (GroupResNet, GROUP) if norm == "group" else (ResNet, norm)
        self.resnet = kind(
            "basic",
            [2, 2, 2, 2],
            list(channels),
            spatial_dims,
            in_channels,
            conv1_t_size=3 if small else 7,
            conv1_t_stride=1 if small else 2,
            no_max_pool=small,
            num_classes=num_classes,
            bias_downsample=False,
            norm=named,
        )

    def encode(self, batch: Batch) -> tuple[Tensor, None]:
        """The last stage's positions."""
        net = self.resnet
        image = net.act(net.bn1(net.conv1(batch["image"])))
        image = image if net.no_max_pool else net.maxpool(image)
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            image = stage(image)
        return image.flatten(2).transpose(1, 2), None

    def decode(self, tokens: Tensor, features: None, batch: Batch) -> Tensor:
        """Logits (b, classes) of the mean token."""
        return self.resnet.fc(tokens.mean(dim=1))

    def head(self) -> Sequence[nn.Module]:
        """The linear classifier."""
        return [self.resnet.fc]
