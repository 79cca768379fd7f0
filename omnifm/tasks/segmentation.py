"""Segmentation: a class for each voxel of a volume or pixel of a picture, with MONAI's UNet.

Images are turned to RAS and resized to the federation's common spacing (volumes) or image size (pictures).  Predictions
are scored on the image's own grid, in its own millimetres.  Letters: b batch, c channels, x y z axes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from monai.losses import DiceCELoss
from monai.transforms import (
    CenterSpatialCrop,
    ClipIntensityPercentiles,
    Compose,
    NormalizeIntensity,
    RandCropByPosNegLabeld,
    RandFlipd,
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
from omnifm.metrics.lesions import lesions
from omnifm.metrics.overlap import average, overlap_by_class
from omnifm.records import Json
from omnifm.statistics import MAX_CLASSES, Statistics
from omnifm.task import Backbone, Batch, Forward, Planned, Task
from omnifm.tasks._augment import random_acquisition, random_intensities, random_shapes
from omnifm.tasks._dimensions import check_fits_model, dims_of_cases, dims_of_sites, resized
from omnifm.tasks._pictures import as_rgb, common_channels, in_channels
from omnifm.tasks._plan import BATCH, GIB, activation_bytes, planned_patch, planned_spacing
from omnifm.tasks._windows import predict_in_windows

MAX_LABELS = 256
"""Class numbers are stored in one byte per voxel."""
SPACING_TOLERANCE = 0.02
"""Spacings that differ by less than this share count as equal: headers are rounded, and resizing loses detail."""
COLOURS = np.array([[0, 0, 0], [0, 158, 115], [213, 94, 0], [86, 180, 233], [230, 159, 0], [204, 121, 167]]) / 255
"""RGB colours of background and of the classes, for the colour-blind too (Okabe and Ito 2008); classes repeat them."""
logger = logging.getLogger("omnifm.tasks.segmentation")


@dataclass(frozen=True, config=STRICT)
class Settings:
    """The task section of a segmentation job."""

    spacing_mm: Literal["auto"] | tuple[Positive, Positive, Positive] = "auto"
    """Common voxel size of volumes in mm (x, y, z), each > 0.  Small voxels keep details, large ones are fast.  "auto"
    is the median of the sites' median spacings."""
    patch_size: Literal["auto"] | Annotated[int, Field(ge=16, multiple_of=16)] = 64
    """Largest side of a training patch, in voxels or pixels: a multiple of 16, at least 16.  Large patches show more of
    the surroundings and need more memory.  Along an axis where all images are smaller, the patch is smaller.  "auto" is
    the sites' median image, made smaller until two patches fit `memory_gib`."""
    memory_gib: Positive = 4.0
    """Memory for what the network keeps of two patches in a training step, in GiB, > 0; used by `patch_size` "auto"."""
    image_size: Literal["native"] | Annotated[int, Field(ge=32, multiple_of=16)] = 128
    """Side of the square to which pictures are resized, in pixels: a multiple of 16, at least 32.  Small values are
    fast, large values keep details.  "native" resizes nothing: pictures are trained on in patches, as volumes are."""
    foreground: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the training patches whose centre is a voxel of the foreground, in [0, 1].  The others are centred in
    the background."""
    augmentation: Literal["none", "light", "full"] = "light"
    """Random changes of training patches.  "light": mirroring, brightness and contrast.  "full": also rotation,
    scaling, noise, blur, gamma and low resolution, as nnU-Net does; better with few cases and long training."""
    mirror: bool = True
    """Whether training patches are mirrored.  Choose false if left and right are different labels."""
    intensities: Literal["image", "nonzero"] = "image"
    """What the intensities of an image are standardised by: all of its voxels, or those that are not 0 (for images
    whose background was set to 0, such as brains without skull)."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of a window that its neighbour covers too when an image is predicted in windows, in [0, 1)."""
    mirror_prediction: bool = False
    """Whether predictions are averaged over all mirrored images: slightly better, and 4 (2-D) or 8 times as slow."""


@dataclass(frozen=True, config=STRICT)
class Model:
    """The model section of a segmentation job: MONAI's residual UNet."""

    channels: Annotated[tuple[Count, ...], Field(min_length=2, max_length=8)] = (16, 32, 64, 128)
    """Width of each of the 2 to 8 levels, top first.  From level to level the side is halved.  More levels see more of
    the surroundings; wider levels fit more; both cost more."""
    norm: Literal["instance", "batch", "group"] = "instance"
    """Normalisation.  "instance" has nothing to share between sites; "batch" has weights and statistics, and the
    statistics depend on the hospital's scanner; "group" has weights but no statistics."""


class Segmentation(Task):
    """Trains with Dice loss + cross-entropy; the metrics are Dice, IoU and HD95 of each case."""

    Settings = Settings
    Model = Model
    required = ("image", "label")
    given = ("image",)
    panels = ("image", "reference", "prediction")
    metrics = {"dice": True, "iou": True, "hd95_mm": False}  # noqa: RUF012

    # Before round 0.
    def read(self, item: Json, labels: Mapping[int, str]) -> Batch:
        """Read image and mask, turned to RAS; classes are numbered in the order of the label values."""
        if not isinstance(item["label"], Path):
            raise RefusedImage("not_an_image", "label must be the path of a mask; it is a class")
        if len(labels) > MAX_LABELS:
            raise RefusedImage("label_values", f"'labels' must name at most {MAX_LABELS} values; got {len(labels)}")
        volume = read_volume(item["image"], burned_in_text=item.get("burned_in_text", "unknown"))
        mask = Volume(read_label(item["label"], volume, labels), volume.affine).in_ras()
        classes = np.searchsorted(sorted(labels), mask.array).astype(np.uint8)
        return _case(volume.in_ras(), classes)

    def case_facts(self, case: Batch) -> Json:
        """Dimensions, channels, shape in voxels, and spacing in mm."""
        shape = case["array"].shape
        return {
            "dims": 3 if shape[2] > 1 else 2,
            "channels": shape[3],
            "shape": list(shape[:3]),
            "spacing_mm": case["spacing_mm"].tolist(),
        }

    def facts(self, cases: Sequence[Json], labels: Mapping[int, str]) -> Json:
        """Dimensions, channels, label names; spacing (median, 10th percentile) and extent (largest, median) in mm."""
        dims = dims_of_cases(cases)
        spacing = np.median([case["spacing_mm"] for case in cases], axis=0)
        finest = np.percentile([case["spacing_mm"] for case in cases], 10, axis=0)
        sizes = [np.multiply(case["shape"], case["spacing_mm"]) for case in cases]
        extent, median = np.max(sizes, axis=0), np.median(sizes, axis=0)
        return {
            "dims": dims,
            "channels": common_channels((case["channels"] for case in cases), "a site's cases"),
            "labels": {str(value): labels[value] for value in sorted(labels)},
            "spacing_mm": np.round(spacing, 3).tolist(),
            "finest_mm": np.round(finest, 3).tolist(),
            "extent_mm": np.ceil(extent).tolist(),
            "median_mm": np.ceil(median).tolist(),
        }

    def agree(self, facts: Mapping[str, Json]) -> Json:
        """Dimensions and label values, which must be equal at all sites; channels; common spacing; size of a patch.

        If one site has RGB images, grey images of the other sites are converted to RGB.  A label value may have
        different names at different sites (a lesion in one modality, a vessel in another); it then gets all names.  One
        name with two values is refused.
        """
        dims = dims_of_sites(facts)
        channels = common_channels((fact["channels"] for fact in facts.values()), "sites")
        spec = {"dims": dims, "channels": channels, "labels": _joined_names(facts), "spacing_mm": None}
        if dims == 2 and self.settings.image_size != "native":
            return spec | {"patch": [self.settings.image_size] * 2}
        unit = np.ones(3)  # pictures have no millimetres: their unit is the pixel
        if dims == 3:
            unit = np.array(self._common_spacing(list(facts.values())))
            spec["spacing_mm"] = np.round(unit, 3).tolist()
        longest = (np.max([fact["extent_mm"] for fact in facts.values()], axis=0) / unit)[:dims].tolist()
        median = (np.median([fact["median_mm"] for fact in facts.values()], axis=0) / unit)[:dims].tolist()
        return spec | {"patch": self._patch(spec, longest, median)}

    def _common_spacing(self, facts: Sequence[Json]) -> Sequence[float]:
        """The voxel size of volumes, mm: the job's, or planned from the sites'."""
        if self.settings.spacing_mm != "auto":
            return self.settings.spacing_mm
        return planned_spacing([fact["spacing_mm"] for fact in facts], [fact["finest_mm"] for fact in facts])

    def _patch(self, spec: Json, longest: Sequence[float], median: Sequence[float]) -> list[int]:
        """Sides of a patch, from the longest and the median image on the common grid."""
        if self.settings.patch_size != "auto":
            return [min(self.settings.patch_size, 16 * math.ceil(side / 16)) for side in longest]

        def network(patch: list[int]) -> Backbone:
            task = Segmentation(self.settings, self.model)
            task.configure(spec | {"patch": patch})
            return task.backbone()

        return planned_patch(median, self.settings.memory_gib, network, spec["channels"])

    def planned(self) -> list[Planned]:
        """Dimensions, size of voxels, patch, and the memory that training on two patches takes."""
        spec, settings = self.spec, self.settings
        grid = "resized to a square" if spec["dims"] == 2 else "resized to the common size of voxels"
        grid = "as they are" if spec["dims"] == 2 and settings.image_size == "native" else grid
        rows = [
            Planned("Images", f"{spec['dims']}-D, {spec['channels']} channel(s), {grid}", "the same at all sites"),
            Planned("Labels", ", ".join(spec["labels"].values()), "the same at all sites"),
        ]
        if spec["spacing_mm"] is not None:
            by_data = "median of the sites; 10th percentile of a coarse axis"
            size = " x ".join(f"{side:g}" for side in spec["spacing_mm"])
            rows.append(Planned("Voxel, mm", size, by_data if settings.spacing_mm == "auto" else "task.spacing_mm"))
        if spec["dims"] == 2 and settings.image_size != "native":
            why = "task.image_size"
        elif settings.patch_size == "auto":
            why = "the median image, made smaller until it fits task.memory_gib"
        else:
            why = "task.patch_size at most, and no longer than the images"
        rows.append(Planned("Patch", " x ".join(map(str, spec["patch"])), why))
        needed = activation_bytes(self.backbone, [BATCH, spec["channels"], *spec["patch"]]) / GIB
        rows.append(Planned("Memory, GiB", f"{needed:.2f}", f"for {BATCH} patches in a training step of the network"))
        return rows

    # The network and its loss.
    def backbone(self) -> Backbone:
        """MONAI's UNet with one output per label value.

        Raises:
            ValueError: the model has so many levels that less than 2 voxels of a patch are left at the bottleneck.
        """
        spec = self.spec
        widths = self.model.channels
        if min(spec["patch"]) < 2 ** len(widths):
            rule = f"model.channels must leave 2 voxels of the patch {spec['patch']}"
            raise ValueError(f"{rule}; got {len(widths)} levels")
        return UNetBackbone(spec["dims"], spec["channels"], len(spec["labels"]), widths, self.model.norm)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Dice loss of the foreground classes + cross-entropy."""
        return DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)(prediction, batch["label"])

    # Cases as the network sees them.
    def prepare(self, case: Batch) -> Batch:
        """The image and its mask on the common grid, with clipped and standardised intensities.

        Both are padded at the end of each axis to at least one patch.
        """
        image = torch.from_numpy(in_channels(case["array"], self.spec["channels"]).astype(np.float32))
        label = torch.from_numpy(case["native_label"])[None].float()
        if self.spec["dims"] == 2:
            image = image[..., 0]
            label = label[..., 0]
        size = self._size(case)
        if list(size) != list(image.shape[1:]):
            image = resized(image, size)
            label = Resize(size, mode="nearest-exact")(label)
        image = ClipIntensityPercentiles(0.5, 99.5, channel_wise=True)(image)
        image = NormalizeIntensity(channel_wise=True, nonzero=self.settings.intensities == "nonzero")(image)
        pad = SpatialPad(self.spec["patch"], method="end")
        image = pad(image).as_tensor()
        label = pad(label).as_tensor()
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
        """Size of a case on the common grid."""
        shape = np.array(case["native_label"].shape)
        if self.spec["dims"] == 2:
            return list(self.spec["patch"] if self.settings.image_size != "native" else shape[:2])
        ratio = case["spacing_mm"] / np.array(self.spec["spacing_mm"])
        is_equal = np.abs(ratio - 1) < SPACING_TOLERANCE
        return np.maximum(1, np.where(is_equal, shape, np.round(shape * ratio))).astype(int).tolist()

    def augment(self) -> Compose:
        """A random patch, around foreground in a share of the samples, with the random changes of `augmentation`."""
        both = ["image", "label"]
        dims, kind = self.spec["dims"], self.settings.augmentation
        share = self.settings.foreground
        crop = RandCropByPosNegLabeld(
            both, "label", self.spec["patch"], pos=share, neg=1 - share, fg_indices_key="fg", bg_indices_key="bg"
        )
        shapes = random_shapes(both, dims) if kind == "full" else []
        flips = [RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(dims)] if self.settings.mirror else []
        values = {"none": [], "light": random_intensities(), "full": random_acquisition(dims)}[kind]
        return Compose([crop, *shapes, *([] if kind == "none" else flips), *values, SelectItemsd(both)])

    def view(self, case: Batch) -> Tensor:
        """The central patch."""
        return CenterSpatialCrop(self.spec["patch"])(case["image"]).as_tensor()

    # Evaluation.
    def score(self, forward: Forward, case: Batch) -> dict[str, float | None]:
        """Dice, IoU and HD95 on the case's own grid, see `metrics.overlap`.

        For `details` also the Dice of each label (`label 1` for the first after background), the number of lesions, and
        how many of them were missed.
        """
        x, y, z = (float(side) for side in case["spacing_mm"])
        predicted, truth = self.predict(forward, case), case["native_label"].astype(np.int64)
        rows = overlap_by_class(predicted, truth, len(self.spec["labels"]), (x, y, z))
        found = lesions(predicted, truth)
        by_label = {f"label {number}": row["dice"] for number, row in enumerate(rows, start=1)}
        return average(rows) | by_label | {"lesions": float(found.total), "missed": float(found.missed)}

    def details(self, scores: Sequence[Mapping[str, float | None]]) -> Statistics:
        """Dice of each label over the cases that have it or are given it, and the missed lesions."""
        names = [name for _, name in sorted(self.spec["labels"].items(), key=lambda pair: int(pair[0]))]
        classes: dict[str, dict[str, int | float | None]] = {}
        for number, name in enumerate(names[1:], start=1):
            dice = [value for row in scores if (value := row[f"label {number}"]) is not None]
            classes[name] = {"cases": len(dice), "dice": float(np.mean(dice)) if dice else None}
        totals = [int(row["lesions"] or 0) for row in scores]
        missed = sum(int(row["missed"] or 0) for row in scores)
        found: Statistics = {
            "lesions": {"cases": sum(total > 0 for total in totals), "total": sum(totals), "missed": missed}
        }
        return found | {"classes": classes} if len(classes) <= MAX_CLASSES else found

    def predict(self, forward: Forward, case: Batch) -> np.ndarray:
        """Class numbers (x y z) on the case's own grid."""
        return _classes_of(self._logits(forward, case), case)

    def _logits(self, forward: Forward, case: Batch) -> Tensor:
        """What the network says of each voxel (1, classes, *space), on the case's own grid."""
        window, overlap = self.spec["patch"], self.settings.overlap
        mirrored = self.settings.mirror_prediction
        logits = predict_in_windows(forward, case["image"][None], window, overlap=overlap, mirrored=mirrored)
        logits = _without_padding(logits, case)
        native = tuple(case["native_label"].shape[: self.spec["dims"]])
        if tuple(logits.shape[2:]) != native:
            logits = F.interpolate(logits, size=native, mode="bilinear" if len(native) == 2 else "trilinear")
        return logits

    def picture(self, forward: Forward, case: Batch) -> np.ndarray:
        """Image | truth | prediction, in the slice with the most foreground."""
        truth = case["native_label"]
        predicted = self.predict(forward, case)
        z = int((truth > 0).sum(axis=(0, 1)).argmax())
        image = _without_padding(case["image"], case)
        shown = F.interpolate(image[None], size=truth.shape[: image.ndim - 1], mode="nearest-exact")[0].cpu().numpy()
        rgb = as_rgb(shown if image.ndim == 3 else shown[..., z])
        panels = [_painted(rgb, classes[..., z]) for classes in (0 * truth, truth, predicted)]
        step = -1 if self.spec["dims"] == 3 else 1  # volumes: front of the patient at the top
        return np.concatenate([np.swapaxes(panel, 0, 1)[::step] for panel in panels], axis=1)

    # Use.
    def infer(self, forward: Forward, item: Json) -> LabelMap:
        """The class of each voxel, on the image's own grid."""
        volume = read_volume(item["image"], burned_in_text=item.get("burned_in_text", "unknown"))
        turned = volume.in_ras()
        no_mask = np.zeros(turned.array.shape[:3], np.uint8)  # prediction does not use its values
        case = _case(turned, no_mask)
        check_fits_model(self.case_facts(case), self.spec)
        prepared = self.prepare(case)
        logits = self._logits(forward, prepared)
        values = as_stored(_classes_of(logits, prepared).astype(np.uint8), volume.affine)
        labels = self.spec["labels"]
        names = {number: labels[value] for number, value in enumerate(sorted(labels, key=int))}
        shown = None
        if values.shape[2] == 1:
            array = as_stored(case["array"], volume.affine)[:, :, 0]
            shown = np.ascontiguousarray(_painted(as_rgb(np.moveaxis(array, -1, 0)), values[..., 0]).swapaxes(0, 1))
        return LabelMap(values, volume.affine, names, shown, _confidence(logits))


def _classes_of(logits: Tensor, case: Batch) -> np.ndarray:
    """Class numbers (x y z) on the case's own grid."""
    return logits.argmax(1)[0].cpu().numpy().astype(np.int64).reshape(case["native_label"].shape)


def _confidence(logits: Tensor) -> float | None:
    """Mean probability of the chosen class over the foreground; None if there is no foreground."""
    found = logits.softmax(1).amax(1)[logits.argmax(1) > 0]
    return round(float(found.mean()), 3) if found.numel() else None


def _joined_names(facts: Mapping[str, Json]) -> dict[str, str]:
    """Label value -> all names that sites give it, in alphabetical order, separated by " / ".

    Raises:
        ValueError: sites have different label values, or one name has two values.
    """
    by_site = {site: sorted(fact["labels"], key=int) for site, fact in facts.items()}
    if len(set(map(tuple, by_site.values()))) > 1:
        raise ValueError(f"sites must agree on label values; got {by_site}")
    names: dict[str, set[str]] = {value: set() for value in next(iter(by_site.values()))}
    values: dict[str, str] = {}
    for site, fact in facts.items():
        for value, name in fact["labels"].items():
            if values.setdefault(name, value) != value:
                got = f"{values[name]} and {value}, {site!r}"
                raise ValueError(f"{name!r} must be one label value at all sites; got {got}")
            names[value].add(name)
    joined = {value: " / ".join(sorted(own)) for value, own in names.items()}
    if several := [name for value, name in joined.items() if len(names[value]) > 1]:
        logger.warning("sites name the same label value differently: %s", "; ".join(several))
    return joined


def _case(volume: Volume, classes: np.ndarray) -> Batch:
    """A case, from a volume and its class numbers, both turned to RAS."""
    array = volume.array if volume.array.ndim == 4 else volume.array[..., None]
    return {"array": array, "native_label": classes, "spacing_mm": np.array(volume.spacing_mm)}


def _without_padding(array: Tensor, case: Batch) -> Tensor:
    """Cut off what `prepare` added at the end of each spatial axis."""
    size = [int(side) for side in case["size"]]
    for axis, side in enumerate(size, start=array.ndim - len(size)):
        array = array.narrow(axis, 0, side)
    return array


def _painted(rgb: Float[np.ndarray, "x y 3"], classes: Integer[np.ndarray, "x y"]) -> UInt8[np.ndarray, "x y 3"]:
    """The picture with its classes in colour."""
    colour = COLOURS[np.where(classes > 0, (classes - 1) % (len(COLOURS) - 1) + 1, 0)]
    mixed = np.where(classes[..., None] > 0, 0.5 * rgb + 0.5 * colour, rgb)
    return (255 * mixed).astype(np.uint8)
