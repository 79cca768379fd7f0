"""Super-resolution: a picture from its own copy of 1/2, 1/4 or 1/8 of the size, with an EDSR.

Pictures only, grey or RGB.  Letters: b batch, c channels, h w low resolution, x y axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from monai.inferers import sliding_window_inference
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
from omnifm.task import Backbone, Batch, Forward, Task
from omnifm.tasks._pictures import caption, common_channels, in_channels

MIN_SIDE = 8
"""Of the small copy, pixels: SSIM's window must still fit inside the border that is left out."""
TILE = 256
"""Longest side of a small copy that the network takes whole."""
SHOWN_SIDE = 256


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Super-resolution's task section."""

    scale: Literal[2, 4, 8] = 2
    """How many times longer each side becomes."""
    patch_size: Annotated[int, Field(ge=16, multiple_of=8)] = 96
    """Side of a training patch of the original, pixels; smaller where a site's pictures are."""


@dataclass(frozen=True, config=STRICT)
class Model:
    """Super-resolution's model section: EDSR, by default its baseline."""

    channels: Annotated[int, Field(ge=4, multiple_of=4)] = 64
    """Width of the features."""
    num_blocks: Count = 16
    """Residual blocks."""


class SuperResolution(Task):
    """L1; PSNR and SSIM of the luma, and the same of bicubic interpolation beside them."""

    Settings = Settings
    Model = Model
    required = ("image",)
    given = ("image",)
    metrics = {"psnr": True, "ssim": True, "psnr_bicubic": True, "ssim_bicubic": True}  # noqa: RUF012

    # Before round 0.
    def read(self, item: Mapping[str, Any], labels: Mapping[int, str]) -> Batch:
        """Read a picture; grey levels from 0 to 1.

        Whole numbers within 0..255 are levels of 8 bits; anything else (16 bits, DICOM) is stretched from its own
        smallest to its own largest value.
        """
        volume, (low, high) = self._read(item, MIN_SIDE * self.settings.scale)
        return {"array": (volume.array.astype(np.float32) - low) / (high - low or 1.0)}

    def _read(self, item: Mapping[str, Any], least: int) -> tuple[Volume, tuple[float, float]]:
        """A picture with sides of at least `least` pixels, and which of its values are black and white."""
        volume = read_volume(item["image"], burned_in_text=item.get("burned_in_text", "unknown"))
        shape = volume.array.shape
        if shape[2] > 1 or shape[3:] not in ((), (3,)):
            size = " x ".join(map(str, shape))
            raise RefusedImage("unsupported_format", f"image must be one grey or RGB picture; got {size}")
        if min(shape[:2]) < least:
            rule = f"image must have {least} pixels along each side for scale {self.settings.scale}"
            raise RefusedImage("bad_geometry", f"{rule}; got {shape[0]} x {shape[1]}")
        array = volume.array.astype(np.float32)
        low, high = float(array.min()), float(array.max())
        if low >= 0 and high <= 255 and np.array_equal(array, np.round(array)):
            low, high = 0.0, 255.0
        return volume, (low, high)

    def case_facts(self, case: Batch) -> dict[str, Any]:
        """Channels and shorter side in pixels."""
        shape = case["array"].shape
        return {"channels": shape[3] if len(shape) == 4 else 1, "side": min(shape[:2])}

    def facts(self, cases: Sequence[Mapping[str, Any]], labels: Mapping[int, str]) -> dict[str, Any]:
        """Channels, 3 if any picture is coloured; median shorter side."""
        channels = common_channels((case["channels"] for case in cases), "a site's pictures")
        return {"channels": channels, "side": int(np.median([case["side"] for case in cases]))}

    def agree(self, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Colour if any site has colour; a patch that half of each site's pictures can fill."""
        patch = min(self.settings.patch_size, *(fact["side"] // 8 * 8 for fact in facts.values()))
        channels = common_channels((fact["channels"] for fact in facts.values()), "sites")
        return {"dims": 2, "channels": channels, "patch": [patch] * 2}

    # The network and its loss.
    def backbone(self) -> Backbone:
        """EDSR for this scale."""
        return EDSRBackbone(self.spec["channels"], self.settings.scale, self.model.channels, self.model.num_blocks)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean absolute difference of grey levels."""
        return F.l1_loss(prediction, batch["original"])

    # Cases as the network sees them.
    def prepare(self, case: Batch) -> Batch:
        """The original, cut to a multiple of the scale at its right and lower end, and its small copy."""
        scale = self.settings.scale
        original = torch.from_numpy(in_channels(case["array"], self.spec["channels"])[..., 0].copy())
        x, y = (side // scale * scale for side in original.shape[1:])
        original = original[:, :x, :y].contiguous()
        return {"image": degraded(original[None], scale)[0], "original": original}

    def augment(self) -> Compose:
        """A patch, flipped at random; pictures shorter than it are mirrored at their ends."""
        small = self._small_patch()
        filled = [
            SpatialPadd(key, size, method="end", mode="symmetric")
            for key, size in (("image", small), ("original", self.spec["patch"]))
        ]
        flips = [RandFlipd(["image", "original"], prob=0.5, spatial_axis=axis) for axis in (0, 1)]
        return Compose([*filled, Patch(small, self.settings.scale), *flips])

    def view(self, case: Batch) -> Tensor:
        """The small copy's middle, as large as a patch's."""
        return CenterSpatialCrop([side // self.settings.scale for side in self.spec["patch"]])(
            case["image"]
        ).as_tensor()

    def _small_patch(self) -> list[int]:
        return [side // self.settings.scale for side in self.spec["patch"]]

    # Evaluation.
    def score(self, forward: Forward, case: Batch) -> dict[str, float | None]:
        """PSNR and SSIM of the whole picture without a border as wide as the scale."""
        original, scale = case["original"].numpy(), self.settings.scale
        ours = quality(self.predict(forward, case), original, scale)
        plain = quality(bicubic(case["image"][None], scale)[0].numpy(), original, scale)
        return ours | {f"{name}_bicubic": value for name, value in plain.items()}

    def predict(self, forward: Forward, case: Batch) -> Float[np.ndarray, "c x y"]:
        """The picture at full size, grey levels 0 to 1; large ones in overlapping tiles."""
        image = case["image"][None]
        if max(image.shape[2:]) <= TILE:
            restored = forward({"image": image})
        else:
            tile = [min(TILE, side) for side in image.shape[2:]]
            restored = sliding_window_inference(
                image, tile, 1, lambda window: forward({"image": window}), overlap=0.125, mode="gaussian"
            )
        return torch.as_tensor(restored)[0].float().clamp(0, 1).cpu().numpy()

    def picture(self, forward: Forward, case: Batch) -> np.ndarray:
        """Bicubic | network | original: the middle of the picture, with its PSNR below."""
        scores = self.score(forward, case)
        said = {name: "equal" if value is None else f"{value:.2f} dB" for name, value in scores.items()}
        panels = [
            _panel(bicubic(case["image"][None], self.settings.scale)[0], f"bicubic: {said['psnr_bicubic']}"),
            _panel(torch.from_numpy(self.predict(forward, case)), f"network: {said['psnr']}"),
            _panel(case["original"], "original"),
        ]
        return np.concatenate(panels, axis=1)

    # Use.
    def infer(self, forward: Forward, item: Mapping[str, Any]) -> Picture:
        """The picture enlarged: here it is the small copy itself."""
        volume, (low, high) = self._read(item, MIN_SIDE)
        channels, scale = self.spec["channels"], self.settings.scale
        colour = volume.array.ndim == 4
        if colour and channels == 1:
            raise RefusedImage("unsupported_format", "image must be grey for this model; got RGB")
        image = torch.from_numpy(in_channels((volume.array - low) / (high - low or 1.0), channels)[..., 0].copy())
        restored = self.predict(forward, {"image": image.float()})
        levels = np.moveaxis(restored, 0, -1)[:, :, None] if colour else restored.mean(0)[..., None]
        smaller = np.diag([1 / scale, 1 / scale, 1, 1])
        smaller[:2, 3] = (1 / scale - 1) / 2  # corners stay where they are, so the first centre moves
        return Picture(levels, (low, high), volume.affine @ smaller)


class Patch(Randomizable, Transform):
    """The same random patch of the small copy and of the original."""

    def __init__(self, size: Sequence[int], scale: int) -> None:
        self.size, self.scale = size, scale

    def __call__(self, case: Batch) -> Batch:
        sides = case["image"].shape[1:]
        x, y = (int(self.R.randint(side - length + 1)) for side, length in zip(sides, self.size, strict=True))
        (width, height), scale = self.size, self.scale
        return {
            "image": case["image"][:, x : x + width, y : y + height],
            "original": case["original"][:, scale * x : scale * (x + width), scale * y : scale * (y + height)],
        }


def degraded(original: Float[Tensor, "b c x y"], scale: int) -> Float[Tensor, "b c h w"]:
    """The small copy: antialiased bicubic reduction, then rounded to 8 bits as a stored picture is.

    Args:
        original: grey levels 0 to 1; x and y are multiples of the scale.
    """
    small = F.interpolate(original, scale_factor=1 / scale, mode="bicubic", antialias=True)
    return (small.clamp(0, 1) * 255).round() / 255


def _panel(picture: Float[Tensor, "c x y"], text: str) -> np.ndarray:
    """The middle of a picture, enlarged if it is small, above a line of text; uint8."""
    middle = CenterSpatialCrop(SHOWN_SIDE)(picture).as_tensor().clamp(0, 1)
    times = max(1, SHOWN_SIDE // max(middle.shape[1:]))
    rows = (
        middle.repeat(3 // len(middle), 1, 1).repeat_interleave(times, 1).repeat_interleave(times, 2).permute(2, 1, 0)
    )
    return caption((255 * rows).round().byte().numpy(), text)
