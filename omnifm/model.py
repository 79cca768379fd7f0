"""OmniModel: the only file that joins the paper's parts; `forward` follows figure 3.  And the models of the baselines.

Letters: b batch, l tokens of the backbone, q backbone width, n prototypes in the shortlist, d spectral width,
k retrieved prototypes, p suffix tokens.  Paper: arXiv 2603.21660, sec. 3.2 and 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
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
    """The backbone and its own head: what a baseline of capacity `paper` trains."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch, extra: Tensors) -> Output:
        """Predict as the backbone alone does; `extra` is not used."""
        tokens, features = self.backbone.encode(batch)
        return Output(self.backbone.decode(tokens, features, batch))


class MatchedModel(Model):
    """OmniFM's head and suffix without its spectral parts, [r || c]: what a baseline of capacity `matched` trains.

    It has the head capacity of OmniFM, so that a comparison shows what the spectral parts add.
    """

    def __init__(self, backbone: Backbone, num_suffix: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.prompts = PrefixSuffix(backbone.width, num_suffix)
        self.reader = PromptReader(backbone.width, backbone.reads)

    def forward(self, batch: Batch, extra: Tensors) -> Output:
        """Predict from the tokens and the suffix; `extra` is not used."""
        r, features = self.backbone.encode(batch)
        read = self.reader(self.prompts(None, r), r.shape[1], self.prompts.num_suffix)
        return Output(self.backbone.decode(read, features, batch))

    def personal(self) -> Sequence[nn.Module | nn.Parameter]:
        """The head, the suffix, and the attention that reads the suffix."""
        return [*self.backbone.head(), self.prompts, self.reader]


@settings(frozen=True, config=STRICT)
class Capacity:
    """The settings that all baselines share."""

    capacity: Literal["paper", "matched"] = "paper"
    """Head of the model.  `paper`: the backbone's own head.  `matched`: OmniFM's head and suffix, without its spectral
    parts; use it for a fair comparison with OmniFM."""
    num_suffix: Annotated[int, Field(ge=1, le=64)] = 4
    """Number of suffix tokens p of the `matched` head, 1 to 64; more tokens give the personal head more capacity."""
    soup: bool = False
    """Whether a site keeps a mixture of the received and its trained weights: the one that is best on its validation
    split (ours).  False keeps the trained weights.  What the site sends does not change."""

    def around(self, backbone: Backbone) -> Model:
        """The model of a baseline around this backbone."""
        return MatchedModel(backbone, self.num_suffix) if self.capacity == "matched" else PlainModel(backbone)


@dataclass(frozen=True)
class Parts:
    """The choices that make an OmniModel; each is a setting of the method `omnifm` with the same name."""

    dim: int
    """Width d of spectral tokens."""
    num_bands: int
    """Number of radial bands of the spectrum."""
    keep: float
    """Low-pass radius as a share of Nyquist, for `low_pass` "nyquist"."""
    low_pass: Literal["nyquist", "physical"]
    """Unit of the low-pass radius."""
    keep_per_mm: float | None
    """Low-pass radius in cycles/mm, for `low_pass` "physical"."""
    num_retrieved: int
    """Number of prototypes k per sample."""
    num_suffix: int
    """Number of suffix tokens p."""
    local_key: bool
    """Whether the sample's own spectral token is one more key of the attention."""
    fusion: Literal["attention", "film"]
    """ECA, or FiLM (ablation)."""
    prompting: Literal["prefix_suffix", "linear"]
    """PSP, or a linear projection (ablation)."""


class OmniModel(Model):
    """Spectral tokenizer, retrieval, cross-attention and prompts around any backbone (figure 3).

    Args:
        backbone: the task's network.
        parts: which variant of each part, and their sizes.
        spacing_mm: the voxel size that all sites agreed on, if the task has one; needed for `low_pass` "physical".
    """

    def __init__(self, backbone: Backbone, parts: Parts, spacing_mm: tuple[float, ...] | None = None) -> None:
        super().__init__()
        width = backbone.width
        self.parts = parts
        self.spacing_mm = spacing_mm
        self.backbone = backbone
        self.tokenizer = SpectralTokenizer(
            parts.dim, parts.num_bands, parts.keep, low_pass=parts.low_pass, keep_per_mm=parts.keep_per_mm
        )
        fusion = CrossAttention if parts.fusion == "attention" else FiLM
        self.fusion = fusion(width, parts.dim, local_key=parts.local_key)
        prompting = PrefixSuffix if parts.prompting == "prefix_suffix" else LinearPrompt
        self.prompts = prompting(width, parts.num_suffix)
        self.reader = PromptReader(width, backbone.reads)

    def forward(self, batch: Batch, extra: Tensors) -> Output:
        """Predict; `extra` holds the shortlist `prototypes` (n d) and, under centring, the bank's `mean` (d)."""
        s = self.tokenizer(batch["image"], self.spacing_mm)  # eq. 3
        r, features = self.backbone.encode(batch)
        chosen, retrieved = self.retrieve(s, extra)  # GSKR
        z = self.fusion(r, retrieved, s)  # ECA, eq. 4
        sequence = self.prompts(z, r)  # PSP: [Z || r || c]
        read = self.reader(sequence, r.shape[1], self.parts.num_suffix)
        return Output(self.backbone.decode(read, features, batch), s, retrieved, chosen)

    def retrieve(self, s: Float[Tensor, "b d"], extra: Tensors) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k d"]]:
        """Each sample's k nearest prototypes: their rows in the shortlist, and the prototypes as constants."""
        if "prototypes" not in extra or not len(extra["prototypes"]):
            return s.new_zeros(len(s), 0, dtype=torch.long), s.new_zeros(len(s), 0, s.shape[1])
        prototypes = extra["prototypes"].detach()
        chosen = retrieve(s.detach(), prototypes, extra.get("mean"), self.parts.num_retrieved)
        return chosen, prototypes[chosen]

    def personal(self) -> Sequence[nn.Module | nn.Parameter]:
        """The head, the suffix, and the attention that reads the suffix."""
        return [*self.backbone.head(), self.prompts, self.reader]
