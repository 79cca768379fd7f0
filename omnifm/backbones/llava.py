"""A LLaVA-style backbone, for visual question answering: CLIP vision encoder, connector, causal language model.

OmniFM replaces the visual tokens by its [Z || r || c].  Liu et al. 2023, arXiv 2304.08485 and 2310.03744.
Letters: b batch, l visual tokens, n tokens after OmniFM's prompts are added, t text tokens, v vocabulary, q width of
the language model.
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
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from omnifm.backbones.tiny import tiny
from omnifm.backbones.tuning import Peft, tune
from omnifm.task import Backbone, Batch
from omnifm.update import digest

# A model is loaded in every round; its progress bars and messages would fill the log.
logging.disable_progress_bar()
logging.set_verbosity_error()
Tuning = Literal["connector", "lm", "joint", "two_stage"]
Part = Literal["vision", "language"]
FEATURES = -2
"""The encoder layer whose outputs are used: as in LLaVA the second to last, without the class token."""


class LlavaBackbone(Backbone):
    """Visual tokens in the width of a language model, and the language model's answer to a question about them.

    The vision encoder is frozen.  The head (personal by default) is the last block of the language model and its final
    norm, or the last layer of the connector if only the connector is trained.

    Args:
        vision: CLIP vision encoder.
        language: causal language model of the LLaMA family.
        tokenizer: the language model's tokenizer.
        max_answer: largest number of tokens in an answer.
        tuning: what is trained: "connector", "lm" (language model), "joint" (both), or "two_stage" (first the
            connector, then the language model).
        peft: which weights of the language model are trained; see `tuning.tune`.

    Raises:
        ValueError: the tokenizer has more words than the model, or the model has no weights that `peft` trains.
    """

    reads = "all"

    def __init__(
        self,
        vision: CLIPVisionModel,
        language: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_answer: int,
        tuning: Tuning,
        peft: Peft,
    ) -> None:
        super().__init__()
        _check_words(tokenizer, language)
        self.width = _embeddings(language).embedding_dim
        self.bos = tokenizer.bos_token_id
        self.eos = tokenizer.eos_token_id
        self.max_answer = max_answer
        self.tuning = tuning
        self.vision = vision.requires_grad_(False)
        self.connector = nn.Sequential(
            nn.Linear(vision.config.hidden_size, self.width), nn.GELU(), nn.Linear(self.width, self.width)
        ).requires_grad_(tuning != "lm")
        self.language = language.requires_grad_(False)
        if tuning != "connector":
            tune(language, peft)
        self.tuned = [p for p in language.parameters() if p.requires_grad]

    def encode(self, batch: Batch) -> tuple[Float[Tensor, "b l q"], None]:
        """One token per patch of `image` (b 3 h w)."""
        with torch.no_grad():
            layers = self.vision(pixel_values=batch["image"], output_hidden_states=True).hidden_states
        return self.connector(layers[FEATURES][:, 1:]), None

    def decode(
        self, tokens: Float[Tensor, "b n q"], features: None, batch: Batch
    ) -> Float[Tensor, "b t v"] | Int[Tensor, "b answer"]:
        """The logits of each token of `text` (b t), given the tokens before it; without `text`, the answer to `prompt`.

        Texts are padded at their end.  A causal model never reads later tokens, so no mask is needed, and tokens after
        the largest `length` (b) are not computed.  All rows of `prompt` (b t) are equally long.
        """
        if "text" not in batch:
            return self._answer(self._embedded(tokens, batch["prompt"]))
        text = batch["text"][:, : int(batch["length"].max())]
        inputs = self._embedded(tokens, text)
        logits = self.language(inputs_embeds=inputs, use_cache=False, logits_to_keep=text.shape[1] + 1).logits
        return logits[:, :-1]

    def head(self) -> Sequence[nn.Module]:
        """The last block that is trained; see the class."""
        if self.tuning == "connector":
            return [self.connector[-1]]
        decoder = self.language.get_decoder()
        return [decoder.layers[-1], decoder.norm]

    def schedule(self, progress: float) -> None:
        """With "two_stage": train only the connector in the first half of the rounds, then only the language model.

        Args:
            progress: share of the rounds that are over, in [0, 1).
        """
        if self.tuning == "two_stage":
            is_first_half = progress < 0.5
            self.connector.requires_grad_(is_first_half)
            for parameter in self.tuned:
                parameter.requires_grad_(not is_first_half)

    def _embedded(self, tokens: Float[Tensor, "b n q"], text: Int[Tensor, "b t"]) -> Float[Tensor, "b all q"]:
        """[start of text || visual tokens || text] as input of the language model."""
        embed = self.language.get_input_embeddings()
        start = text.new_full((len(text), 0 if self.bos is None else 1), self.bos or 0)
        return torch.cat([embed(start), tokens, embed(text)], dim=1)

    def _answer(self, inputs: Float[Tensor, "b all q"]) -> Int[Tensor, "b answer"]:
        """The most likely next token, repeatedly, until the end of text or `max_answer` tokens (greedy decoding).

        A row that has ended is filled with the end-of-text token.
        """
        cache = None
        answer: list[Tensor] = []
        ended = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
        while len(answer) < self.max_answer and not ended.all():
            out = self.language(inputs_embeds=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            answer.append(out.logits[:, -1].argmax(-1).masked_fill(ended, self.eos))
            ended = ended | (answer[-1] == self.eos)
            cache = out.past_key_values
            inputs = self.language.get_input_embeddings()(answer[-1])[:, None]
        return torch.stack(answer, dim=1)


def load_vision(name: str) -> CLIPVisionModel:
    """Load a CLIP vision encoder.

    Args:
        name: "tiny", a folder of `save_pretrained`, or the name of a model from the hub that is on this machine.

    Raises:
        ValueError: there is no such model, or it lacks weights.
    """
    vision: CLIPVisionModel = _load_model(CLIPVisionModel, "vision", name)
    return vision


def load_language(name: str) -> PreTrainedModel:
    """Load a language model; `name` as in `load_vision`.

    Raises:
        ValueError: there is no such model, it lacks weights, or it is not of the LLaMA family.
    """
    language: PreTrainedModel = _load_model(AutoModelForCausalLM, "language", name)
    decoder = language.get_decoder()
    if not hasattr(decoder, "layers") or not hasattr(decoder, "norm"):
        raise ValueError(f"model.language must be of the LLaMA family; got {type(language).__name__}")
    return language


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a language model; `name` as in `load_vision`.

    Raises:
        ValueError: there is no such tokenizer, or it has no end-of-text token.
    """
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, "language", name)
    if tokenizer.eos_token_id is None:
        raise ValueError("model.language must have a tokenizer that marks the end of a text; it does not")
    return tokenizer


def picture_side(name: str) -> int:
    """Side in pixels of the pictures that a vision encoder takes; `name` as in `load_vision`.

    Raises:
        ValueError: there is no such encoder.
    """
    return int(_load(CLIPVisionConfig, "vision", name).image_size)


@lru_cache(maxsize=4)
def fingerprint(vision: str, language: str) -> str:
    """SHA-256 of the vocabulary and all pretrained weights.

    Frozen weights are never sent, so this is how server and sites find out whether they have the same models.
    """
    models: dict[str, PreTrainedModel] = {"vision": load_vision(vision), "language": load_language(language)}
    tokenizer = load_tokenizer(language)
    _check_words(tokenizer, models["language"])
    tensors = {f"{part}.{name}": v for part, model in models.items() for name, v in model.state_dict().items()}
    return digest(tensors, tokenizer.get_vocab())


def _embeddings(language: PreTrainedModel) -> nn.Embedding:
    """The embeddings of the words."""
    embeddings: nn.Embedding = language.get_input_embeddings()  # type: ignore[assignment]
    return embeddings


def _check_words(tokenizer: PreTrainedTokenizerBase, language: PreTrainedModel) -> None:
    size = _embeddings(language).num_embeddings
    if len(tokenizer) > size:
        got = f"{len(tokenizer)} for {size}"
        raise ValueError(f"a tokenizer must have no more words than its model has embeddings; got {got}")


def _load_model(kind: Any, part: Part, name: str) -> Any:
    # Only safetensors are loaded: other formats of weights can run code.
    model, found = _load(kind, part, name, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    num_missing = len(found["missing_keys"]) + len(found["mismatched_keys"])
    if num_missing:
        raise ValueError(f"model.{part} must hold every weight of a {type(model).__name__}; {num_missing} are missing")
    return model


def _load(kind: Any, part: Part, name: str, **options: object) -> Any:
    try:
        # Without `trust_remote_code=False`, transformers asks at the terminal whether to run code from the folder.
        return kind.from_pretrained(_folder(part, name), local_files_only=True, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        rule = "'tiny', a folder of save_pretrained or a hub name fetched before with `hf download`, with safetensors"
        raise ValueError(f"model.{part} must be {rule}; got {name!r} ({type(error).__name__})") from None


def _folder(part: Part, name: str) -> Path:
    """The folder of a model on this machine; nothing is downloaded, because a job must not make a site fetch files."""
    if name == "tiny":
        return tiny(part)
    return Path(name) if Path(name).is_dir() else Path(snapshot_download(name, local_files_only=True))
