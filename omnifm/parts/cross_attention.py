"""ECA (embedding-wise cross-attention): every token of the backbone attends to the retrieved spectral prototypes.

Letters: b batch, l tokens of the backbone, q their width, k retrieved prototypes, n keys (k or k + 1), d spectral
token width.  Paper: arXiv 2603.21660, sec. 3.2, eq. (4).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class CrossAttention(nn.Module):
    """Z = softmax(r Wq (S Wk)^T / sqrt(dh)) S Wv (eq. 4).

    Our decision, where the paper is silent: the sample's own token s is one more key.  Without it the task's loss
    gives the tokenizer no gradient, and the tokens of all sites become one vector.

    Args:
        query_dim: q, width of the backbone's tokens.
        key_dim: d, width of spectral tokens.
        head_dim: dh, by default d.  If dh differs from q, an output projection brings Z back to width q.
        local_key: whether s is a key; False follows the paper's text exactly.

    Raises:
        ValueError: a width is below 1.
    """

    def __init__(self, query_dim: int, key_dim: int, head_dim: int | None = None, local_key: bool = True) -> None:
        super().__init__()
        head_dim = key_dim if head_dim is None else head_dim
        _check_widths(query_dim, key_dim, head_dim)
        self.local_key = local_key
        self.query = nn.Linear(query_dim, head_dim, bias=False)
        self.key = nn.Linear(key_dim, head_dim, bias=False)
        self.value = nn.Linear(key_dim, head_dim, bias=False)
        self.output = nn.Identity() if head_dim == query_dim else nn.Linear(head_dim, query_dim, bias=False)

    def forward(
        self, r: Float[Tensor, "b l q"], retrieved: Float[Tensor, "b k d"], s: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b l q"]:
        """Z, one prefix token for each token of the backbone.

        Args:
            r: tokens of the backbone.
            retrieved: each sample's prototypes, used as constants; k may be 0.
            s: each sample's own spectral token.

        Returns:
            Z; zeros if there is no key at all (k = 0 without `local_key`).
        """
        keys = _keys(retrieved, s, self.local_key)
        if keys.shape[1] == 0:
            return torch.zeros_like(r)
        attended = F.scaled_dot_product_attention(self.query(r), self.key(keys), self.value(keys))
        prefix: Tensor = self.output(attended)
        return prefix


class FiLM(nn.Module):
    """Ablation "w/o ECA": Z = gamma(mean S) * r + beta(mean S).

    At first gamma is 1 and beta is 0, so Z = r.

    Args:
        query_dim: q, width of the backbone's tokens.
        key_dim: d, width of spectral tokens.
        local_key: whether the mean includes s.

    Raises:
        ValueError: a width is below 1.
    """

    def __init__(self, query_dim: int, key_dim: int, local_key: bool = True) -> None:
        super().__init__()
        _check_widths(query_dim, key_dim)
        self.local_key = local_key
        self.condition = nn.Linear(key_dim, 2 * query_dim)
        nn.init.zeros_(self.condition.weight)
        nn.init.zeros_(self.condition.bias)

    def forward(
        self, r: Float[Tensor, "b l q"], retrieved: Float[Tensor, "b k d"], s: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b l q"]:
        """Z, with the arguments of `CrossAttention.forward`; without any key the mean is the zero vector."""
        keys = _keys(retrieved, s, self.local_key)
        mean = keys.sum(dim=1) / max(keys.shape[1], 1)
        gamma, beta = self.condition(mean)[:, None].chunk(2, dim=-1)
        return (1 + gamma) * r + beta


def _keys(retrieved: Float[Tensor, "b k d"], s: Float[Tensor, "b d"], local_key: bool) -> Float[Tensor, "b n d"]:
    """S: the prototypes, without gradient, followed by s if it is a key."""
    constants = retrieved.detach().to(s.dtype)
    return torch.cat([constants, s[:, None]], dim=1) if local_key else constants


def _check_widths(*widths: int) -> None:
    if min(widths) < 1:
        raise ValueError(f"widths must be at least 1; got {widths}")
