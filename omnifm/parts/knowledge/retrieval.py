"""Retrieval: which prototypes are nearest to a spectral token.

Letters: b batch, n candidates, q queries, k retrieved, d token width.  Paper: arXiv 2603.21660, sec. 3.3.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

MIN_NORM = 1e-6
"""A shorter vector has no direction: its values are rounding noise."""
DECIMALS = 6
"""Cosines are rounded to this many decimals, so that all machines see the same ties and the same order."""


def retrieve(
    tokens: Float[Tensor, "b d"], candidates: Float[Tensor, "n d"], mean: Float[Tensor, " d"] | None, k: int
) -> Int[Tensor, "b chosen"]:
    """Rows of the min(k, n) candidates that are nearest to each token by cosine, best first.

    Of two equally near candidates the first row wins.

    >>> candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.7, 0.7]])
    >>> retrieve(torch.tensor([[1.0, 0.1]]), candidates, None, k=2)
    tensor([[0, 2]])

    Args:
        tokens: one per sample.
        candidates: the site's shortlist.
        mean: the bank's mean, which is subtracted from both; None compares the vectors as they are.
        k: number of prototypes per token, at least 0.

    Raises:
        ValueError: `k` is negative.
    """
    if k < 0:
        raise ValueError(f"k must be at least 0; got {k}")
    with torch.no_grad():
        wanted = tokens.float()
        offered = candidates.to(wanted)
        shift = None if mean is None else mean.to(wanted)
        similarity = cosines(directions(wanted, shift), directions(offered, shift))
        return torch.sort(similarity, dim=1, descending=True, stable=True).indices[:, :k]


def directions(vectors: Float[Tensor, "n d"], mean: Float[Tensor, " d"] | None) -> Float[Tensor, "n d"]:
    """Unit vectors after subtracting `mean`; zeros where a vector equals the mean.

    >>> directions(torch.tensor([[3.0, 5.0], [1.0, 1.0]]), torch.tensor([1.0, 1.0])).round(decimals=3)
    tensor([[0.4470, 0.8940],
            [0.0000, 0.0000]])
    """
    return F.normalize(vectors if mean is None else vectors - mean, dim=-1, eps=MIN_NORM)


def cosines(queries: Float[Tensor, "q d"], candidates: Float[Tensor, "n d"]) -> Float[Tensor, "q n"]:
    """Cosines between unit vectors, rounded to `DECIMALS`."""
    return (queries @ candidates.T).round(decimals=DECIMALS)
