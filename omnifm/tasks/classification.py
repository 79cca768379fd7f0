"""Classification: one class for each picture or volume, with MONAI's ResNet-18.

Images are turned to RAS and brought to one size without distortion.  Sites may have different classes, but a class must
have the same number at all sites; it may lack a name.  Letters: b batch, c channels, x y z axes.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from monai.transforms import (
    ClipIntensityPercentiles,
    Compose,
    NormalizeIntensity,
    RandFlipd,
    RandSpatialCropd,
    SpatialPad,
    SpatialPadd,
)
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from omnifm.backbones.resnet import NUM_GROUPS, ResNetBackbone
from omnifm.config import STRICT
from omnifm.data.prediction import Classes
from omnifm.data.volume import RefusedImage, read_volume
from omnifm.metrics.classification import class_scores
from omnifm.metrics.intervals import class_intervals
from omnifm.metrics.per_class import class_details
from omnifm.records import Json
from omnifm.statistics import Statistics
from omnifm.task import Backbone, Batch, Forward, Task
from omnifm.tasks._augment import random_intensities
from omnifm.tasks._dimensions import check_fits_model, dims_of_cases, dims_of_sites, resized
from omnifm.tasks._pictures import as_rgb, caption, common_channels, in_channels
from omnifm.update import Score

MIN_SIDE = 8
"""Smallest side of an image in pixels; a volume must have it along two axes."""
MAX_SIDE = {2: 224, 3: 96}
"""Number of dimensions -> largest side that `image_size: auto` chooses."""
SMALL_SIDE = 64
"""Images up to this side get a network that keeps their resolution in its first layers."""
SHOWN_SIDE = 256
"""Side of a picture in the site's report, pixels."""
MAX_TOGETHER = 2**20
"""Largest number of pixels or voxels that are predicted at once."""
Width = Annotated[int, Field(ge=NUM_GROUPS, multiple_of=NUM_GROUPS)]
logger = logging.getLogger("omnifm.tasks.classification")


@dataclass(frozen=True, config=STRICT)
class Settings:
    """The task section of a classification job."""

    image_size: Literal["auto"] | Annotated[int, Field(ge=16, le=1024)] = "auto"
    """Size of the longest side after resizing, pixels, 16 to 1024; the image is then padded to a square or cube.  Small
    values are fast, large values keep details.  "auto" is the median of the sites' median longest sides, at least 16
    and at most 224 (pictures) or 96 (volumes)."""
    num_classes: Literal["auto"] | Annotated[int, Field(ge=2, le=10_000)] = "auto"
    """Number of classes of the federation, 2 to 10,000.  "auto" is one more than the highest class number that any site
    names or uses; a larger number leaves room for sites that join later."""


@dataclass(frozen=True, config=STRICT)
class Model:
    """The model section of a classification job: MONAI's ResNet-18."""

    channels: tuple[Width, Width, Width, Width] = (64, 128, 256, 512)
    """Widths of the four stages, multiples of 8.  Large widths fit more and cost more."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation.  "batch" is ResNet-18's own; its statistics depend on the hospital's scanner.  "group" has no
    statistics and needs many more rounds."""


class Classification(Task):
    """Trains with cross-entropy; the metrics are balanced accuracy, accuracy, macro F1 and AUROC over a split's cases.

    The metrics `..._majority` are those of a baseline that never looks at the image: it always predicts the most
    frequent class of the site's training cases.
    """

    Settings = Settings
    Model = Model
    required = ("image", "label")
    given = ("image",)
    # Balanced accuracy chooses the checkpoint: on a site with uneven classes, plain accuracy favours a model that
    # always predicts the most frequent class.
    metrics = {  # noqa: RUF012
        "balanced_accuracy": True,
        "accuracy": True,
        "macro_f1": True,
        "auroc": True,
        "balanced_accuracy_majority": True,
        "accuracy_majority": True,
    }

    majority: int | None = None
    """The most frequent class of the site's training cases; None before `observe`."""

    # Before round 0.
    def read(self, item: Json, labels: Mapping[int, str]) -> Batch:
        """Read an image, turned to RAS, and its class number."""
        return {"class": self._class_number(item["label"]), **_read_image(item)}

    def _class_number(self, label: Path | int) -> int:
        if isinstance(label, Path):  # the datalist reader takes a name that is not in 'labels' for the path of a mask
            raise RefusedImage("label_values", "label must be a class number or a name in 'labels'; it is neither")
        limit = len(self.spec["labels"]) if self.spec else self.settings.num_classes
        if limit != "auto" and label >= limit:
            raise RefusedImage("label_values", f"label must be one of the federation's {limit} classes; got {label}")
        return label

    def case_facts(self, case: Batch) -> Json:
        """Dimensions, channels, longest side in pixels, and class number."""
        shape = case["array"].shape
        return {
            "dims": 3 if shape[2] > 1 else 2,
            "channels": shape[3] if len(shape) == 4 else 1,
            "side": max(shape[:3]),
            "class": case["class"],
        }

    def facts(self, cases: Sequence[Json], labels: Mapping[int, str]) -> Json:
        """Dimensions, channels, median longest side, class names, and one more than the highest class number."""
        return {
            "dims": dims_of_cases(cases),
            "channels": common_channels((case["channels"] for case in cases), "a site's cases"),
            "side": int(np.median([case["side"] for case in cases])),
            "labels": {str(value): labels[value] for value in sorted(labels)},
            "num_classes": 1 + max([*labels, *(case["class"] for case in cases)]),
        }

    def agree(self, facts: Mapping[str, Json]) -> Json:
        """Dimensions and class names, which must not contradict each other; channels; the common image size.

        If one site has RGB images, grey images of the other sites are converted to RGB.
        """
        dims = dims_of_sites(facts)
        wanted = {site: fact["num_classes"] for site, fact in facts.items()}
        number = max(wanted.values()) if self.settings.num_classes == "auto" else self.settings.num_classes
        if number < max(2, *wanted.values()):
            raise ValueError(f"num_classes must be at least 2 and cover every site's classes, {wanted}; got {number}")
        names = _names(facts)
        side = int(np.clip(np.median([fact["side"] for fact in facts.values()]), 16, MAX_SIDE[dims]))
        side = side if self.settings.image_size == "auto" else self.settings.image_size
        return {
            "dims": dims,
            "channels": common_channels((fact["channels"] for fact in facts.values()), "sites"),
            "labels": {str(n): names.get(str(n), f"class {n}") for n in range(number)},
            "size": [side] * dims,
        }

    def observe(self, training: Sequence[Json]) -> None:
        """Find the most frequent class of the site's training cases; of equally frequent ones the first case's."""
        self.majority = Counter(item["label"] for item in training).most_common(1)[0][0]

    # The network and its loss.
    def backbone(self) -> Backbone:
        """MONAI's ResNet-18 with one output per class of the federation."""
        spec = self.spec
        small = spec["size"][0] <= SMALL_SIDE
        num_classes = len(spec["labels"])
        return ResNetBackbone(
            spec["dims"], spec["channels"], num_classes, self.model.channels, self.model.norm, small=small
        )

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy of the cases."""
        return F.cross_entropy(prediction, batch["label"])

    # Cases as the network sees them.
    def prepare(self, case: Batch) -> Batch:
        """The image resized and padded to the common size, with clipped and standardised intensities; the class.

        Intensities are standardised over all channels together, so that colours keep their hue.
        """
        dims = self.spec["dims"]
        image = torch.from_numpy(in_channels(case["array"], self.spec["channels"]).astype(np.float32))
        if dims == 2:
            image = image[..., 0]
        extent_mm = np.array(image.shape[1:]) * case["spacing_mm"][:dims]  # the thickness of a slice does not count
        size = np.maximum(1, np.round(extent_mm / extent_mm.max() * max(self.spec["size"]))).astype(int).tolist()
        if size != list(image.shape[1:]):
            image = resized(image, size)
        image = NormalizeIntensity()(ClipIntensityPercentiles(0.5, 99.5)(image))
        return {"image": SpatialPad(self.spec["size"])(image).as_tensor(), "label": torch.tensor(case["class"])}

    def augment(self) -> Compose:
        """Random shifts by up to an eighth of the side, left-right flips, brightness and contrast."""
        wider = [side + side // 8 * 2 for side in self.spec["size"]]
        shift = [SpatialPadd("image", wider), RandSpatialCropd("image", self.spec["size"], random_size=False)]
        flip = RandFlipd("image", prob=0.5, spatial_axis=0)
        return Compose([*shift, flip, *random_intensities()])

    def view(self, case: Batch) -> Tensor:
        """The whole image."""
        image: Tensor = case["image"]
        return image

    # Evaluation.
    def score(self, forward: Forward, case: Batch) -> dict[str, float | None]:
        """The true class ("label") and the probability of each class (by its number), for `summarise`."""
        (row,) = self.scores(forward, [case])
        return row

    def scores(self, forward: Forward, cases: Iterable[Batch]) -> Iterator[dict[str, float | None]]:
        """`score` of every case; several cases are predicted at once, which is four times faster for small images."""
        remaining = iter(cases)
        number = int(np.clip(MAX_TOGETHER // math.prod(self.spec["size"]), 1, 64))
        while chunk := list(islice(remaining, number)):
            for case, probabilities in zip(chunk, self.predict(forward, chunk), strict=True):
                row: dict[str, float | None] = {str(n): float(p) for n, p in enumerate(probabilities)}
                yield row | {"label": float(case["label"])}

    def summarise(self, scores: Iterable[Mapping[str, float | None]]) -> dict[str, Score]:
        """The metrics over all cases of a split; an undefined metric counts as undefined for each case."""
        rows = list(scores)
        if not rows:
            return {name: Score(None, 0) for name in self.metrics}
        probabilities, truth = self._table(rows)
        means = class_scores(probabilities, truth) | self._majority_scores(truth)
        # Only in the site's own log, because small counts per class could reveal something about patients.
        logger.info("%d cases scored; by class: %s", len(rows), dict(enumerate(np.bincount(truth).tolist())))
        undefined = Score(None, 0, len(rows))
        return {name: undefined if means[name] is None else Score(means[name], len(rows)) for name in self.metrics}

    def intervals(self, scores: Sequence[Mapping[str, float | None]]) -> dict[str, list[float]]:
        """Intervals of accuracy, balanced accuracy and macro F1."""
        return class_intervals(*self._table(scores)) if scores else {}

    def details(self, scores: Sequence[Mapping[str, float | None]]) -> Statistics:
        """Sensitivity and specificity of each class, the confusion matrix, and the reliability diagram."""
        return class_details(*self._table(scores), list(self.spec["labels"].values())) if scores else {}

    def case_score(self, row: Mapping[str, float | None]) -> tuple[str, float | None]:
        """The probability of the true class."""
        return "probability of the true class", row[str(int(row["label"] or 0))]

    def _table(
        self, scores: Sequence[Mapping[str, float | None]]
    ) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, " n"]]:
        """Probabilities and true classes of the scored cases."""
        table = np.array([[row["label"], *(row[number] for number in self.spec["labels"])] for row in scores], float)
        return table[:, 1:], table[:, 0].astype(np.int64)

    def _majority_scores(self, truth: Int[np.ndarray, " n"]) -> dict[str, float | None]:
        """Scores of the baseline that always predicts the most frequent training class."""
        names = ("balanced_accuracy", "accuracy")
        if self.majority is None:
            return {f"{name}_majority": None for name in names}
        always_majority = np.tile(np.eye(len(self.spec["labels"]))[self.majority], (len(truth), 1))
        scores = class_scores(always_majority, truth)
        return {f"{name}_majority": scores[name] for name in names}

    def predict(self, forward: Forward, cases: Sequence[Batch]) -> Float[np.ndarray, "cases classes"]:
        """Probability of each class for prepared cases, float64."""
        images = torch.stack([case["image"] for case in cases])
        return forward({"image": images}).double().softmax(dim=1).cpu().numpy()

    def picture(self, forward: Forward, case: Batch) -> np.ndarray:
        """The image (the middle slice of a volume) above its true and its predicted class."""
        labels = self.spec["labels"]
        probabilities = self.predict(forward, [case])[0]
        image = case["image"]
        if self.spec["dims"] == 3:
            image = image[..., image.shape[-1] // 2].flip(2)  # front of the patient at the top
        shown = F.interpolate(image[None], size=(SHOWN_SIDE, SHOWN_SIDE), mode="nearest-exact")[0].cpu().numpy()
        rgb = (255 * as_rgb(shown).swapaxes(0, 1)).astype(np.uint8)
        true = labels[str(int(case["label"]))]
        best = int(probabilities.argmax())
        return caption(rgb, f"true: {true}\npredicted: {labels[str(best)]} ({probabilities[best]:.0%})")

    # Use.
    def infer(self, forward: Forward, item: Json) -> Classes:
        """The probability of each class of the federation."""
        case = {"class": 0, **_read_image(item)}  # the class is unknown; prediction does not use it
        check_fits_model(self.case_facts(case), self.spec)
        probabilities = self.predict(forward, [self.prepare(case)])[0].tolist()
        return Classes({self.spec["labels"][str(number)]: p for number, p in enumerate(probabilities)})


def _read_image(item: Json) -> Batch:
    """An image turned to RAS, and its spacing."""
    volume = read_volume(item["image"], burned_in_text=item.get("burned_in_text", "unknown")).in_ras()
    shape = volume.array.shape[:3]
    if sorted(shape)[1] < MIN_SIDE:
        size = " x ".join(map(str, shape))
        raise RefusedImage("bad_geometry", f"image must have {MIN_SIDE} pixels along two axes; got {size}")
    return {"array": volume.array, "spacing_mm": np.array(volume.spacing_mm)}


def _names(facts: Mapping[str, Json]) -> dict[str, str]:
    """Class number -> class name, over all sites.

    Raises:
        ValueError: a number has two names, or a name has two numbers.
    """
    names: dict[str, str] = {}
    numbers: dict[str, str] = {}
    for site, fact in facts.items():
        for number, name in fact["labels"].items():
            known_name = names.setdefault(number, name)
            known_number = numbers.setdefault(name, number)
            if (known_name, known_number) != (name, number):
                other = f"{number} is {known_name!r}" if known_name != name else f"{name!r} is {known_number}"
                got = f"{site!r} has {name!r} as {number}, but {other} at another site"
                raise ValueError(f"a class must have the same number and name at all sites; {got}")
    return names
