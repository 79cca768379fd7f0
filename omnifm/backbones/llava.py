"""A LLaVA-style reader of pictures: CLIP vision encoder, connector, causal language model.

OmniFM's [Z || r || c] takes the place of the visual tokens.  Letters: b batch, l visual tokens, n tokens after the
prompts, t text tokens, v vocabulary, q width of the language model.  Liu et al. 2023, arXiv 2304.08485 and 2310.03744.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionConfig, CLIPVisionModel
from transformers.utils import logging

from omnifm.backbones.tiny import tiny
from omnifm.backbones.tuning import Peft, tune
from omnifm.task import Backbone, Batch
from omnifm.update import digest

# A model is loaded every round: its bar and its report would bury the log.
logging.disable_progress_bar()
logging.set_verbosity_error()
Tuning = Literal["connector", "lm", "joint", "two_stage"]
FEATURES = -2
"""LLaVA reads the patches of the encoder's last layer but one, and drops the class token."""


class LlavaBackbone(Backbone):
    """Visual tokens in the width of a language model, and that model's answer to a question about them.

    The vision encoder is frozen.  The head, personal by default, is the last block that is tuned: of the language
    model and its final norm, or the connector's last layer where only the connector is tuned.

    Args:
        vision: CLIP vision encoder.
        language: causal language model of the LLaMA family.
        tokenizer: its tokenizer.
        max_answer: most tokens of an answer.
        tuning: "connector", "lm", "joint", or "two_stage" (first the connector, then the language model).
        peft: what is tuned of the language model.

    Raises:
        ValueError: tokenizer and model, or model and `peft`, do not fit.
    """

    reads = "all"

    def __init__(self, vision: Any, language: Any, tokenizer: Any, max_answer: int, tuning: Tuning, peft: Peft) -> None:
        super().__init__()
        _check_words(tokenizer, language)
        self.width = language.get_input_embeddings().embedding_dim
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.max_answer, self.tuning = max_answer, tuning
        self.vision = vision.requires_grad_(False)
        self.connector = nn.Sequential(
            nn.Linear(vision.config.hidden_size, self.width), nn.GELU(), nn.Linear(self.width, self.width)
        ).requires_grad_(tuning != "lm")
        self.language = language.requires_grad_(False)
        if tuning != "connector":
            tune(language, peft)
        self.tuned = [p for p in language.parameters() if p.requires_grad]

    def encode(self, batch: Batch) -> tuple[Float[Tensor, "b l q"], None]:
        """One token per patch of `image` (b 3 h w), through the connector."""
        with torch.no_grad():
            seen = self.vision(pixel_values=batch["image"], output_hidden_states=True).hidden_states[FEATURES][:, 1:]
        return self.connector(seen), None

    def decode(
        self, tokens: Float[Tensor, "b n q"], features: None, batch: Batch
    ) -> Float[Tensor, "b t v"] | Int[Tensor, "b answer"]:
        """Logits of each token of `text` (b t) given those before it; without `text`, the answer to `prompt` (b t).

        Text is padded at its end, which a causal model never looks ahead to: no mask is needed, and what lies behind
        the longest `length` (b) is not computed.
        """
        if "text" not in batch:
            return self._answer(self._embedded(tokens, batch["prompt"]))
        text = batch["text"][:, : int(batch["length"].max())]
        inputs, keep = self._embedded(tokens, text), text.shape[1] + 1
        logits = self.language(inputs_embeds=inputs, use_cache=False, logits_to_keep=keep).logits
        return logits[:, :-1]

    def head(self) -> Sequence[nn.Module]:
        """The last tuned block; see the class."""
        if self.tuning == "connector":
            return [self.connector[-1]]
        decoder = self.language.get_decoder()
        return [decoder.layers[-1], decoder.norm]

    def schedule(self, progress: float) -> None:
        """Freeze the half of a two-stage tuning that is not its turn.

        Args:
            progress: share of the rounds that are over, in [0, 1); from 0.5 on the language model is tuned.
        """
        if self.tuning == "two_stage":
            first = progress < 0.5
            self.connector.requires_grad_(first)
            for parameter in self.tuned:
                parameter.requires_grad_(not first)

    def _embedded(self, tokens: Float[Tensor, "b n q"], text: Int[Tensor, "b t"]) -> Float[Tensor, "b all q"]:
        """[start || visual tokens || text] as the language model's inputs."""
        embed = self.language.get_input_embeddings()
        start = text.new_full((len(text), 0 if self.bos is None else 1), self.bos or 0)
        return torch.cat([embed(start), tokens, embed(text)], dim=1)

    def _answer(self, inputs: Float[Tensor, "b all q"]) -> Int[Tensor, "b answer"]:
        """Greedy: the most likely next token until the end of text or `max_answer` tokens; ended rows stay ended."""
        cache, answer, ended = None, list[Tensor](), torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
        while len(answer) < self.max_answer and not ended.all():
            out = self.language(inputs_embeds=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            answer.append(out.logits[:, -1].argmax(-1).masked_fill(ended, self.eos))
            ended = ended | (answer[-1] == self.eos)
            cache, inputs = out.past_key_values, self.language.get_input_embeddings()(answer[-1])[:, None]
        return torch.stack(answer, dim=1)


def load_vision(name: str) -> Any:
    """The CLIP vision encoder in a folder, of a hub name, or "tiny"; raises ValueError in one line."""
    return _load_model(CLIPVisionModel, "vision", name)


def load_language(name: str) -> Any:
    """The language model in a folder, of a hub name, or "tiny"; raises ValueError in one line."""
    language = _load_model(AutoModelForCausalLM, "language", name)
    decoder = language.get_decoder()
    if not hasattr(decoder, "layers") or not hasattr(decoder, "norm"):
        raise ValueError(f"model.language must be of the LLaMA family; got {type(language).__name__}")
    return language


def load_tokenizer(name: str) -> Any:
    """The tokenizer beside a language model; raises ValueError in one line."""
    tokenizer = _load(AutoTokenizer, "language", name)
    if tokenizer.eos_token_id is None:
        raise ValueError("model.language must have a tokenizer that marks the end of a text; it does not")
    return tokenizer


def picture_side(name: str) -> int:
    """Side of a vision encoder's pictures, pixels; raises ValueError in one line."""
    return int(_load(CLIPVisionConfig, "vision", name).image_size)


@lru_cache(maxsize=4)
def fingerprint(vision: str, language: str) -> str:
    """SHA-256 of the vocabulary and all pretrained weights: what is frozen never travels, so sites compare this."""
    models, tokenizer = {"vision": load_vision(vision), "language": load_language(language)}, load_tokenizer(language)
    _check_words(tokenizer, models["language"])
    tensors = {f"{part}.{name}": v for part, model in models.items() for name, v in model.state_dict().items()}
    return digest(tensors, tokenizer.get_vocab())


def _check_words(tokenizer: Any, language: Any) -> None:
    size = language.get_input_embeddings().num_embeddings
    if len(tokenizer) > size:
        got = f"{len(tokenizer)} for {size}"
        raise ValueError(f"a tokenizer must have no more words than its model has embeddings; got {got}")


def _load_model(kind: Any, part: Literal["vision", "language"], name: str) -> Any:
    # Weights are safetensors: a model's name in a job can run nothing.
    model, found = _load(kind, part, name, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    if lacking := len(found["missing_keys"]) + len(found["mismatched_keys"]):
        raise ValueError(f"model.{part} must hold every weight of a {type(model).__name__}; {lacking} are missing")
    return model


def _load(kind: Any, part: Literal["vision", "language"], name: str, **options: Any) -> Any:
    try:
        # Without `trust_remote_code=False` transformers asks at the terminal whether to run the folder's own code.
        return kind.from_pretrained(_folder(part, name), local_files_only=True, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        rule = "'tiny', a folder of save_pretrained or a hub name fetched before with `hf download`, with safetensors"
        raise ValueError(f"model.{part} must be {rule}; got {name!r} ({type(error).__name__})") from None


def _folder(part: Literal["vision", "language"], name: str) -> Path:
    """Where a model lies on this machine: a job must not make a hospital fetch files from elsewhere."""
    if name == "tiny":
        return tiny(part)
    return Path(name) if Path(name).is_dir() else Path(snapshot_download(name, local_files_only=True))
