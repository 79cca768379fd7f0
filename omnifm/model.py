"""OmniModel: the only file that joins the paper's parts; `forward` reads like its figure 3.

Letters: b batch, l tokens of the backbone, q backbone width, d spectral width, k retrieved prototypes, p suffix tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from omnifm.config import STRICT
from omnifm.method import Model, Output, Tensors
from omnifm.parts.cross_attention import CrossAttention, FiLM
from omnifm.parts.knowledge import retrieve
from omnifm.parts.prompts import LinearPrompt, PrefixSuffix, PromptReader
from omnifm.parts.spectral import SpectralTokenizer
from omnifm.task import Backbone, Batch


class PlainModel(Model):
    """The backbone and its own head, as every baseline of capacity `paper` trains it."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch, extra: Tensors) -> Output:
        tokens, features = self.backbone.encode(batch)
        return Output(self.backbone.decode(tokens, features, batch))


class MatchedModel(Model):
    """OmniFM's head and suffix without its spectral parts: [r || c].  The fair rival (capacity `matched`)."""

    def __init__(self, backbone: Backbone, num_suffix: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.prompts = PrefixSuffix(backbone.width, num_suffix)
        self.reader = PromptReader(backbone.width, backbone.reads)

    def forward(self, batch: Batch, extra: Tensors) -> Output:
        r, features = self.backbone.encode(batch)
        read = self.reader(self.prompts(None, r), r.shape[1], self.prompts.num_suffix)
        return Output(self.backbone.decode(read, features, batch))

    def personal(self) -> Sequence[nn.Module | nn.Parameter]:
        """Head, suffix and the attention that reads it."""
        return [*self.backbone.head(), self.prompts, self.reader]


@settings(frozen=True, config=STRICT)
class Capacity:
    """A baseline's section of a job, as far as all have it: algorithm.md 7 wants each in two capacities."""

    capacity: Literal["paper", "matched"] = "paper"
    """`paper` is the plain head; `matched` has OmniFM's own head and suffix, without its spectral parts."""
    num_suffix: Annotated[int, Field(ge=1, le=64)] = 4
    """Suffix tokens p of the matched head."""
    soup: bool = False
    """Whether a site keeps the mixture of received and trained weights that its validation split likes best
    (`omnifm.methods._soup`, ours)."""

    def around(self, backbone: Backbone) -> Model:
        """The model that a baseline trains."""
        return MatchedModel(backbone, self.num_suffix) if self.capacity == "matched" else PlainModel(backbone)


@dataclass(frozen=True)
class Parts:
    """Which parts OmniModel is made of; the defaults are the paper's with our resolutions.

    Attributes:
        dim: spectral width d. num_bands: R. keep: low-pass radius. keep_per_mm: cycles/mm for `physical`.
        fusion: ECA, or FiLM (ablation). prompting: PSP, or a linear projection (ablation).
    """

    dim: int
    num_bands: int
    keep: float
    low_pass: Literal["nyquist", "physical"]
    keep_per_mm: float | None
    num_retrieved: int
    num_suffix: int
    local_key: bool
    fusion: Literal["attention", "film"]
    prompting: Literal["prefix_suffix", "linear"]


class OmniModel(Model):
    """Spectral tokenizer, retrieval, cross-attention and prompts around any backbone (figure 3)."""

    def __init__(self, backbone: Backbone, parts: Parts, spacing_mm: tuple[float, ...] | None = None) -> None:
        super().__init__()
        width = backbone.width
        self.parts, self.spacing_mm = parts, spacing_mm
        self.backbone = backbone
        self.tokenizer = SpectralTokenizer(
            parts.dim, parts.num_bands, parts.keep, low_pass=parts.low_pass, keep_per_mm=parts.keep_per_mm
        )
        fusion: Any = CrossAttention if parts.fusion == "attention" else FiLM
        self.fusion = fusion(width, parts.dim, local_key=parts.local_key)
        prompting: Any = PrefixSuffix if parts.prompting == "prefix_suffix" else LinearPrompt
        self.prompts = prompting(width, parts.num_suffix)
        self.reader = PromptReader(width, backbone.reads)

    def forward(self, batch: Batch, extra: Tensors) -> Output:
        """Predict; `extra` holds the shortlist `prototypes` (n d) and, if centred, the bank's `mean` (d)."""
        s = self.tokenizer(batch["image"], self.spacing_mm)  # eq. 3
        r, features = self.backbone.encode(batch)
        chosen, retrieved = self.retrieve(s, extra)  # GSKR
        z = self.fusion(r, retrieved, s)  # ECA, eq. 4
        sequence = self.prompts(z, r)  # PSP: [Z || r || c]
        read = self.reader(sequence, r.shape[1], self.parts.num_suffix)
        return Output(self.backbone.decode(read, features, batch), s, retrieved, chosen)

    def retrieve(self, s: Tensor, extra: Tensors) -> tuple[Tensor, Tensor]:
        """Each sample's top-k of the shortlist: rows (b k) and prototypes (b k d), constants."""
        if "prototypes" not in extra or not len(extra["prototypes"]):
            return s.new_zeros(len(s), 0, dtype=torch.long), s.new_zeros(len(s), 0, s.shape[1])
        prototypes = extra["prototypes"].detach()
        chosen = retrieve(s.detach(), prototypes, extra.get("mean"), self.parts.num_retrieved)
        return chosen, prototypes[chosen]

    def personal(self) -> Sequence[nn.Module | nn.Parameter]:
        """Head, suffix and the attention that reads it."""
        return [*self.backbone.head(), self.prompts, self.reader]
