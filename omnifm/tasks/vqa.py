"""Visual question answering: a free-text answer to a question about a picture, LLaVA-style through Hugging Face.

A picture is shown as it was stored, upright, padded to a square and resized for CLIP.  The language model reads
"[visual tokens] Question: ... Answer:" and writes on.  Letters: c channels, h w rows and columns, t text tokens.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from monai.transforms import Compose, RandScaleIntensityd, RandShiftIntensityd, SelectItemsd
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F
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
from omnifm.task import Backbone, Batch, Forward, Task
from omnifm.tasks._pictures import caption

IGNORED = -100
"""Label of a token that teaches nothing: the question's and the padding's."""
TOGETHER = 16
"""Most questions that are answered at once."""
MEAN, STD = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Visual question answering's task section."""

    question_tokens: Annotated[int, Field(ge=8, le=1024)] = 64
    """Most tokens of a question; a longer one loses its end."""
    answer_tokens: Annotated[int, Field(ge=2, le=256)] = 16
    """Most tokens of an answer, its end included; a longer training answer loses its end, scoring uses all of it."""


@dataclass(frozen=True, config=STRICT)
class Model:
    """Visual question answering's model section; "tiny" is random and made on the spot, for the demo and tests."""

    vision: str = "tiny"
    """CLIP vision encoder: "tiny", a folder of save_pretrained, or a hub name; always frozen."""
    language: str = "tiny"
    """Causal language model of the LLaMA family with its tokenizer: "tiny", a folder or a hub name."""
    tuning: Tuning = "joint"
    """What is tuned: the connector, the language model, both, or two_stage (half of the rounds each, in this order)."""
    peft: Peft = "lora"
    """What of the language model: all, LoRA (rank 8, alpha 32), Houlsby adapters, layer norms or biases."""


class VQA(Task):
    """Cross-entropy of the answer's tokens; accuracy after normalisation (`metrics.answers`) picks checkpoints.

    Two rivals that do not see are always scored too: `accuracy_prior` is the site's most frequent training answer to
    this type of question, `accuracy_question_only` the same model before a blank picture.
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

    def __init__(self, settings: Any, model: Any) -> None:
        super().__init__(settings, model)
        self.prior: AnswerPrior | None = None
        # A picture is asked about many times in a row: its array as read, and as CLIP sees it.  Threads fill the cache
        # with this one task, so each attribute is looked at once: a second look may find another thread's picture.
        self.read_last: tuple[tuple[Any, str], np.ndarray] | None = None
        self.shown_last: tuple[np.ndarray, Tensor] | None = None

    # Before round 0.
    def read(self, item: Mapping[str, Any], labels: Mapping[int, str]) -> Batch:
        """Read the picture and check the words; an answer without a type is closed if it is yes or no."""
        words, burned_in = read_words(item), item.get("burned_in_text", "unknown")
        shown = (item["image"], str(burned_in))
        last = self.read_last
        if last is None or last[0] != shown:
            last = self.read_last = shown, read_volume(item["image"], burned_in_text=burned_in).array
        array = last[1]
        if array.shape[2] != 1:
            raise RefusedImage("unsupported_format", f"image must be a picture or one slice; got {array.shape[2]}")
        return {"array": array, **words}

    def case_facts(self, case: Batch) -> dict[str, Any]:
        """Nothing: every picture becomes RGB of the encoder's size, and words do not leave."""
        return {}

    def facts(self, cases: Sequence[Mapping[str, Any]], labels: Mapping[int, str]) -> dict[str, Any]:
        """The fingerprint of the pretrained models at this site."""
        return {"pretrained": fingerprint(self.model.vision, self.model.language)}

    def agree(self, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Equal pretrained models everywhere, the server included: what is frozen never travels."""
        own = fingerprint(self.model.vision, self.model.language)
        if other := sorted(site for site, fact in facts.items() if fact["pretrained"] != own):
            raise ValueError(f"sites must hold the server's pretrained vision and language model; others at {other}")
        return {"pretrained": own}

    def configure(self, spec: dict[str, Any]) -> None:
        """Take the specification, if this machine's pretrained models and tokenizer are those that it was agreed on.

        Raises:
            ValueError: they are others.
        """
        if spec["pretrained"] != fingerprint(self.model.vision, self.model.language):
            raise ValueError("pretrained models and tokenizer must be those of the agreement; their digest differs")
        super().configure(spec)

    def observe(self, training: Sequence[Mapping[str, Any]]) -> None:
        """Count the site's own training answers."""
        rows = [read_words(item) for item in training]
        self.prior = AnswerPrior((row["question_type"], row["answer"]) for row in rows)

    # The network and its loss.
    def backbone(self) -> Backbone:
        """CLIP, a fresh connector, and the language model with what is tuned of it."""
        with torch.random.fork_rng(devices=[]):  # a model made on the spot must not move the run's random state
            vision, language = load_vision(self.model.vision), load_language(self.model.language)
        s, m = self.settings, self.model
        return LlavaBackbone(vision, language, self.tokenizer, s.answer_tokens, m.tuning, m.peft)

    @cached_property
    def tokenizer(self) -> Any:
        """The language model's tokenizer."""
        return load_tokenizer(self.model.language)

    @cached_property
    def side(self) -> int:
        """Side of the vision encoder's pictures, pixels."""
        return picture_side(self.model.vision)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of the answer's tokens and the end of text."""
        target = batch["target"][:, : prediction.shape[1]]
        return F.cross_entropy(prediction.flatten(0, 1), target.flatten(), ignore_index=IGNORED)

    # Cases as the network sees them.
    def prepare(self, case: Batch) -> Batch:
        """The picture for CLIP, `prompt` (t), and for training `text` and `target`, padded behind `length` tokens."""
        s, encode = self.settings, self.tokenizer
        question = encode(f"Question: {case['question']}", add_special_tokens=False)["input_ids"]
        ending = encode(" Answer:", add_special_tokens=False)["input_ids"]
        answer = encode(f" {case['answer']}", add_special_tokens=False)["input_ids"]
        prompt = question[: s.question_tokens] + ending
        answer = [*answer, encode.eos_token_id][: s.answer_tokens]
        length = len(prompt) + len(answer)
        room = s.question_tokens + len(ending) + s.answer_tokens - length
        text = prompt + answer + [encode.eos_token_id] * room
        target = [IGNORED] * len(prompt) + answer + [IGNORED] * room
        last = self.shown_last
        if last is None or last[0] is not case["array"]:
            last = self.shown_last = case["array"], clip_picture(case["array"], self.side)
        words = {key: case[key] for key in ("question", "answer", "answer_type", "question_type")}
        return {
            "image": last[1],
            "prompt": torch.tensor(prompt),
            "text": torch.tensor(text),
            "target": torch.tensor(target),
            "length": length,
            **words,
        }

    def augment(self) -> Compose:
        """Random intensities only: a flip would make left right."""
        tones = [
            RandScaleIntensityd("image", factors=0.1, prob=0.5),
            RandShiftIntensityd("image", offsets=0.1, prob=0.5),
        ]
        return Compose([*tones, SelectItemsd(["image", "text", "target", "length"])])

    def view(self, case: Batch) -> Tensor:
        """The picture."""
        return case["image"]

    # Evaluation.
    def score(self, forward: Forward, case: Batch) -> dict[str, float | None]:
        """Scores of the answer, and accuracies of the two rivals that do not see."""
        (row,) = self.scores(forward, [case])
        return row

    def scores(self, forward: Forward, cases: Iterable[Batch]) -> Iterator[dict[str, float | None]]:
        """As `score`; cases whose prompts are equally long are answered together, so that nothing is padded."""
        groups: dict[int, list[Batch]] = {}
        for case in cases:
            group = groups.setdefault(len(case["prompt"]), [])
            group.append(case)
            if len(group) == TOGETHER:
                yield from self._scored(forward, groups.pop(len(case["prompt"])))
        for group in groups.values():
            yield from self._scored(forward, group)

    def _scored(self, forward: Forward, cases: Sequence[Batch]) -> Iterator[dict[str, float | None]]:
        pictures = torch.stack([case["image"] for case in cases])
        prompts = torch.stack([case["prompt"] for case in cases])
        answers = self._answers(forward, torch.cat([pictures, torch.zeros_like(pictures)]), prompts.repeat(2, 1))
        for case, said, blank in zip(cases, answers[: len(cases)], answers[len(cases) :], strict=True):
            prior = None if self.prior is None else self.prior.answer(case["question_type"])
            rivals = {"accuracy_prior": prior, "accuracy_question_only": blank}
            truth, closed = case["answer"], case["answer_type"] == "CLOSED"
            yield answer_scores(said, truth, closed=closed) | {
                name: None if rival is None else answer_scores(rival, truth, closed=closed)["accuracy"]
                for name, rival in rivals.items()
            }

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
        """The picture above the question, the true and the given answer."""
        shown = (case["image"] * STD + MEAN).clamp(0, 1)[None]
        rgb = F.interpolate(shown, size=(256, 256), mode="nearest-exact")[0].movedim(0, -1)
        lines = [f"{case['question']}", f"true: {case['answer']}", f"given: {self.predict(forward, case)}"]
        text = "\n".join(row for line in lines for row in textwrap.wrap(line, 38)[:4])
        return caption((255 * rgb).byte().cpu().numpy(), text)

    # Use.
    def infer(self, forward: Forward, item: Mapping[str, Any]) -> Answer:
        """The answer; a word stands in for the true one, which is only ever looked at to train and to score."""
        known = {key: item[key] for key in ("image", "question", "burned_in_text") if key in item}
        case = self.read(known | {"answer": "unknown"}, {})
        return Answer(case["question"], self.predict(forward, self.prepare(case)))


def read_words(item: Mapping[str, Any]) -> dict[str, str]:
    """Question, answer, answer type ("CLOSED" or "OPEN") and question type of an item; a number is a text too.

    Raises:
        RefusedImage: `bad_text`: no letter or digit is left of question or answer, or a type is none.
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
    """CLIP's input: RGB, standardised by CLIP's constants, padded around to a square, resized with smoothing.

    Whole numbers from 0 to 255 are taken as they are; anything else is stretched between its percentiles 0.5 and 99.5.
    """
    low, high = 0.0, 255.0
    if array.min() < 0 or array.max() > 255 or (array != np.round(array)).any():
        low, high = (float(edge) for edge in np.percentile(array, (0.5, 99.5)))
    unit = np.clip((array - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    rows = torch.from_numpy(unit.reshape(*array.shape[:2], -1)).permute(2, 1, 0)  # c y x
    picture = (rows.expand(3, -1, -1) - MEAN) / STD
    height, width = picture.shape[1:]
    longest = max(height, width)
    top, left = (longest - height) // 2, (longest - width) // 2
    square = F.pad(picture, (left, longest - width - left, top, longest - height - top))
    return F.interpolate(square[None], size=(side, side), mode="bicubic", antialias=True)[0]
