"""Image fusion: combine two registered pictures of one patient into one, with a network like U2Fusion's.

There is no true fused picture to learn from.  The network always fuses two luminances, so that sites with different
pairs can train together.  The sources may be grey (CT, MR) or in pseudo-colours (PET, SPECT); the colours are added to
the fused luminance afterwards.  Letters: b batch, s sources, h w and x y the axes of a picture (x columns, y rows).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, UInt8
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
from omnifm.records import Json
from omnifm.task import Backbone, Batch, Forward, Task
from omnifm.tasks._windows import predict_in_windows

SOURCES = ("image_a", "image_b")
"""Keys of the two sources in an item."""
NUM_SCALES = 5
"""Number of scales at which `preservation` measures gradients."""
MAX_CORNER_SHIFT = 0.1
"""Largest distance, in pixels, between the same corners of two registered slices: it allows rounding in headers."""


class Swap(RandomizableTransform):
    """Exchange the two sources at random.  (MONAI's RandLambdad needs metadata, which these pictures do not have.)"""

    def __call__(self, data: Batch) -> Batch:
        self.randomize(None)
        return data | {"image": data["image"].flip(0)} if self._do_transform else data


@dataclass(frozen=True, config=STRICT)
class Settings:
    """The task section of an image fusion job."""

    patch_size: Annotated[int, Field(ge=32, multiple_of=16)] = 64
    """Side of a training patch in pixels: a multiple of 16, at least 32.  Large patches cost more.  If all pictures are
    smaller, the patch is smaller."""
    window_size: Annotated[int, Field(ge=64, multiple_of=16)] = 256
    """Largest side that is fused at once, in pixels: a multiple of 16, at least 64.  Larger pictures are fused in
    overlapping windows; large windows need more memory."""
    mse_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 20.0
    """Weight of the squared error in the loss, >= 0; SSIM has weight 1.  0 keeps only structure, a large value mainly
    brightness.  U2Fusion has 20."""
    temperature: Positive = 0.01
    """Difference in gradient energy (in squared luminance) that gives a source e times the weight of the other, > 0.
    Small values keep only the source with stronger edges, large values keep both equally."""


@dataclass(frozen=True, config=STRICT)
class Model:
    """The model section of an image fusion job; the defaults for the widths are U2Fusion's."""

    growth: Count = 44
    """Number of maps that each of the encoder's six layers adds, >= 1; the token width is six times this.  More maps
    fit more and cost more."""
    decoder: Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)] = (128, 64, 32)
    """Number of maps of each decoder layer except the last, 1 to 8 layers.  More maps fit more and cost more."""
    cell: Annotated[int, Field(ge=2, le=64)] = 8
    """Side of the cell that one token stands for, 2 to 64 pixels.  Small cells show more detail and cost more."""


class ImageFusion(Task):
    """Trains with SSIM + squared error against both sources, weighted by their gradients (see `preservation`).

    There is no truth, so SSIM against both sources chooses the checkpoint: it is bounded and symmetric, and it does not
    reward what L1 rewards.  The metrics `..._average` and `..._max` are those of two baselines.
    """

    Settings = Settings
    Model = Model
    required = given = SOURCES
    panels = ("first source", "second source", "fused")
    metrics = {  # noqa: RUF012
        name + suffix: higher
        for suffix in ("", "_average", "_max")
        for name, higher in {"ssim": True, "vif": True, "l1": False, "mi": True, "qabf": True}.items()
    }

    # Before round 0.
    def read(self, item: Json, labels: Mapping[int, str]) -> Batch:
        """Read both sources: luminance (s x y) in [0, 1], and chroma (s 2 x y); see `luminance_chroma`."""
        return self._case(item, *self._pair(item))

    def _pair(self, item: Json) -> list[Volume]:
        """Both sources, in the orientation in which they are stored."""
        burned_in = item.get("burned_in_text", "unknown")
        return [read_volume(item[key], burned_in_text=burned_in) for key in SOURCES]

    def _case(self, item: Json, a: Volume, b: Volume) -> Batch:
        """The luminance and chroma of a pair; refuses a pair that is not registered."""
        volumes = [a.in_ras(), b.in_ras()]
        _check_pair(*volumes)
        parts = [luminance_chroma(_levels(v, item[key])) for v, key in zip(volumes, SOURCES, strict=True)]
        return {"luminance": np.stack([y for y, _ in parts]), "chroma": np.stack([chroma for _, chroma in parts])}

    def case_facts(self, case: Batch) -> Json:
        """Shape in pixels."""
        return {"shape": list(case["luminance"].shape[1:])}

    def facts(self, cases: Sequence[Json], labels: Mapping[int, str]) -> Json:
        """The longest side of all pictures, in pixels."""
        return {"longest_side": max(max(case["shape"]) for case in cases)}

    def agree(self, facts: Mapping[str, Json]) -> Json:
        """Always two channels (the luminances), and a patch that is not larger than the largest picture."""
        longest = max(fact["longest_side"] for fact in facts.values())
        patch = min(self.settings.patch_size, 16 * math.ceil(longest / 16))
        return {"dims": 2, "channels": 2, "patch": [patch, patch]}

    # The network and its loss.
    def backbone(self) -> Backbone:
        """U2Fusion's densely connected network."""
        return U2FusionBackbone(self.model.growth, self.model.decoder, self.model.cell)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Sum over the sources of weight * (1 - SSIM + mse_weight * MSE), with the weights of `preservation`."""
        dissimilarity = SSIMLoss(spatial_dims=2, data_range=1.0, reduction="none")
        losses = []
        for source in batch["image"].split(1, dim=1):
            squared = F.mse_loss(prediction, source, reduction="none").mean(dim=(1, 2, 3))
            losses.append(dissimilarity(prediction, source)[:, 0] + self.settings.mse_weight * squared)
        weights = preservation(batch["image"], self.settings.temperature)
        return (weights * torch.stack(losses, dim=1)).sum(dim=1).mean()

    # Cases as the network sees them.
    def prepare(self, case: Batch) -> Batch:
        """The luminances, padded at the end of each axis to at least one patch; and the scores of the baselines."""
        a, b = case["luminance"]
        scores = {
            f"{measure}_{name}": value
            for name, picture in baselines(a, b).items()
            for measure, value in fusion_scores(picture, a, b).items()
        }
        return self._padded(case) | {"baselines": scores}

    def _padded(self, case: Batch) -> Batch:
        image = SpatialPad(self.spec["patch"], method="end")(torch.from_numpy(case["luminance"])).as_tensor()
        return {"image": image, "size": np.array(case["luminance"].shape[1:]), "chroma": case["chroma"]}

    def augment(self) -> Compose:
        """A random patch with random flips; the sources, whose order is free, are exchanged in half of the samples."""
        crop = RandSpatialCropd("image", self.spec["patch"], random_size=False)
        flips = [RandFlipd("image", prob=0.5, spatial_axis=axis) for axis in range(2)]
        return Compose([SelectItemsd("image"), crop, *flips, Swap(prob=0.5)])

    def view(self, case: Batch) -> Tensor:
        """The central patch."""
        return CenterSpatialCrop(self.spec["patch"])(case["image"]).as_tensor()

    # Evaluation.
    def score(self, forward: Forward, case: Batch) -> dict[str, float | None]:
        """SSIM, VIF, L1, mutual information and Q^AB/F against both sources, for the network and the baselines."""
        a, b = _without_padding(case["image"], case)
        return fusion_scores(self.predict(forward, case), a, b) | case["baselines"]

    def predict(self, forward: Forward, case: Batch) -> Float[np.ndarray, "x y"]:
        """The fused luminance in [0, 1] on the case's own grid; `recombined` adds the sources' colours to it."""
        image = case["image"][None]
        window = [min(self.settings.window_size, side) for side in image.shape[2:]]
        fused = predict_in_windows(forward, image, window, overlap=0.25)
        return np.clip(_without_padding(fused[0], case)[0], 0, 1)

    def picture(self, forward: Forward, case: Batch) -> np.ndarray:
        """Source a | source b | fused, in colour if a source is in colour."""
        luminances = [*_without_padding(case["image"], case), self.predict(forward, case)]
        chromas = [*case["chroma"], joined_chroma(case["chroma"])]
        panels = [recombined(*pair) for pair in zip(luminances, chromas, strict=True)]
        return np.concatenate([np.swapaxes(panel, 0, 1) for panel in panels], axis=1)

    # Use.
    def infer(self, forward: Forward, item: Json) -> Picture:
        """The fused picture on the grid of `image_a`, in colour if a source is in colour; 0 is black, 255 is white."""
        a, b = self._pair(item)
        case = self._case(item, a, b)
        levels = self.predict(forward, self._padded(case))
        chroma = case["chroma"]
        if chroma.any():
            levels = recombined(levels, joined_chroma(chroma)).astype(np.float32) / 255
        return Picture(as_stored(levels[:, :, None], a.affine), (0.0, 255.0), a.affine)


def preservation(image: Float[Tensor, "b s h w"], temperature: float) -> Float[Tensor, "b s"]:
    """How much of each source to keep: the softmax over the sources of gradient energy / temperature.

    The gradient energy is the mean of the squared Laplacian, averaged over several scales, as in U2Fusion.
    Resolved: U2Fusion computes it on the feature maps of a pretrained VGG-16, at its five scales (with a temperature of
    about 3000).  We compute it on the pictures, at five scales that each halve the side, because pretrained weights
    would be one more file to check and to ship.

    Args:
        image: luminance of the sources in [0, 1]; each side at least 32 pixels.
        temperature: > 0, in squared luminance.

    Returns:
        weights that sum to 1 over the sources, without gradient.
    """
    energies = []
    scale = image.detach()
    for _ in range(NUM_SCALES):
        neighbours = F.avg_pool2d(F.pad(scale, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
        laplacian = (neighbours - scale) * 9 / 8  # mean of the eight neighbours - middle
        energies.append(laplacian.square().mean(dim=(2, 3)))
        scale = F.avg_pool2d(scale, 2)
    return torch.softmax(torch.stack(energies).mean(dim=0) / temperature, dim=1)


def luminance_chroma(
    shades: Float[np.ndarray, "x y"] | Float[np.ndarray, "x y 3"],
) -> tuple[Float[np.ndarray, "x y"], Float[np.ndarray, "2 x y"]]:
    """Y and (Cb, Cr) of grey or RGB levels in [0, 1]: full-range YCbCr (ITU-R BT.601, as in JPEG); grey has chroma 0.

    >>> luminance, chroma = luminance_chroma(np.array([[0.5]]))
    >>> luminance.tolist(), chroma.tolist()
    ([[0.5]], [[[0.0]], [[0.0]]])
    """
    if shades.ndim == 2:
        return shades, np.zeros((2, *shades.shape), shades.dtype)
    luminance = shades @ np.array([0.299, 0.587, 0.114], shades.dtype)
    return luminance, np.stack([(shades[..., 2] - luminance) / 1.772, (shades[..., 0] - luminance) / 1.402])


def joined_chroma(chroma: Float[np.ndarray, "s 2 x y"]) -> Float[np.ndarray, "2 x y"]:
    """The weighted mean of the sources' chroma, where stronger colours have more weight.

    With one grey and one coloured source it is exactly the chroma of the coloured one.
    """
    strength = np.abs(chroma)
    total = strength.sum(axis=0)
    return np.divide((chroma * strength).sum(axis=0), total, out=np.zeros_like(total), where=total > 0)


def recombined(luminance: Float[np.ndarray, "x y"], chroma: Float[np.ndarray, "2 x y"]) -> UInt8[np.ndarray, "x y 3"]:
    """The 8-bit RGB picture of a luminance and a chroma; the inverse of `luminance_chroma`.  Values are clipped."""
    blue = luminance + 1.772 * chroma[0]
    red = luminance + 1.402 * chroma[1]
    green = (luminance - 0.299 * red - 0.114 * blue) / 0.587
    return np.round(255 * np.clip(np.stack([red, green, blue], axis=-1), 0, 1)).astype(np.uint8)


def _check_pair(a: Volume, b: Volume) -> None:
    """Refuse two sources that are not single slices of one size on one grid.

    Raises:
        RefusedImage: `bad_geometry`.
    """
    shapes = ["x".join(map(str, volume.array.shape[:3])) for volume in (a, b)]
    if shapes[0] != shapes[1]:
        raise RefusedImage("bad_geometry", f"the images of a pair must have the same size; got {' and '.join(shapes)}")
    if a.array.shape[2] != 1 or min(a.array.shape[:2]) < MIN_SIDE:
        rule = f"the images of a pair must be single slices of at least {MIN_SIDE}x{MIN_SIDE} pixels"
        raise RefusedImage("bad_geometry", f"{rule}; got {shapes[0]}")
    if any(np.array_equal(volume.affine, np.eye(4)) for volume in (a, b)):
        if all(volume.is_picture for volume in (a, b)):
            return  # pictures such as PNG have no position; that they are registered cannot be checked
        # Turned to RAS, a slice has another orientation than its own export as PNG: the two would not be registered.
        rule = "both images of a pair must say where they lie, or neither (two PNG, two NIfTI)"
        raise RefusedImage("bad_geometry", f"{rule}; got one that does and one that does not")
    corners = np.array([[x, y, 0, 1] for x in (0, a.array.shape[0] - 1) for y in (0, a.array.shape[1] - 1)])
    shift = float(np.abs(corners @ (a.affine - b.affine).T).max() / min(a.spacing_mm[:2]))
    if shift > MAX_CORNER_SHIFT:
        rule = f"the images of a pair must lie on one grid, corners within {MAX_CORNER_SHIFT} pixels"
        raise RefusedImage("bad_geometry", f"{rule}; got {shift:.2f}")


def _levels(volume: Volume, path: Path) -> Float[np.ndarray, "x y"] | Float[np.ndarray, "x y 3"]:
    """Levels from 0 (black) to 1 (white).

    RGB values and pictures such as PNG with values from 0 to 255 are divided by 255.  Other values are scaled so that
    their percentiles 0.5 and 99.5 become 0 and 1.
    """
    array = volume.array[:, :, 0].astype(np.float32)
    in_bytes = array.min() >= 0 and array.max() <= 255
    if in_bytes and (array.ndim == 3 or path.suffix.lower() in SUFFIXES):
        return array / 255
    low, high = np.percentile(array, (0.5, 99.5)).astype(np.float32)
    return np.clip((array - low) / max(high - low, np.float32(1e-6)), 0, 1)


def _without_padding(image: Tensor, case: Batch) -> Float[np.ndarray, "c x y"]:
    """The image without what `prepare` added at the end of each axis."""
    width, height = (int(side) for side in case["size"])
    return torch.as_tensor(image)[:, :width, :height].cpu().numpy()
