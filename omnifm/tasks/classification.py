"""Classification: one class for every picture or volume, with MONAI's ResNet-18.

Cases are turned to RAS and brought to one size without distorting them.  Sites may know different classes: they number
them together, and a class may lack its name.  Letters: b batch, c channels, x y z axes.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from monai.transforms import (
    ClipIntensityPercentiles,
    Compose,
    NormalizeIntensity,
    RandFlipd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
    Resize,
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
from omnifm.task import Backbone, Batch, Forward, Task
from omnifm.tasks._pictures import caption, common_channels, in_channels
from omnifm.update import Score

MIN_SIDE = 8
MAX_SIDE = {2: 224, 3: 96}
"""Largest side that `auto` chooses, by dimensions."""
THUMBNAIL = 64
"""Largest side of images that the network must not halve at once."""
SHOWN_SIDE = 224
TOGETHER = 2**20
"""Pixels or voxels predicted at once."""
Width = Annotated[int, Field(ge=NUM_GROUPS, multiple_of=NUM_GROUPS)]
logger = logging.getLogger("omnifm.tasks.classification")


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Classification's task section."""

    image_size: Literal["auto"] | Annotated[int, Field(ge=16, le=1024)] = "auto"
    """Longest side that images are resized to, pixels; the rest is padded to a square or cube.  Auto is the median
    over the sites' median longest sides, 16 to 224 (pictures) or 96 (volumes)."""
    num_classes: Literal["auto"] | Annotated[int, Field(ge=2, le=10_000)] = "auto"
    """Classes of the federation; auto is one more than the highest number that a site names or uses."""


@dataclass(frozen=True, config=STRICT)
class Model:
    """Classification's model section: MONAI's ResNet-18."""

    channels: tuple[Width, Width, Width, Width] = (64, 128, 256, 512)
    """Width of the four stages."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation; batch is ResNet-18's own and has statistics of one hospital's scanner, group has none and needs
    many more rounds."""


class Classification(Task):
    """Cross-entropy; balanced accuracy, accuracy, macro F1 and AUROC over a split's cases.

    A rival that does not see is always scored too: `..._majority` says the site's most frequent training class.
    """

    Settings = Settings
    Model = Model
    required = ("image", "label")
    given = ("image",)
    # Balanced accuracy picks checkpoints: on skewed sites accuracy likes whoever says the commonest class.
    metrics = {  # noqa: RUF012
        "balanced_accuracy": True,
        "accuracy": True,
        "macro_f1": True,
        "auroc": True,
        "balanced_accuracy_majority": True,
        "accuracy_majority": True,
    }

    def __init__(self, settings: Any, model: Any) -> None:
        super().__init__(settings, model)
        self.majority: int | None = None

    # Before round 0.
    def read(self, item: Mapping[str, Any], labels: Mapping[int, str]) -> Batch:
        """Read an image, in RAS, and its class number."""
        return {"class": self._class(item["label"]), **_read_image(item)}

    def _class(self, label: Path | int) -> int:
        if isinstance(label, Path):  # the datalist takes an undeclared name for a mask's path
            raise RefusedImage("label_values", "label must be a class number or a name in 'labels'; it is neither")
        limit = len(self.spec["labels"]) if self.spec else self.settings.num_classes
        if limit != "auto" and label >= limit:
            raise RefusedImage("label_values", f"label must be one of the federation's {limit} classes; got {label}")
        return label

    def case_facts(self, case: Batch) -> dict[str, Any]:
        """Dimensions, channels, longest side in voxels, class."""
        shape = case["array"].shape
        return {
            "dims": 3 if shape[2] > 1 else 2,
            "channels": shape[3] if len(shape) == 4 else 1,
            "side": max(shape[:3]),
            "class": case["class"],
        }

    def facts(self, cases: Sequence[Mapping[str, Any]], labels: Mapping[int, str]) -> dict[str, Any]:
        """Dimensions, one per site; channels; median longest side; class names and how many classes they imply."""
        dims = sorted({case["dims"] for case in cases})
        if len(dims) != 1:
            raise ValueError(f"a site's cases must have one number of dims; got {dims}")
        return {
            "dims": dims[0],
            "channels": common_channels((case["channels"] for case in cases), "a site's cases"),
            "side": int(np.median([case["side"] for case in cases])),
            "labels": {str(value): labels[value] for value in sorted(labels)},
            "num_classes": 1 + max([*labels, *(case["class"] for case in cases)]),
        }

    def agree(self, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Equal dimensions; names that do not contradict each other; one size; colour if any site has colour."""
        said = {site: fact["dims"] for site, fact in facts.items()}
        if len(set(said.values())) > 1:
            raise ValueError(f"sites must agree on dims; got {said}")
        dims = next(iter(said.values()))
        wanted = {site: fact["num_classes"] for site, fact in facts.items()}
        number = max(wanted.values()) if self.settings.num_classes == "auto" else self.settings.num_classes
        if number < max(2, *wanted.values(), 2):
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

    def observe(self, training: Sequence[Mapping[str, Any]]) -> None:
        """Find the site's most frequent training class, by number; the first of equals."""
        self.majority = Counter(item["label"] for item in training).most_common(1)[0][0]

    # The network and its loss.
    def backbone(self) -> Backbone:
        """MONAI ResNet-18 with one output per class of the federation."""
        spec, model = self.spec, self.model
        small = spec["size"][0] <= THUMBNAIL
        classes = len(spec["labels"])
        return ResNetBackbone(spec["dims"], spec["channels"], classes, model.channels, model.norm, small=small)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy, every case alike."""
        return F.cross_entropy(prediction, batch["label"])

    # Cases as the network sees them.
    def prepare(self, case: Batch) -> Batch:
        """One size, padded around; clipped and standardised over all channels together, so that hue stays."""
        image = torch.from_numpy(in_channels(case["array"], self.spec["channels"]).astype(np.float32))
        flat = self.spec["dims"] == 2
        image = image[..., 0] if flat else image
        extent = np.array(image.shape[1:]) * case["spacing_mm"][: self.spec["dims"]]  # a slice's thickness is no side
        size = np.maximum(1, np.round(extent / extent.max() * max(self.spec["size"]))).astype(int)
        if tuple(size) != tuple(image.shape[1:]):
            smooth = bool(np.any(size < np.array(image.shape[1:])))
            image = Resize(size.tolist(), mode="bilinear" if flat else "trilinear", anti_aliasing=smooth)(image)
        image = NormalizeIntensity()(ClipIntensityPercentiles(0.5, 99.5)(image))
        return {"image": SpatialPad(self.spec["size"])(image).as_tensor(), "label": torch.tensor(case["class"])}

    def augment(self) -> Compose:
        """Moved by up to an eighth of the side, left for right, brightness and contrast."""
        wider = [side + side // 8 * 2 for side in self.spec["size"]]
        moved = [SpatialPadd("image", wider), RandSpatialCropd("image", self.spec["size"], random_size=False)]
        flip = RandFlipd("image", prob=0.5, spatial_axis=0)
        tones = [
            RandScaleIntensityd("image", factors=0.1, prob=0.5),
            RandShiftIntensityd("image", offsets=0.1, prob=0.5),
        ]
        return Compose([*moved, flip, *tones])

    def view(self, case: Batch) -> Tensor:
        """The whole image."""
        image: Tensor = case["image"]
        return image

    # Evaluation.
    def score(self, forward: Forward, case: Batch) -> dict[str, float | None]:
        """The true class ("label") and the probability of every class (by its number): metrics need the whole split."""
        (row,) = self.scores(forward, [case])
        return row

    def scores(self, forward: Forward, cases: Iterable[Batch]) -> Iterator[dict[str, float | None]]:
        """`score` of every case, several at a time: thumbnails one by one take four times as long."""
        waiting, number = iter(cases), int(np.clip(TOGETHER // math.prod(self.spec["size"]), 1, 64))
        while chunk := list(islice(waiting, number)):
            for case, probabilities in zip(chunk, self.predict(forward, chunk), strict=True):
                row: dict[str, float | None] = {str(n): float(p) for n, p in enumerate(probabilities)}
                yield row | {"label": float(case["label"])}

    def summarise(self, scores: Iterable[Mapping[str, float | None]]) -> dict[str, Score]:
        """The metrics over all cases; a metric that is undefined is so for every case."""
        rows = list(scores)
        if not rows:
            return {name: Score(None, 0) for name in self.metrics}
        table = np.array([[row["label"], *(row[number] for number in self.spec["labels"])] for row in rows], float)
        truth = table[:, 0].astype(np.int64)
        means = class_scores(table[:, 1:], truth) | self._majority_scores(truth)
        # Stays in the site's own log: small counts per class say something about its patients.
        logger.info("%d cases scored; by class: %s", len(rows), dict(enumerate(np.bincount(truth).tolist())))
        none, some = Score(None, 0, len(rows)), len(rows)
        return {name: none if means[name] is None else Score(means[name], some) for name in self.metrics}

    def _majority_scores(self, truth: Int[np.ndarray, " n"]) -> dict[str, float | None]:
        names = ("balanced_accuracy", "accuracy")
        if self.majority is None:
            return {f"{name}_majority": None for name in names}
        sure = np.tile(np.eye(len(self.spec["labels"]))[self.majority], (len(truth), 1))
        scores = class_scores(sure, truth)
        return {f"{name}_majority": scores[name] for name in names}

    def predict(self, forward: Forward, cases: Sequence[Batch]) -> Float[np.ndarray, "cases classes"]:
        """Probability of every class, float64."""
        images = torch.stack([case["image"] for case in cases])
        return forward({"image": images}).double().softmax(dim=1).cpu().numpy()

    def picture(self, forward: Forward, case: Batch) -> np.ndarray:
        """The image (of a volume its middle slice) above its true and its predicted class."""
        probabilities, labels = self.predict(forward, [case])[0], self.spec["labels"]
        image = case["image"] if self.spec["dims"] == 2 else case["image"][..., case["image"].shape[-1] // 2].flip(2)
        shown = F.interpolate(image[None], size=(SHOWN_SIDE, SHOWN_SIDE), mode="nearest-exact")[0].cpu().numpy()
        low, high = np.percentile(shown, (1, 99))
        grey = np.clip((shown - low) / max(float(high - low), 1e-6), 0, 1)
        rgb = (255 * np.transpose(grey if len(grey) == 3 else np.repeat(grey[:1], 3, axis=0), (2, 1, 0))).astype(
            np.uint8
        )
        true, best = labels[str(int(case["label"]))], int(probabilities.argmax())
        return caption(rgb, f"true: {true}\npredicted: {labels[str(best)]} ({probabilities[best]:.0%})")

    # Use.
    def infer(self, forward: Forward, item: Mapping[str, Any]) -> Classes:
        """Probability of every class of the federation."""
        case = {"class": 0, **_read_image(item)}  # nobody knows its class; prediction never looks at it
        facts, spec = self.case_facts(case), self.spec
        if facts["dims"] != spec["dims"] or facts["channels"] not in (1, spec["channels"]):
            rule = f"image must be {spec['dims']}-D with {spec['channels']} channel(s) for this model"
            raise RefusedImage("bad_geometry", f"{rule}; got {facts['dims']}-D with {facts['channels']}")
        probabilities = self.predict(forward, [self.prepare(case)])[0].tolist()
        return Classes({spec["labels"][str(number)]: p for number, p in enumerate(probabilities)})


def _read_image(item: Mapping[str, Any]) -> Batch:
    """An image in RAS and its spacing."""
    volume = read_volume(item["image"], burned_in_text=item.get("burned_in_text", "unknown")).in_ras()
    shape = volume.array.shape[:3]
    if sorted(shape)[1] < MIN_SIDE:
        size = " x ".join(map(str, shape))
        raise RefusedImage("bad_geometry", f"image must have {MIN_SIDE} pixels along two axes; got {size}")
    return {"array": volume.array, "spacing_mm": np.array(volume.spacing_mm)}


def _names(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Class number -> name over all sites; raises ValueError where a number has two names or a name two numbers."""
    names, numbers = dict[str, str](), dict[str, str]()
    for site, fact in facts.items():
        for number, name in fact["labels"].items():
            known = (names.setdefault(number, name), numbers.setdefault(name, number))
            if known != (name, number):
                got = f"{site!r} has {name!r} as {number}; before it {known[0]!r} was {number} and {name!r} {known[1]}"
                raise ValueError(f"sites must number their classes together; {got}")
    return names
