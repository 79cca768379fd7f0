"""PSP (prefix-suffix prompting): global knowledge before the backbone's tokens, the site's own tokens after them.

Letters: b batch, l tokens of the backbone, d their width, p suffix tokens, n length of the prompted sequence
(2l + p, or l + p without a prefix).  Paper: arXiv 2603.21660, sec. 3.2, "Prefix-Suffix Spectral Prompting".
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class PrefixSuffix(nn.Module):
    """r' = [Z || r || c]: prefix Z, tokens r, suffix c.  c is p learnable tokens that never leave the site.

    Args:
        dim: d.
        num_suffix: p, at least 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, dim: int, num_suffix: int) -> None:
        super().__init__()
        _check_sizes(dim, num_suffix)
        self.num_suffix = num_suffix
        self.suffix = nn.Parameter(0.02 * torch.randn(num_suffix, dim))

    def forward(self, Z: Float[Tensor, "b l d"] | None, r: Float[Tensor, "b l d"]) -> Float[Tensor, "b n d"]:
        """[Z || r || c]; without Z, as in a baseline of equal capacity, [r || c]."""
        suffix = self.suffix.to(r.dtype).expand(r.shape[0], -1, -1)
        return torch.cat([r, suffix] if Z is None else [Z, r, suffix], dim=1)


class LinearPrompt(nn.Module):
    """Ablation "w/o PSP": a linear projection of r to as many tokens as [Z || r || c] has; Z is not used.

    Every token becomes two: the first takes the place of Z, the second the place of r.  The mean token becomes the
    p tokens of the suffix.

    Args:
        dim: d.
        num_suffix: p, at least 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, dim: int, num_suffix: int) -> None:
        super().__init__()
        _check_sizes(dim, num_suffix)
        self.num_suffix = num_suffix
        self.halves = nn.Linear(dim, 2 * dim)
        self.rest = nn.Linear(dim, num_suffix * dim) if num_suffix else None

    def forward(self, Z: Float[Tensor, "b l d"] | None, r: Float[Tensor, "b l d"]) -> Float[Tensor, "b n d"]:
        """2l + p tokens."""
        parts = list(self.halves(r).chunk(2, dim=-1))
        if self.rest is not None:
            parts.append(self.rest(r.mean(dim=1)).unflatten(-1, (self.num_suffix, -1)))
        return torch.cat(parts, dim=1)


class PromptReader(nn.Module):
    """One attention layer (normalisation first) through which chosen tokens read the prompted sequence.

    Args:
        dim: d.
        reads: which tokens read and are returned.  "middle": the l tokens of r, for dense tasks.  "suffix": the p
            tokens of c, for classification.  "all": the sequence is returned unchanged, for language models, which
            read it themselves; then there are no parameters.
        num_heads: number of attention heads, a divisor of d; by default the largest divisor up to 4.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, dim: int, reads: Literal["middle", "suffix", "all"], num_heads: int | None = None) -> None:
        super().__init__()
        _check_sizes(dim, 0)
        if reads not in ("middle", "suffix", "all"):
            raise ValueError(f"reads must be 'middle', 'suffix' or 'all'; got {reads!r}")
        if num_heads is None:
            num_heads = max(heads for heads in (1, 2, 3, 4) if dim % heads == 0)
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must be a divisor of dim {dim}; got {num_heads}")
        self.reads = reads
        self.num_heads = num_heads
        if reads == "all":
            return
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim)
        if reads == "middle":
            # At first the tokens are returned unchanged, so that training starts from the plain network.
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)

    def forward(self, sequence: Float[Tensor, "b n d"], r_length: int, num_suffix: int) -> Float[Tensor, "b chosen d"]:
        """The chosen tokens after reading: l or p tokens, or the sequence unchanged.

        Args:
            sequence: [Z || r || c] or [r || c].
            r_length: l.
            num_suffix: p.

        Raises:
            ValueError: the length is neither 2l + p nor l + p, or the suffix should read and there is none.
        """
        length = sequence.shape[1]
        if length not in (2 * r_length + num_suffix, r_length + num_suffix):
            raise ValueError(f"sequence must hold 2l + p or l + p tokens, l={r_length}, p={num_suffix}; got {length}")
        if self.reads == "all":
            return sequence
        if self.reads == "suffix" and num_suffix < 1:
            raise ValueError(f"num_suffix must be at least 1 where the suffix reads; got {num_suffix}")
        end_of_r = length - num_suffix
        chosen = slice(end_of_r - r_length, end_of_r) if self.reads == "middle" else slice(end_of_r, length)
        normed = self.norm(sequence)
        query = self._heads(self.query(normed[:, chosen]))
        key, value = (self._heads(part) for part in self.key_value(normed).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        read: Tensor = sequence[:, chosen] + self.output(attended)
        return read

    def _heads(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b heads n width"]:
        return tokens.reshape(*tokens.shape[:2], self.num_heads, -1).transpose(1, 2)


def _check_sizes(dim: int, num_suffix: int) -> None:
    if dim < 1 or num_suffix < 0:
        raise ValueError(f"dim must be at least 1 and num_suffix at least 0; got {dim}, {num_suffix}")
