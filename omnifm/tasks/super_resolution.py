"""Super-resolution: enlarge a grey or RGB picture 2, 4 or 8 times, with an EDSR.

The network learns from small copies of the pictures.  Letters: b batch, c channels, x y axes of a picture, h w axes of
its small copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from monai.transforms import CenterSpatialCrop, Compose, RandFlipd, Randomizable, SpatialPadd, Transform
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from omnifm.backbones.edsr import EDSRBackbone, bicubic
from omnifm.config import STRICT, Count
from omnifm.data.prediction import Picture
from omnifm.data.volume import RefusedImage, Volume, read_volume
from omnifm.metrics.image_quality import quality
from omnifm.records import Json
from omnifm.task import Backbone, Batch, Forward, Task
from omnifm.tasks._pictures import caption, common_channels, in_channels
from omnifm.tasks._windows import predict_in_windows

MIN_SIDE = 8
"""Smallest side of the small copy in pixels: SSIM's window must fit into the picture without its border."""
TILE = 256
"""Largest side of a small copy that the network enlarges at once, in pixels."""
SHOWN_SIDE = 256
"""Side of a picture in the site's report, in pixels."""


@dataclass(frozen=True, config=STRICT)
class Settings:
    """The task section of a super-resolution job."""

    scale: Literal[2, 4, 8] = 2
    """Factor by which each side is enlarged: 2, 4 or 8.  Large factors are harder."""
    patch_size: Annotated[int, Field(ge=16, multiple_of=8)] = 96
    """Side of a training patch of the original in pixels: a multiple of 8, at least 16.  Large patches show more of the
    surroundings and cost more.  If a site's pictures are smaller, all patches are smaller."""


@dataclass(frozen=True, config=STRICT)
class Model:
    """The model section of a super-resolution job: EDSR; the defaults are those of its baseline."""

    channels: Annotated[int, Field(ge=4, multiple_of=4)] = 64
    """Number of feature channels, a multiple of 4.  More fit more and cost more."""
    num_blocks: Count = 16
    """Number of residual blocks, at least 1.  More fit more and cost more."""


class SuperResolution(Task):
    """Trains with the L1 loss; the metrics are PSNR and SSIM of the luma.

    The metrics `..._bicubic` are those of a baseline, bicubic interpolation.
    """

    Settings = Settings
    Model = Model
    required = ("image",)
    given = ("image",)
    metrics = {"psnr": True, "ssim": True, "psnr_bicubic": True, "ssim_bicubic": True}  # noqa: RUF012

    # Before round 0.
    def read(self, item: Json, labels: Mapping[int, str]) -> Batch:
        """Read a picture, with grey levels from 0 to 1.

        Whole numbers from 0 to 255 are taken as 8-bit levels.  Other values (16 bits, DICOM) are scaled so that the
        picture's smallest value becomes 0 and its largest 1.
        """
        volume, (low, high) = self._read(item, MIN_SIDE * self.settings.scale)
        return {"array": (volume.array.astype(np.float32) - low) / (high - low or 1.0)}

    def _read(self, item: Json, min_side: int) -> tuple[Volume, tuple[float, float]]:
        """A picture with sides of at least `min_side` pixels, and its values for black and white."""
        volume = read_volume(item["image"], burned_in_text=item.get("burned_in_text", "unknown")).with_air()
        shape = volume.array.shape
        if shape[2] > 1 or shape[3:] not in ((), (3,)):
            size = " x ".join(map(str, shape))
            raise RefusedImage("unsupported_format", f"image must be one grey or RGB picture; got {size}")
        if min(shape[:2]) < min_side:
            rule = f"image must have {min_side} pixels along each side for scale {self.settings.scale}"
            raise RefusedImage("bad_geometry", f"{rule}; got {shape[0]} x {shape[1]}")
        array = volume.array.astype(np.float32)
        low = float(array.min())
        high = float(array.max())
        if low >= 0 and high <= 255 and np.array_equal(array, np.round(array)):
            low, high = 0.0, 255.0
        return volume, (low, high)

    def case_facts(self, case: Batch) -> Json:
        """Channels, and shorter side in pixels."""
        shape = case["array"].shape
        return {"channels": shape[3] if len(shape) == 4 else 1, "side": min(shape[:2])}

    def facts(self, cases: Sequence[Json], labels: Mapping[int, str]) -> Json:
        """Channels (3 if any picture is RGB), and median of the shorter sides in pixels."""
        channels = common_channels((case["channels"] for case in cases), "a site's pictures")
        return {"channels": channels, "side": int(np.median([case["side"] for case in cases]))}

    def agree(self, facts: Mapping[str, Json]) -> Json:
        """Channels, and a patch that fits into at least half of each site's pictures.

        If one site has RGB pictures, grey pictures of the other sites are converted to RGB.
        """
        patch = min(self.settings.patch_size, *(fact["side"] // 8 * 8 for fact in facts.values()))
        channels = common_channels((fact["channels"] for fact in facts.values()), "sites")
        return {"dims": 2, "channels": channels, "patch": [patch] * 2}

    # The network and its loss.
    def backbone(self) -> Backbone:
        """EDSR for the configured scale."""
        return EDSRBackbone(self.spec["channels"], self.settings.scale, self.model.channels, self.model.num_blocks)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean absolute difference of the grey levels."""
        return F.l1_loss(prediction, batch["original"])

    # Cases as the network sees them.
    def prepare(self, case: Batch) -> Batch:
        """The original, cut at its right and lower end to a multiple of the scale, and its small copy."""
        scale = self.settings.scale
        original = torch.from_numpy(in_channels(case["array"], self.spec["channels"])[..., 0].copy())
        x, y = (side // scale * scale for side in original.shape[1:])
        original = original[:, :x, :y].contiguous()
        return {"image": degraded(original[None], scale)[0], "original": original}

    def augment(self) -> Compose:
        """A random patch with random flips; pictures smaller than a patch are extended by mirroring."""
        small = self._small_patch()
        filled = [
            SpatialPadd(key, size, method="end", mode="symmetric")
            for key, size in (("image", small), ("original", self.spec["patch"]))
        ]
        flips = [RandFlipd(["image", "original"], prob=0.5, spatial_axis=axis) for axis in (0, 1)]
        return Compose([*filled, Patch(small, self.settings.scale), *flips])

    def view(self, case: Batch) -> Tensor:
        """The middle of the small copy, of the size of a patch's small copy."""
        return CenterSpatialCrop(self._small_patch())(case["image"]).as_tensor()

    def _small_patch(self) -> list[int]:
        """Size of the small copy of a patch."""
        return [side // self.settings.scale for side in self.spec["patch"]]

    # Evaluation.
    def score(self, forward: Forward, case: Batch) -> dict[str, float | None]:
        """PSNR and SSIM of the whole picture, without a border whose width in pixels is the scale."""
        scale = self.settings.scale
        original = case["original"].numpy()
        of_network = quality(self.predict(forward, case), original, scale)
        of_bicubic = quality(bicubic(case["image"][None], scale)[0].numpy(), original, scale)
        return of_network | {f"{name}_bicubic": value for name, value in of_bicubic.items()}

    def predict(self, forward: Forward, case: Batch) -> Float[np.ndarray, "c x y"]:
        """The enlarged picture, with grey levels from 0 to 1; large pictures are enlarged in overlapping tiles."""
        image = case["image"][None]
        tile = [min(TILE, side) for side in image.shape[2:]]
        restored = predict_in_windows(forward, image, tile, overlap=0.125)
        return restored[0].float().clamp(0, 1).cpu().numpy()

    def picture(self, forward: Forward, case: Batch) -> np.ndarray:
        """Bicubic | network | original: the middle of the picture, with the PSNR of the whole picture below."""
        scores = self.score(forward, case)
        shown = {name: "equal" if value is None else f"{value:.2f} dB" for name, value in scores.items()}
        panels = [
            _panel(bicubic(case["image"][None], self.settings.scale)[0], f"bicubic: {shown['psnr_bicubic']}"),
            _panel(torch.from_numpy(self.predict(forward, case)), f"network: {shown['psnr']}"),
            _panel(case["original"], "original"),
        ]
        return np.concatenate(panels, axis=1)

    # Use.
    def infer(self, forward: Forward, item: Json) -> Picture:
        """The enlarged picture; the new picture takes the place of the small copy."""
        volume, (low, high) = self._read(item, MIN_SIDE)
        channels = self.spec["channels"]
        scale = self.settings.scale
        colour = volume.array.ndim == 4
        if colour and channels == 1:
            raise RefusedImage("unsupported_format", "image must be grey for this model; got RGB")
        image = torch.from_numpy(in_channels((volume.array - low) / (high - low or 1.0), channels)[..., 0].copy())
        restored = self.predict(forward, {"image": image.float()})
        levels = np.moveaxis(restored, 0, -1)[:, :, None] if colour else restored.mean(0)[..., None]
        new_to_old = np.diag([1 / scale, 1 / scale, 1, 1])
        new_to_old[:2, 3] = (1 / scale - 1) / 2  # the corners stay where they are, so the first pixel's centre moves
        return Picture(levels, (low, high), volume.affine @ new_to_old)


class Patch(Randomizable, Transform):
    """A random patch of the small copy, and the same patch of the original.

    Args:
        size: size of the small copy's patch, in pixels.
        scale: how many times larger the original is.
    """

    def __init__(self, size: Sequence[int], scale: int) -> None:
        self.size = size
        self.scale = scale

    def __call__(self, case: Batch) -> Batch:
        sides = case["image"].shape[1:]
        x, y = (int(self.R.randint(side - length + 1)) for side, length in zip(sides, self.size, strict=True))
        width, height = self.size
        scale = self.scale
        return {
            "image": case["image"][:, x : x + width, y : y + height],
            "original": case["original"][:, scale * x : scale * (x + width), scale * y : scale * (y + height)],
        }


def degraded(original: Float[Tensor, "b c x y"], scale: int) -> Float[Tensor, "b c h w"]:
    """The small copy of pictures: bicubic reduction with antialiasing, then rounding to 8 bits like a stored picture.

    Args:
        original: grey levels, 0 to 1; x and y are multiples of the scale.
        scale: how many times smaller the copy is along each axis.
    """
    small = F.interpolate(original, scale_factor=1 / scale, mode="bicubic", antialias=True)
    return (small.clamp(0, 1) * 255).round() / 255


def _panel(picture: Float[Tensor, "c x y"], text: str) -> np.ndarray:
    """The middle of a picture (enlarged if it is small) above a line of text; uint8."""
    middle = CenterSpatialCrop(SHOWN_SIDE)(picture).as_tensor().clamp(0, 1)
    times = max(1, SHOWN_SIDE // max(middle.shape[1:]))
    rgb = middle.repeat(3 // len(middle), 1, 1)
    enlarged = rgb.repeat_interleave(times, 1).repeat_interleave(times, 2)
    return caption((255 * enlarged.permute(2, 1, 0)).round().byte().numpy(), text)
