"""Segmentation: a class for every voxel of a 3-D volume or pixel of a picture, with MONAI's UNet.

Cases are turned to RAS, brought to the federation's common spacing (3-D) or image size (2-D), and scored on their own
grid, in their own millimetres.  Letters: b batch, c channels, x y z axes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.transforms import (
    CenterSpatialCrop,
    ClipIntensityPercentiles,
    Compose,
    NormalizeIntensity,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    Resize,
    SelectItemsd,
    SpatialPad,
    map_binary_to_indices,
)
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from omnifm.backbones.unet import UNetBackbone
from omnifm.config import STRICT, Count, Positive
from omnifm.data.prediction import LabelMap, as_stored
from omnifm.data.volume import RefusedImage, Volume, read_label, read_volume
from omnifm.metrics.overlap import overlap
from omnifm.task import Backbone, Batch, Forward, Task
from omnifm.tasks._pictures import common_channels, in_channels

MAX_LABELS = 256
"""Class numbers are held in a byte per voxel."""
logger = logging.getLogger("omnifm.tasks.segmentation")


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Segmentation's task section."""

    spacing_mm: Literal["auto"] | tuple[Positive, Positive, Positive] = "auto"
    """Common voxel size of 3-D volumes, mm; auto is the median over the sites' medians."""
    patch_size: Annotated[int, Field(ge=16, multiple_of=16)] = 64
    """Longest side of a 3-D training patch, voxels; smaller where the volumes are."""
    image_size: Annotated[int, Field(ge=32, multiple_of=16)] = 128
    """Side that pictures are resized to, pixels."""


@dataclass(frozen=True, config=STRICT)
class Model:
    """Segmentation's model section: MONAI's residual UNet."""

    channels: Annotated[tuple[Count, ...], Field(min_length=2, max_length=8)] = (16, 32, 64, 128)
    """Width of each level, top first; each level halves the side."""
    norm: Literal["instance", "batch", "group"] = "instance"
    """Normalisation; instance has nothing to share, batch has statistics of one hospital's scanner."""


class Segmentation(Task):
    """Dice + cross-entropy; Dice, IoU and HD95 per case."""

    Settings = Settings
    Model = Model
    required = ("image", "label")
    given = ("image",)
    metrics = {"dice": True, "iou": True, "hd95_mm": False}  # noqa: RUF012

    # Before round 0.
    def read(self, item: Mapping[str, Any], labels: Mapping[int, str]) -> Batch:
        """Read image and mask on one grid, in RAS; classes are numbered in the order of the label values."""
        if not isinstance(item["label"], Path):
            raise RefusedImage("not_an_image", "label must be the path of a mask; it is a class")
        if len(labels) > MAX_LABELS:
            raise RefusedImage("label_values", f"'labels' must name at most {MAX_LABELS} values; got {len(labels)}")
        volume = read_volume(item["image"], burned_in_text=item.get("burned_in_text", "unknown"))
        mask = Volume(read_label(item["label"], volume, labels), volume.affine).in_ras()
        classes = np.searchsorted(sorted(labels), mask.array).astype(np.uint8)
        return _case(volume.in_ras(), classes)

    def case_facts(self, case: Batch) -> dict[str, Any]:
        """Dimensions, channels, shape in voxels and spacing in mm."""
        shape = case["array"].shape
        return {
            "dims": 3 if shape[2] > 1 else 2,
            "channels": shape[3],
            "shape": list(shape[:3]),
            "spacing_mm": case["spacing_mm"].tolist(),
        }

    def facts(self, cases: Sequence[Mapping[str, Any]], labels: Mapping[int, str]) -> dict[str, Any]:
        """Dimensions, one per site; channels; labels; median spacing, largest extent in mm."""
        dims = sorted({case["dims"] for case in cases})
        if len(dims) != 1:
            raise ValueError(f"a site's cases must have one number of dims; got {dims}")
        found: dict[str, Any] = {
            "dims": dims[0],
            "channels": common_channels((case["channels"] for case in cases), "a site's cases"),
            "labels": {str(value): labels[value] for value in sorted(labels)},
        }
        spacing = np.median([case["spacing_mm"] for case in cases], axis=0)
        extent = np.max([np.multiply(case["shape"], case["spacing_mm"]) for case in cases], axis=0)
        return found | {"spacing_mm": np.round(spacing, 3).tolist(), "extent_mm": np.ceil(extent).tolist()}

    def agree(self, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Equal dimensions and label values; the median spacing; a patch no longer than the longest volume.

        Colour if any site has colour.  A value may mean a lesion at one site and a vessel at another, each with its own
        modality, and is then named after both; one name under two values is a mistake.
        """
        said = {site: fact["dims"] for site, fact in facts.items()}
        if len(set(said.values())) > 1:
            raise ValueError(f"sites must agree on dims; got {said}")
        first = next(iter(facts.values()))
        channels = common_channels((fact["channels"] for fact in facts.values()), "sites")
        spec = {"dims": first["dims"], "channels": channels, "labels": _joined(facts), "spacing_mm": None}
        if spec["dims"] == 2:
            return spec | {"patch": [self.settings.image_size] * 2}
        spacing = np.median([fact["spacing_mm"] for fact in facts.values()], axis=0)
        spacing = spacing if self.settings.spacing_mm == "auto" else np.array(self.settings.spacing_mm)
        longest = np.max([fact["extent_mm"] for fact in facts.values()], axis=0) / spacing
        patch = [min(self.settings.patch_size, 16 * math.ceil(side / 16)) for side in longest]
        return spec | {"spacing_mm": np.round(spacing, 3).tolist(), "patch": patch}

    # The network and its loss.
    def backbone(self) -> Backbone:
        """MONAI UNet with one output per label."""
        spec, model = self.spec, self.model
        if min(spec["patch"]) < 2 ** len(model.channels):
            rule = f"model.channels must leave 2 voxels of the patch {spec['patch']}"
            raise ValueError(f"{rule}; got {len(model.channels)} levels")
        return UNetBackbone(spec["dims"], spec["channels"], len(spec["labels"]), model.channels, model.norm)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Dice (foreground) + cross-entropy."""
        return DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)(prediction, batch["label"])

    # Cases as the network sees them.
    def prepare(self, case: Batch) -> Batch:
        """Common grid, clipped and standardised intensities, padded at the end to at least one patch."""
        flat = self.spec["dims"] == 2
        image = torch.from_numpy(in_channels(case["array"], self.spec["channels"]).astype(np.float32))
        label = torch.from_numpy(case["native_label"])[None].float()
        image, label = (image[..., 0], label[..., 0]) if flat else (image, label)
        size = self._size(case)
        if tuple(size) != tuple(image.shape[1:]):
            smooth = bool(np.any(np.array(size) < np.array(image.shape[1:])))
            image = Resize(size, mode="bilinear" if flat else "trilinear", anti_aliasing=smooth)(image)
            label = Resize(size, mode="nearest-exact")(label)
        image = NormalizeIntensity(channel_wise=True)(ClipIntensityPercentiles(0.5, 99.5, channel_wise=True)(image))
        pad = SpatialPad(self.spec["patch"], method="end")
        image, label = pad(image).as_tensor(), pad(label).as_tensor()
        foreground, background = map_binary_to_indices(label.numpy())
        return {
            "image": image,
            "label": label,
            "fg": foreground,
            "bg": background,
            "size": np.array(size),
            "native_label": case["native_label"],
            "spacing_mm": case["spacing_mm"],
        }

    def _size(self, case: Batch) -> list[int]:
        if self.spec["dims"] == 2:
            return list(self.spec["patch"])
        shape, ratio = np.array(case["native_label"].shape), case["spacing_mm"] / np.array(self.spec["spacing_mm"])
        near = np.abs(ratio - 1) < 0.02  # a header's rounding is no reason to interpolate
        return np.maximum(1, np.where(near, shape, np.round(shape * ratio))).astype(int).tolist()

    def augment(self) -> Compose:
        """A patch, half of the time around foreground; random flips and intensities."""
        both = ["image", "label"]
        crop = RandCropByPosNegLabeld(
            both, "label", self.spec["patch"], pos=1, neg=1, num_samples=1, fg_indices_key="fg", bg_indices_key="bg"
        )
        flips = [RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(self.spec["dims"])]
        tones = [
            RandScaleIntensityd("image", factors=0.1, prob=0.5),
            RandShiftIntensityd("image", offsets=0.1, prob=0.5),
        ]
        return Compose([crop, *flips, *tones, SelectItemsd(both)])

    def view(self, case: Batch) -> Tensor:
        """The central patch."""
        return CenterSpatialCrop(self.spec["patch"])(case["image"]).as_tensor()

    # Evaluation.
    def score(self, forward: Forward, case: Batch) -> dict[str, float | None]:
        """Dice, IoU and HD95 on the case's own grid."""
        x, y, z = (float(side) for side in case["spacing_mm"])
        predicted = self.predict(forward, case)
        return overlap(predicted, case["native_label"].astype(np.int64), len(self.spec["labels"]), (x, y, z))

    def predict(self, forward: Forward, case: Batch) -> np.ndarray:
        """Class numbers (x y z) on the case's own grid."""
        image, patch = case["image"][None], self.spec["patch"]
        if list(image.shape[2:]) == list(patch):
            logits = forward({"image": image})
        else:
            logits = sliding_window_inference(
                image, patch, 1, lambda window: forward({"image": window}), overlap=0.25, mode="gaussian"
            )
        inside: tuple[Any, ...] = (..., *(slice(0, int(side)) for side in case["size"]))
        logits = torch.as_tensor(logits)[inside]
        native = case["native_label"].shape[: self.spec["dims"]]
        if tuple(logits.shape[2:]) != tuple(native):
            logits = F.interpolate(logits, size=tuple(native), mode="bilinear" if len(native) == 2 else "trilinear")
        return logits.argmax(1)[0].cpu().numpy().astype(np.int64).reshape(case["native_label"].shape)

    def picture(self, forward: Forward, case: Batch) -> np.ndarray:
        """Image | truth | prediction on the slice with the most foreground."""
        truth, predicted = case["native_label"], self.predict(forward, case)
        z = int((truth > 0).sum(axis=(0, 1)).argmax())
        image = case["image"][:, *(slice(0, int(side)) for side in case["size"])]
        shown = F.interpolate(image[None], size=truth.shape[: image.ndim - 1], mode="nearest-exact")[0].cpu().numpy()
        rgb = _rgb(shown if image.ndim == 3 else shown[..., z])
        panels = [_painted(rgb, 0 * truth[..., z]), _painted(rgb, truth[..., z]), _painted(rgb, predicted[..., z])]
        flip = slice(None, None, -1 if self.spec["dims"] == 3 else 1)  # anterior up
        return np.concatenate([np.swapaxes(p, 0, 1)[flip] for p in panels], axis=1)

    # Use.
    def infer(self, forward: Forward, item: Mapping[str, Any]) -> LabelMap:
        """Classes on the image's own grid."""
        volume = read_volume(item["image"], burned_in_text=item.get("burned_in_text", "unknown"))
        turned = volume.in_ras()
        # Background stands in for the mask that nobody has drawn.
        case = _case(turned, np.zeros(turned.array.shape[:3], np.uint8))
        facts, spec = self.case_facts(case), self.spec
        if facts["dims"] != spec["dims"] or facts["channels"] not in (1, spec["channels"]):
            rule = f"image must be {spec['dims']}-D with {spec['channels']} channel(s) for this model"
            raise RefusedImage("bad_geometry", f"{rule}; got {facts['dims']}-D with {facts['channels']}")
        values = as_stored(self.predict(forward, self.prepare(case)).astype(np.uint8), volume.affine)
        names = {number: spec["labels"][value] for number, value in enumerate(sorted(spec["labels"], key=int))}
        shown = None
        if values.shape[2] == 1:
            array = as_stored(case["array"], volume.affine)[:, :, 0]
            shown = np.ascontiguousarray(_painted(_rgb(np.moveaxis(array, -1, 0)), values[..., 0]).swapaxes(0, 1))
        return LabelMap(values, volume.affine, names, shown)


def _joined(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Label value -> the sites' names for it, in alphabetical order, " / " between them.

    Raises:
        ValueError: sites use different values, or one name for two of them.
    """
    said = {site: sorted(fact["labels"], key=int) for site, fact in facts.items()}
    if len(set(map(tuple, said.values()))) > 1:
        raise ValueError(f"sites must agree on label values; got {said}")
    names: dict[str, set[str]] = {value: set() for value in next(iter(said.values()))}
    values: dict[str, str] = {}
    for site, fact in facts.items():
        for value, name in fact["labels"].items():
            if values.setdefault(name, value) != value:
                raise ValueError(
                    f"{name!r} must be one label value at all sites; got {values[name]} and {value}, {site!r}"
                )
            names[value].add(name)
    joined = {value: " / ".join(sorted(own)) for value, own in names.items()}
    if several := [name for value, name in joined.items() if len(names[value]) > 1]:
        logger.warning("sites name the same label value differently: %s", "; ".join(several))
    return joined


def _case(volume: Volume, classes: np.ndarray) -> Batch:
    """A case from a volume and its class numbers, both in RAS."""
    array = volume.array if volume.array.ndim == 4 else volume.array[..., None]
    return {"array": array, "native_label": classes, "spacing_mm": np.array(volume.spacing_mm)}


def _rgb(shown: np.ndarray) -> np.ndarray:
    """Channels (c x y) of any values as colours (x y 3) from 0 to 1; of other than three the first, in grey."""
    low, high = np.percentile(shown, (1, 99))
    grey = np.clip((shown - low) / max(float(high - low), 1e-6), 0, 1)
    return np.moveaxis(grey if len(grey) == 3 else np.repeat(grey[:1], 3, axis=0), 0, -1)


COLOURS = np.array([[0, 0, 0], [0, 158, 115], [213, 94, 0], [86, 180, 233], [230, 159, 0], [204, 121, 167]]) / 255


def _painted(rgb: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Classes in a colour-blind-safe palette over the picture; uint8."""
    colour = COLOURS[np.where(classes > 0, (classes - 1) % (len(COLOURS) - 1) + 1, 0)]
    mixed = np.where(classes[..., None] > 0, 0.5 * rgb + 0.5 * colour, rgb)
    return (255 * mixed).astype(np.uint8)
