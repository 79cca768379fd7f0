"""The share of OmniFM's parts in a training step: OmniModel against PlainModel around the same network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import resnet18
from torch import Tensor, nn
from torch.nn import functional as F

from omnifm.backbones.unet import UNetBackbone
from omnifm.bench.cost.measure import Measure, interleave, ratio
from omnifm.method import Model, Tensors
from omnifm.model import OmniModel, Parts, PlainModel
from omnifm.parts.alignment import spectral_alignment
from omnifm.plugins import plugin
from omnifm.task import Backbone, Batch

UNETS = ((16, 32, 64, 128, 256), (16, 32, 64, 128))
"""Widths of MONAI's UNet by level: those of its documentation, and one level less."""
BAR_UNET = 1.10
BAR_RESNET = 1.20
Loss = Callable[[Tensor], Tensor]
Step = Callable[[], None]


class ResNetStandIn(Backbone):
    """MONAI's 2-D ResNet-18 as a classifier, used in this benchmark only."""

    reads = "suffix"

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.width = 512
        self.net = resnet18(spatial_dims=2, n_input_channels=in_channels, feed_forward=False)
        self.classify = nn.Sequential(nn.LayerNorm(self.width), nn.Linear(self.width, num_classes))

    def encode(self, batch: Batch) -> tuple[Tensor, None]:
        """The feature map before pooling, one token per position."""
        net = self.net
        image = net.maxpool(net.act(net.bn1(net.conv1(batch["image"]))))
        image = net.layer4(net.layer3(net.layer2(net.layer1(image))))
        return image.flatten(2).transpose(1, 2), None

    def decode(self, tokens: Tensor, features: None, batch: Batch) -> Tensor:
        """Logits from the mean token."""
        return self.classify(tokens.mean(dim=1))

    def head(self) -> Sequence[nn.Module]:
        """The norm and the linear layer."""
        return [self.classify]


def training_steps(
    unets: Sequence[tuple[int, ...]] = UNETS,
    side_3d: int = 64,
    side_2d: int = 128,
    batch_2d: int = 4,
    num_pairs: int = 15,
) -> Iterator[Measure]:
    """OmniModel against PlainModel around the same network: forward, loss, backward, optimiser step.

    Args:
        unets: widths of the 3-D UNets, one measure each.
        side_3d, side_2d: sides of the patches and pictures in voxels and pixels.
        batch_2d: pictures per batch; a 3-D batch holds two patches.
        num_pairs: most timings of each side.
    """
    for channels in unets:
        ours, theirs = unet_steps(channels, side_3d)
        what = f"UNet {'-'.join(map(str, channels))}, 2 patches of {side_3d}^3"
        yield ratio("step, 3-D UNet", interleave(ours, theirs, num_pairs), BAR_UNET, what)
    batch = {"image": torch.randn(batch_2d, 3, side_2d, side_2d), "label": torch.randint(8, (batch_2d,))}
    ours, theirs = _steps(lambda: ResNetStandIn(3, 8), batch, lambda logits: F.cross_entropy(logits, batch["label"]))
    what = f"MONAI ResNet-18 stand-in, {batch_2d} pictures of {side_2d}^2"
    yield ratio("step, 2-D ResNet-18", interleave(ours, theirs, num_pairs), BAR_RESNET, what)


def unet_steps(channels: tuple[int, ...], side: int) -> tuple[Step, Step]:
    """One training step of OmniModel and one of PlainModel on the same two 3-D patches."""
    batch = {"image": torch.randn(2, 1, side, side, side)}
    label = torch.randint(2, (2, 1, side, side, side)).float()
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    return _steps(lambda: UNetBackbone(3, 1, 2, channels), batch, lambda logits: loss(logits, label))


def _steps(backbone: Callable[[], Backbone], batch: Batch, loss: Loss) -> tuple[Step, Step]:
    """A step of OmniModel with the default settings of OmniFM, and one of PlainModel."""
    settings = plugin("methods", "omnifm").Settings()
    parts = Parts(**{field.name: getattr(settings, field.name) for field in fields(Parts)})
    vectors = F.normalize(torch.randn(settings.shortlist, settings.dim), dim=1)
    extra = {"prototypes": vectors, "mean": vectors.mean(dim=0)}
    return (
        _step(OmniModel(backbone(), parts), batch, extra, loss, settings.align_weight),
        _step(PlainModel(backbone()), batch, {}, loss, 0.0),
    )


def _step(model: Model, batch: Batch, extra: Tensors, loss: Loss, align_weight: float) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        output = model(batch, extra)
        total = loss(output.prediction)
        if output.token is not None and output.retrieved is not None:
            total = total + align_weight * spectral_alignment(output.token, output.retrieved)
        total.backward()
        optimizer.step()

    return step
