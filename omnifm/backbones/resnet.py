"""MONAI's ResNet-18 as a backbone, for classification.

Letters: b batch, c channels, l tokens, q width.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import ResNet
from torch import Tensor, nn

from omnifm.task import Backbone, Batch

NUM_GROUPS = 8
"""Number of groups of the group norm; each width must be a multiple of it."""
GROUP = ("group", {"num_groups": NUM_GROUPS})


class GroupResNet(ResNet):
    """MONAI's ResNet with group norm in all layers; MONAI 1.6.1 uses `norm` only in the first (its issue 9028)."""

    def _make_layer(self, *args: object, **options: object) -> nn.Sequential:
        return super()._make_layer(*args, **{"norm": GROUP, **options})


class ResNetBackbone(Backbone):
    """MONAI's ResNet-18, 2-D or 3-D, divided before the average over positions.

    The positions of the last feature map are the tokens.  The class is predicted from the mean of the returned tokens.
    The head (personal by default) is the linear classifier.

    Args:
        spatial_dims: 2 or 3.
        in_channels: number of image channels.
        num_classes: number of classes.
        channels: widths of the four stages, multiples of 8; the last is the token width.  ResNet-18 has
            (64, 128, 256, 512).
        norm: "group" (8 groups) or "batch".  Batch norm needs more than one value per channel in a training batch.
        small: for small pictures: the first convolution has kernel size 3, and the side is not halved before the
            second stage.  A side of 28 pixels then becomes 4 positions, instead of 1.
    """

    reads = "suffix"

    def __init__(
        self, spatial_dims: int, in_channels: int, num_classes: int, channels: Sequence[int], norm: str, *, small: bool
    ) -> None:
        super().__init__()
        self.width = channels[-1]
        kind = GroupResNet if norm == "group" else ResNet
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
            norm=GROUP if norm == "group" else norm,
        )

    def encode(self, batch: Batch) -> tuple[Tensor, None]:
        """The positions of the last stage's feature map."""
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
