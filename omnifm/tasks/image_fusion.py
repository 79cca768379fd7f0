"""Image fusion: two registered pictures of one patient become one, without a truth, with a network like U2Fusion's.

The network sees two luminances, whatever the sources are: grey CT and MR, or the pseudo-colours of PET and SPECT, whose
chroma is put back around the fused luminance afterwards.  So sites with different pairs federate.
Letters: b batch, h w and x y the picture's axes (x columns, y rows, x first).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from monai.inferers import sliding_window_inference
from monai.losses import SSIMLoss
from monai.transforms import (
    CenterSpatialCrop,
    Compose,
    RandFlipd,
    RandomizableTransform,
    RandSpatialCropd,
    SelectItemsd,
    SpatialPad,
)
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from omnifm.backbones.u2fusion import U2FusionBackbone
from omnifm.config import STRICT, Count, Positive
from omnifm.data.prediction import Picture, as_stored
from omnifm.data.raster import SUFFIXES
from omnifm.data.volume import RefusedImage, Volume, read_volume
from omnifm.metrics.fusion import MIN_SIDE, baselines, fusion_scores
from omnifm.task import Backbone, Batch, Forward, Task

SOURCES = ("image_a", "image_b")
NUM_SCALES = 5
MAX_CORNER_SHIFT = 0.1
"""How far, in pixels, two registered slices' corners may lie apart: rounding in headers, never half a pixel."""


class Swap(RandomizableTransform):
    """The first source becomes the second; MONAI's RandLambdad cannot do without metadata."""

    def __call__(self, data: Batch) -> Batch:
        self.randomize(None)
        return data | {"image": data["image"].flip(0)} if self._do_transform else data


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Image fusion's task section."""

    patch_size: Annotated[int, Field(ge=32, multiple_of=16)] = 64
    """Side of a training patch, pixels; smaller where all pictures are."""
    window_size: Annotated[int, Field(ge=64, multiple_of=16)] = 256
    """Longest side that is fused at once, pixels; longer pictures are covered by windows."""
    mse_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 20.0
    """Weight of the squared error beside SSIM in the loss, >= 0; 0 is structure alone (U2Fusion: 20)."""
    temperature: Positive = 0.01
    """How much more gradient energy a source needs to weigh e times more; large weighs both alike."""


@dataclass(frozen=True, config=STRICT)
class Model:
    """Image fusion's model section; the defaults are U2Fusion's widths."""

    growth: Count = 44
    """Maps that each of the encoder's six layers adds; six times this is the token width."""
    decoder: Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)] = (128, 64, 32)
    """Maps of the decoder's layers before the last."""
    cell: Annotated[int, Field(ge=2, le=64)] = 8
    """Pixels per token and axis; small tokens see more detail and cost more."""


class ImageFusion(Task):
    """SSIM + squared error against both sources, weighted by what each has to tell.

    Nothing is labelled, so validation picks checkpoints by SSIM: it is bounded, symmetric and not what L1 rewards.
    """

    Settings = Settings
    Model = Model
    required = given = SOURCES
    metrics = {  # noqa: RUF012
        name + suffix: higher
        for suffix in ("", "_average", "_max")
        for name, higher in {"ssim": True, "vif": True, "l1": False, "mi": True, "qabf": True}.items()
    }

    # Before round 0.
    def read(self, item: Mapping[str, Any], labels: Mapping[int, str]) -> Batch:
        """Read both sources: luminance (source x y) in [0, 1] and chroma (source 2 x y), see `luminance_chroma`."""
        return self._case(item, *self._pair(item))

    def _pair(self, item: Mapping[str, Any]) -> list[Volume]:
        """Both sources, as they are stored."""
        known = item.get("burned_in_text", "unknown")
        return [read_volume(item[key], burned_in_text=known) for key in SOURCES]

    def _case(self, item: Mapping[str, Any], a: Volume, b: Volume) -> Batch:
        volumes = [a.in_ras(), b.in_ras()]
        _check_pair(*volumes)
        parts = [luminance_chroma(_shades(v, item[key])) for v, key in zip(volumes, SOURCES, strict=True)]
        return {"luminance": np.stack([y for y, _ in parts]), "chroma": np.stack([chroma for _, chroma in parts])}

    def case_facts(self, case: Batch) -> dict[str, Any]:
        """Shape in pixels."""
        return {"shape": list(case["luminance"].shape[1:])}

    def facts(self, cases: Sequence[Mapping[str, Any]], labels: Mapping[int, str]) -> dict[str, Any]:
        """The longest side, pixels."""
        return {"longest_side": max(max(case["shape"]) for case in cases)}

    def agree(self, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Always two luminances; a patch no longer than the longest picture."""
        longest = max(fact["longest_side"] for fact in facts.values())
        return {"dims": 2, "channels": 2, "patch": [min(self.settings.patch_size, 16 * math.ceil(longest / 16))] * 2}

    # The network and its loss.
    def backbone(self) -> Backbone:
        """U2Fusion's densely connected network."""
        return U2FusionBackbone(self.model.growth, self.model.decoder, self.model.cell)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Sum over the sources of weight * (1 - SSIM + mse_weight * MSE), weights as `preservation` gives them."""
        similarity, losses = SSIMLoss(spatial_dims=2, data_range=1.0, reduction="none"), []
        for source in batch["image"].split(1, dim=1):
            squared = F.mse_loss(prediction, source, reduction="none").mean(dim=(1, 2, 3))
            losses.append(similarity(prediction, source)[:, 0] + self.settings.mse_weight * squared)
        weights = preservation(batch["image"], self.settings.temperature)
        return (weights * torch.stack(losses, dim=1)).sum(dim=1).mean()

    # Cases as the network sees them.
    def prepare(self, case: Batch) -> Batch:
        """Luminances padded at the end to at least one patch; the scores of the plain average and maximum."""
        a, b = case["luminance"]
        scores = {
            f"{measure}_{name}": value
            for name, plain in baselines(a, b).items()
            for measure, value in fusion_scores(plain, a, b).items()
        }
        return self._padded(case) | {"baselines": scores}

    def _padded(self, case: Batch) -> Batch:
        image = SpatialPad(self.spec["patch"], method="end")(torch.from_numpy(case["luminance"])).as_tensor()
        return {"image": image, "size": np.array(case["luminance"].shape[1:]), "chroma": case["chroma"]}

    def augment(self) -> Compose:
        """A patch anywhere, flipped at random; the sources swapped half of the time, as nothing says who is first."""
        crop = RandSpatialCropd("image", self.spec["patch"], random_size=False)
        flips = [RandFlipd("image", prob=0.5, spatial_axis=axis) for axis in range(2)]
        return Compose([SelectItemsd("image"), crop, *flips, Swap(prob=0.5)])

    def view(self, case: Batch) -> Tensor:
        """The central patch."""
        return CenterSpatialCrop(self.spec["patch"])(case["image"]).as_tensor()

    # Evaluation.
    def score(self, forward: Forward, case: Batch) -> dict[str, float | None]:
        """SSIM, VIF, L1, mutual information and Q^AB/F against both sources, beside their average and maximum."""
        a, b = _own(case["image"], case)
        return fusion_scores(self.predict(forward, case), a, b) | case["baselines"]

    def predict(self, forward: Forward, case: Batch) -> Float[np.ndarray, "x y"]:
        """Fused luminance in [0, 1] on the case's own grid; `recombined` puts the sources' colours around it."""
        image = case["image"][None]
        window = [min(self.settings.window_size, side) for side in image.shape[2:]]
        if window == list(image.shape[2:]):
            fused = forward({"image": image})
        else:
            fused = sliding_window_inference(
                image, window, 1, lambda part: forward({"image": part}), overlap=0.25, mode="gaussian"
            )
        return np.clip(_own(torch.as_tensor(fused)[0], case)[0], 0, 1)

    def picture(self, forward: Forward, case: Batch) -> np.ndarray:
        """Source a | source b | fused, in colour where a source is."""
        shown = [*_own(case["image"], case), self.predict(forward, case)]
        chroma = [*case["chroma"], joined_chroma(case["chroma"])]
        return np.concatenate(
            [np.swapaxes(recombined(*pair), 0, 1) for pair in zip(shown, chroma, strict=True)], axis=1
        )

    # Use.
    def infer(self, forward: Forward, item: Mapping[str, Any]) -> Picture:
        """Fused levels on the grid of `image_a`, in colour where a source is; they have no unit, 255 is white."""
        a, b = self._pair(item)
        case = self._case(item, a, b)
        levels, chroma = self.predict(forward, self._padded(case)), case["chroma"]
        if chroma.any():
            levels = recombined(levels, joined_chroma(chroma)).astype(np.float32) / 255
        return Picture(as_stored(levels[:, :, None], a.affine), (0.0, 255.0), a.affine)


def preservation(image: Float[Tensor, "b s h w"], temperature: float) -> Float[Tensor, "b s"]:
    """How much of each source to keep: softmax over the sources of gradient energy / temperature.

    U2Fusion takes the energy from the maps of a pretrained VGG-16 at its five scales (temperature about 3000 there).
    Resolved: from the pictures themselves at five scales, each half the last, because pretrained weights would be one
    more file to trust and to ship; the Laplacian, the squared mean and the softmax are U2Fusion's.

    Args:
        image: the sources, luminance in [0, 1], sides at least 32 pixels.
        temperature: > 0, in squared luminance.

    Returns:
        Weights that sum to 1, without gradient.
    """
    energies, scale = [], image.detach()
    for _ in range(NUM_SCALES):
        neighbours = F.avg_pool2d(F.pad(scale, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
        laplacian = (neighbours - scale) * 9 / 8  # the mean of the eight neighbours less the middle
        energies.append(laplacian.square().mean(dim=(2, 3)))
        scale = F.avg_pool2d(scale, 2)
    return torch.softmax(torch.stack(energies).mean(dim=0) / temperature, dim=1)


def luminance_chroma(
    shades: Float[np.ndarray, "x y"] | Float[np.ndarray, "x y 3"],
) -> tuple[Float[np.ndarray, "x y"], Float[np.ndarray, "2 x y"]]:
    """Full-range YCbCr (ITU-R BT.601, as in JPEG) of grey or RGB shades in [0, 1]; the chroma of grey is 0."""
    if shades.ndim == 2:
        return shades, np.zeros((2, *shades.shape), shades.dtype)
    luminance = shades @ np.array([0.299, 0.587, 0.114], shades.dtype)
    return luminance, np.stack([(shades[..., 2] - luminance) / 1.772, (shades[..., 0] - luminance) / 1.402])


def joined_chroma(chroma: Float[np.ndarray, "s 2 x y"]) -> Float[np.ndarray, "2 x y"]:
    """One chroma of several, the stronger weighing more: beside a grey source exactly that of the coloured one."""
    strength = np.abs(chroma)
    total = strength.sum(axis=0)
    return np.divide((chroma * strength).sum(axis=0), total, out=np.zeros_like(total), where=total > 0)


def recombined(luminance: Float[np.ndarray, "x y"], chroma: Float[np.ndarray, "2 x y"]) -> UInt8[np.ndarray, "x y 3"]:
    """Invert `luminance_chroma` into 8-bit RGB; colours that no screen has are clipped."""
    blue, red = luminance + 1.772 * chroma[0], luminance + 1.402 * chroma[1]
    green = (luminance - 0.299 * red - 0.114 * blue) / 0.587
    return np.round(255 * np.clip(np.stack([red, green, blue], axis=-1), 0, 1)).astype(np.uint8)


def _check_pair(a: Volume, b: Volume) -> None:
    shapes = ["x".join(map(str, volume.array.shape[:3])) for volume in (a, b)]
    if shapes[0] != shapes[1]:
        raise RefusedImage("bad_geometry", f"the images of a pair must have the same size; got {' and '.join(shapes)}")
    if a.array.shape[2] != 1 or min(a.array.shape[:2]) < MIN_SIDE:
        rule = f"the images of a pair must be single slices of at least {MIN_SIDE}x{MIN_SIDE} pixels"
        raise RefusedImage("bad_geometry", f"{rule}; got {shapes[0]}")
    if any(np.array_equal(volume.affine, np.eye(4)) for volume in (a, b)):
        if all(volume.is_picture for volume in (a, b)):
            return  # a PNG does not say where it lies: the site's word is all there is
        # Turned to RAS a section lies another way round than its own export to PNG: the pair would not be registered.
        rule = "both images of a pair must say where they lie, or neither (two PNG, two NIfTI)"
        raise RefusedImage("bad_geometry", f"{rule}; got one that does and one that does not")
    corners = np.array([[x, y, 0, 1] for x in (0, a.array.shape[0] - 1) for y in (0, a.array.shape[1] - 1)])
    shift = float(np.abs(corners @ (a.affine - b.affine).T).max() / min(a.spacing_mm[:2]))
    if shift > MAX_CORNER_SHIFT:
        rule = f"the images of a pair must lie on one grid, corners within {MAX_CORNER_SHIFT} pixels"
        raise RefusedImage("bad_geometry", f"{rule}; got {shift:.2f}")


def _shades(volume: Volume, path: Path) -> Float[np.ndarray, "x y"] | Float[np.ndarray, "x y 3"]:
    """Units of white: 0-255 of colours and pictures / 255; other values from their 0.5th to 99.5th percentile."""
    array = volume.array[:, :, 0].astype(np.float32)
    in_bytes = array.min() >= 0 and array.max() <= 255
    if in_bytes and (array.ndim == 3 or path.suffix.lower() in SUFFIXES):
        return array / 255
    low, high = np.percentile(array, (0.5, 99.5)).astype(np.float32)
    return np.clip((array - low) / max(high - low, np.float32(1e-6)), 0, 1)


def _own(image: Tensor, case: Batch) -> np.ndarray:
    """Without the padding, as an array."""
    width, height = (int(side) for side in case["size"])
    return torch.as_tensor(image)[:, :width, :height].cpu().numpy()
