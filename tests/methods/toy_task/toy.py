"""A task small enough that every method's laws are checked in seconds: two classes of 8 x 8 pictures."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from monai.transforms import Compose
from pydantic.dataclasses import dataclass
from torch import nn
from torch.nn import functional as F

from omnifm.config import STRICT
from omnifm.data.prediction import Classes
from omnifm.data.volume import read_volume
from omnifm.task import Backbone, Task


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Nothing to set."""


@dataclass(frozen=True, config=STRICT)
class Model:
    """What the network has beside convolution, linear layer and classifier."""

    norm: Literal["none", "batch"] = "none"
    lora: bool = False
    staged: bool = False
    """Whether all that comes before the head rests in the second half."""


class LowRank(nn.Linear):
    """A frozen linear layer with a trained update of rank 2, named as peft names it."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(width, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, width, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, tokens):
        return super().forward(tokens) + self.lora_B["default"](self.lora_A["default"](tokens))


class ToyBackbone(Backbone):
    """Convolution, normalisation, linear layer per position; the head reads the mean."""

    width = 4
    reads = "suffix"

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, self.width, 3, stride=2)
        self.adn = nn.Sequential(nn.BatchNorm2d(self.width) if model.norm == "batch" else nn.Identity(), nn.Tanh())
        self.mix = LowRank(self.width) if model.lora else nn.Linear(self.width, self.width)
        self.fc = nn.Linear(self.width, 2)
        self.first = [p for part in (self.conv, self.mix) for p in part.parameters() if p.requires_grad]
        self.staged = model.staged

    def encode(self, batch):
        return self.mix(self.adn(self.conv(batch["image"])).flatten(2).transpose(1, 2)), None

    def decode(self, tokens, features, batch):
        return self.fc(tokens.mean(1))

    def head(self):
        return [self.fc]

    def schedule(self, progress):
        for parameter in self.first:
            parameter.requires_grad_(progress < 0.5 or not self.staged)


class Toy(Task):
    """Cross-entropy; accuracy and its complement's loss."""

    Settings = Settings
    Model = Model
    required = ("image", "label")
    given = ("image",)
    metrics = {"confidence": True}  # noqa: RUF012

    def read(self, item, labels):
        return {"array": read_volume(item["image"]).array[..., 0].astype(np.float32), "class": item["label"]}

    def case_facts(self, case):
        return {}

    def facts(self, cases, labels):
        return {"labels": {str(n): name for n, name in labels.items()}}

    def agree(self, facts):
        return next(iter(facts.values()))

    def backbone(self):
        return ToyBackbone(self.model)

    def loss(self, prediction, batch):
        return F.cross_entropy(prediction, batch["label"])

    def prepare(self, case):
        return {"image": torch.from_numpy(case["array"])[None], "label": torch.tensor(case["class"])}

    def augment(self):
        return Compose([])

    def view(self, case):
        return case["image"]

    def score(self, forward, case):
        """Probability of the true class, which any change of any weight moves."""
        return {"confidence": float(forward({"image": case["image"][None]})[0].softmax(0)[case["label"]])}

    def picture(self, forward, case):
        return np.zeros((1, 1, 3), np.uint8)

    def infer(self, forward, item):
        case = self.prepare(self.read({**item, "label": 0}, {}))
        probabilities = forward({"image": case["image"][None]})[0].softmax(0).tolist()
        return Classes(dict(zip(self.spec["labels"].values(), probabilities, strict=True)))
