"""Two numbers that tell whether the vectors of the bank differ, or have collapsed into one.

Letters: n vectors, d their width.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def effective_rank(vectors: Float[Tensor, "n d"]) -> float:
    """Number of directions that the vectors use: exp of the entropy of the normalised singular values.

    In [1, min(n, d)]; 0 without vectors.  Source: Roy and Vetterli 2007, EUSIPCO, definition 1.

    >>> round(effective_rank(torch.eye(3)), 4), round(effective_rank(torch.ones(5, 3)), 4)
    (3.0, 1.0)
    """
    if not len(vectors):
        return 0.0
    values = torch.linalg.svdvals(vectors.double())
    if float(values.sum()) == 0:
        return 1.0
    share = values / values.sum()
    return math.exp(float(torch.special.entr(share).sum()))


def mean_cosine(vectors: Float[Tensor, "n d"]) -> float:
    """Mean cosine over all pairs of vectors, in [-1, 1]; 1 for fewer than two vectors.

    >>> mean_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]))  # cosines 0, 1 and 0
    0.3333333333333333
    """
    size = len(vectors)
    if size < 2:
        return 1.0
    unit = F.normalize(vectors.double(), dim=1)
    return float((unit.sum(dim=0).square().sum() - unit.square().sum()) / (size * (size - 1)))
