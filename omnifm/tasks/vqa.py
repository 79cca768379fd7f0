"""Visual question answering: a free-text answer to a question about a picture, with a LLaVA-style network.

The picture keeps the orientation in which it is stored; it is padded to a square and resized for CLIP.  The language
model reads "[visual tokens] Question: ... Answer:" and continues the text.  The models come from Hugging Face.
Letters: b batch, c channels, h w rows and columns, t text tokens.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int
from monai.transforms import Compose, SelectItemsd
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from omnifm.backbones.llava import (
    LlavaBackbone,
    Tuning,
    fingerprint,
    load_language,
    load_tokenizer,
    load_vision,
    picture_side,
)
from omnifm.backbones.tuning import Peft
from omnifm.config import STRICT
from omnifm.data.prediction import Answer
from omnifm.data.volume import RefusedImage, read_volume
from omnifm.metrics.answers import AnswerPrior, answer_scores, normalise
from omnifm.records import Json
from omnifm.task import Backbone, Batch, Forward, Task
from omnifm.tasks._augment import random_intensities
from omnifm.tasks._pictures import caption

IGNORED = -100
"""Target of tokens that are left out of the loss: those of the question and of the padding."""
MAX_TOGETHER = 16
"""Largest number of questions that are answered at once."""
MEAN, STD = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))


@dataclass(frozen=True, config=STRICT)
class Settings:
    """The task section of a visual question answering job."""

    question_tokens: Annotated[int, Field(ge=8, le=1024)] = 64
    """Largest number of tokens of a question, 8 to 1024; the end of a longer question is cut off.  Large values need
    more memory."""
    answer_tokens: Annotated[int, Field(ge=2, le=256)] = 16
    """Largest number of tokens of an answer with its end-of-text token, 2 to 256.  The end of a longer training answer
    is cut off; scoring always uses the whole true answer.  Large values need more memory and time."""


@dataclass(frozen=True, config=STRICT)
class Model:
    """The model section of a visual question answering job.

    "tiny" is a small model with random weights that is created on this machine, for the demo and for tests.
    """

    vision: str = "tiny"
    """CLIP vision encoder, always frozen: "tiny", a folder of `save_pretrained`, or a name from the hub."""
    language: str = "tiny"
    """Causal language model of the LLaMA family with its tokenizer: "tiny", a folder, or a name from the hub."""
    tuning: Tuning = "joint"
    """What is trained: "connector", "lm" (language model), "joint" (both), or "two_stage" (the connector in the first
    half of the rounds, the language model in the second)."""
    peft: Peft = "lora"
    """Which weights of the language model are trained: "full" (all), "lora" (rank 8, alpha 32), "adapter" (Houlsby),
    "layernorm" or "bias".  All but "full" are small parts, which need less memory and traffic."""


class VQA(Task):
    """Trains with cross-entropy of the answer's tokens; accuracy (see `metrics.answers`) chooses the checkpoint.

    Two baselines do not see the picture.  `accuracy_prior` always gives the most frequent answer to this type of
    question among the site's training cases.  `accuracy_question_only` is the same model with a blank picture.
    """

    Settings = Settings
    Model = Model
    required = ("image", "question", "answer")
    given = ("image", "question")
    metrics = {  # noqa: RUF012
        "accuracy": True,
        "closed_accuracy": True,
        "open_exact": True,
        "open_recall": True,
        "bleu1": True,
        "accuracy_prior": True,
        "accuracy_question_only": True,
    }

    prior: AnswerPrior | None = None
    """The most frequent training answers; None before `observe`."""
    # Many questions in a row are about one picture, so the last picture is kept: (path and burned-in text, array), and
    # (array, input of CLIP).  Several threads use this one task.  Each method therefore reads the attribute only once:
    # a second read could return the picture of another thread.
    read_last: tuple[tuple[object, str], np.ndarray] | None = None
    shown_last: tuple[np.ndarray, Tensor] | None = None

    # Before round 0.
    def read(self, item: Json, labels: Mapping[int, str]) -> Batch:
        """Read the picture, and check the words; see `read_words`."""
        words = read_words(item)
        burned_in = item.get("burned_in_text", "unknown")
        key = (item["image"], str(burned_in))
        last = self.read_last
        if last is None or last[0] != key:
            last = key, read_volume(item["image"], burned_in_text=burned_in).with_air().array
            self.read_last = last
        array = last[1]
        if array.shape[2] != 1:
            raise RefusedImage("unsupported_format", f"image must be a picture or one slice; got {array.shape[2]}")
        return {"array": array, **words}

    def case_facts(self, case: Batch) -> Json:
        """Nothing: all pictures get the encoder's size and channels, and no words may leave the site."""
        return {}

    def facts(self, cases: Sequence[Json], labels: Mapping[int, str]) -> Json:
        """The fingerprint of the pretrained models at this site."""
        return {"pretrained": fingerprint(self.model.vision, self.model.language)}

    def agree(self, facts: Mapping[str, Json]) -> Json:
        """The fingerprint of the pretrained models, which must be the server's at all sites.

        Frozen weights are never sent, so each site must have the same ones.
        """
        own = fingerprint(self.model.vision, self.model.language)
        if other := sorted(site for site, fact in facts.items() if fact["pretrained"] != own):
            raise ValueError(f"sites must hold the server's pretrained vision and language model; others at {other}")
        return {"pretrained": own}

    def configure(self, spec: Json) -> None:
        """Take the agreed specification.

        Raises:
            ValueError: the pretrained models or the tokenizer on this machine are not those of the specification.
        """
        if spec["pretrained"] != fingerprint(self.model.vision, self.model.language):
            raise ValueError("pretrained models and tokenizer must be those of the agreement; their digest differs")
        super().configure(spec)

    def observe(self, training: Sequence[Json]) -> None:
        """Count the site's own training answers."""
        rows = [read_words(item) for item in training]
        self.prior = AnswerPrior((row["question_type"], row["answer"]) for row in rows)

    # The network and its loss.
    def backbone(self) -> Backbone:
        """CLIP, a new connector, and the language model."""
        model = self.model
        with torch.random.fork_rng(devices=[]):  # creating a tiny model must not change the run's random state
            vision = load_vision(model.vision)
            language = load_language(model.language)
        return LlavaBackbone(vision, language, self.tokenizer, self.settings.answer_tokens, model.tuning, model.peft)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The language model's tokenizer."""
        return load_tokenizer(self.model.language)

    @cached_property
    def side(self) -> int:
        """Side in pixels of the pictures that the vision encoder takes."""
        return picture_side(self.model.vision)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy of the answers' tokens, with the end-of-text token."""
        target = batch["target"][:, : prediction.shape[1]]
        return F.cross_entropy(prediction.flatten(0, 1), target.flatten(), ignore_index=IGNORED)

    # Cases as the network sees them.
    def prepare(self, case: Batch) -> Batch:
        """The picture for CLIP, the question as `prompt` (t), and the words.

        For training also `text` (t), prompt and answer, and `target` (t), the answer only; both have `length` tokens
        and then padding to a common size.
        """
        end = self.tokenizer.eos_token_id
        max_question = self.settings.question_tokens
        max_answer = self.settings.answer_tokens
        ending = self._tokens(" Answer:")
        prompt = self._tokens(f"Question: {case['question']}")[:max_question] + ending
        answer = [*self._tokens(f" {case['answer']}"), end][:max_answer]
        length = len(prompt) + len(answer)
        num_padding = max_question + len(ending) + max_answer - length
        words = {key: case[key] for key in ("question", "answer", "answer_type", "question_type")}
        return {
            "image": self._clip_picture(case),
            "prompt": torch.tensor(prompt),
            "text": torch.tensor(prompt + answer + [end] * num_padding),
            "target": torch.tensor([IGNORED] * len(prompt) + answer + [IGNORED] * num_padding),
            "length": length,
            **words,
        }

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _clip_picture(self, case: Batch) -> Tensor:
        """The picture of a case as input of CLIP; made once for questions in a row about one picture."""
        last = self.shown_last
        if last is None or last[0] is not case["array"]:
            last = case["array"], clip_picture(case["array"], self.side)
            self.shown_last = last
        return last[1]

    def augment(self) -> Compose:
        """Random brightness and contrast; no flips, because questions ask about left and right."""
        return Compose([*random_intensities(), SelectItemsd(["image", "text", "target", "length"])])

    def view(self, case: Batch) -> Tensor:
        """The picture."""
        return case["image"]

    # Evaluation.
    def score(self, forward: Forward, case: Batch) -> dict[str, float | None]:
        """The scores of the answer, and the accuracy of the two baselines that do not see the picture."""
        (row,) = self.scores(forward, [case])
        return row

    def scores(self, forward: Forward, cases: Iterable[Batch]) -> Iterator[dict[str, float | None]]:
        """`score` of every case; cases with prompts of equal length are answered together, without padding."""
        groups: dict[int, list[tuple[int, Batch]]] = {}
        for position, case in enumerate(cases):
            group = groups.setdefault(len(case["prompt"]), [])
            group.append((position, case))
            if len(group) == MAX_TOGETHER:
                yield from self._scored(forward, groups.pop(len(case["prompt"])))
        for group in groups.values():
            yield from self._scored(forward, group)

    def _scored(self, forward: Forward, placed: Sequence[tuple[int, Batch]]) -> Iterator[dict[str, float | None]]:
        cases = [case for _, case in placed]
        pictures = torch.stack([case["image"] for case in cases])
        prompts = torch.stack([case["prompt"] for case in cases])
        answers = self._answers(forward, torch.cat([pictures, torch.zeros_like(pictures)]), prompts.repeat(2, 1))
        with_picture, with_blank = answers[: len(cases)], answers[len(cases) :]
        for (position, case), answer, blind_answer in zip(placed, with_picture, with_blank, strict=True):
            truth = case["answer"]
            closed = case["answer_type"] == "CLOSED"
            row = answer_scores(answer, truth, closed=closed)
            row["accuracy_prior"] = None
            if self.prior is not None:
                frequent = self.prior.answer(case["question_type"])
                row["accuracy_prior"] = answer_scores(frequent, truth, closed=closed)["accuracy"]
            row["accuracy_question_only"] = answer_scores(blind_answer, truth, closed=closed)["accuracy"]
            row["position"] = float(position)
            yield row

    def predict(self, forward: Forward, case: Batch) -> str:
        """The answer to a prepared case."""
        (answer,) = self._answers(forward, case["image"][None], case["prompt"][None])
        return answer

    def _answers(
        self, forward: Forward, pictures: Float[Tensor, "b 3 side side"], prompts: Int[Tensor, "b t"]
    ) -> list[str]:
        answers = forward({"image": pictures, "prompt": prompts})
        return [str(self.tokenizer.decode(answer, skip_special_tokens=True)).strip() for answer in answers]

    def picture(self, forward: Forward, case: Batch) -> np.ndarray:
        """The picture above the question, the true answer and the model's answer."""
        shown = (case["image"] * STD + MEAN).clamp(0, 1)[None]
        rgb = F.interpolate(shown, size=(256, 256), mode="nearest-exact")[0].movedim(0, -1)
        lines = [f"{case['question']}", f"true: {case['answer']}", f"given: {self.predict(forward, case)}"]
        text = "\n".join(row for line in lines for row in textwrap.wrap(line, 38)[:4])
        return caption((255 * rgb).byte().cpu().numpy(), text)

    # Use.
    def infer(self, forward: Forward, item: Json) -> Answer:
        """The answer to a question about a new picture."""
        known = {key: item[key] for key in ("image", "question", "burned_in_text") if key in item}
        case = self.read(known | {"answer": "unknown"}, {})  # the true answer is used for training and scoring only
        return Answer(case["question"], self.predict(forward, self.prepare(case)))


def read_words(item: Json) -> dict[str, str]:
    """The question, answer, answer type ("CLOSED" or "OPEN") and question type of an item, as texts.

    Question and answer may be numbers.  Without an answer type, the answers yes and no are closed and all others open.
    Without a question type, the answer type takes its place.

    Raises:
        RefusedImage: `bad_text`: the question or the answer has no letter or digit, or the answer type is unknown.
    """
    words = {}
    for key in ("question", "answer"):
        value = item[key]
        text = str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
        if not normalise(text):
            raise RefusedImage("bad_text", f"{key} must be a text with a letter or a digit; it is not")
        words[key] = text
    guess = "CLOSED" if normalise(words["answer"]) in (["yes"], ["no"]) else "OPEN"
    kind = str(item.get("answer_type") or guess).strip().upper()
    if kind not in ("CLOSED", "OPEN"):
        raise RefusedImage("bad_text", "answer_type must be CLOSED or OPEN; it is not")
    return words | {"answer_type": kind, "question_type": str(item.get("question_type") or kind).strip()}


def clip_picture(array: Float[np.ndarray, "x y 1 *c"], side: int) -> Float[Tensor, "3 side side"]:
    """The picture as input of CLIP: RGB, standardised with CLIP's constants, padded to a square and resized.

    Whole numbers from 0 to 255 are taken as 8-bit levels.  Other values are scaled so that their percentiles 0.5 and
    99.5 become black and white.

    Args:
        array: the picture.
        side: side of the result, in pixels.
    """
    low, high = 0.0, 255.0
    if array.min() < 0 or array.max() > 255 or (array != np.round(array)).any():
        low, high = (float(edge) for edge in np.percentile(array, (0.5, 99.5)))
    unit = np.clip((array - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    rows = torch.from_numpy(unit.reshape(*array.shape[:2], -1)).permute(2, 1, 0)  # c y x
    picture = (rows.expand(3, -1, -1) - MEAN) / STD
    height, width = picture.shape[1:]
    longest = max(height, width)
    top = (longest - height) // 2
    left = (longest - width) // 2
    square = F.pad(picture, (left, longest - width - left, top, longest - height - top))
    return F.interpolate(square[None], size=(side, side), mode="bicubic", antialias=True)[0]
