"""Centroids of a site's spectral tokens, which are what the site sends to the bank.

Letters: n tokens, m centroids, d token width.  Paper: arXiv 2603.21660, sec. 3.3 (one centroid per site).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from omnifm.parts.knowledge.retrieval import MIN_NORM


def spherical_kmeans(
    tokens: Float[Tensor, "n d"], m: int, seed: int, num_iterations: int = 20
) -> Float[Tensor, "m_or_n d"]:
    """Unit centroids of a site's tokens by cosine; m = 1 gives the normalised mean.

    A centroid of few patients reveals those patients.  Count the members of each cluster with
    `retrieve(tokens, centroids, None, 1)` before a centroid leaves the site.

    >>> spherical_kmeans(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), m=1, seed=0).round(decimals=4)
    tensor([[0.7071, 0.7071]])

    Args:
        tokens: at least one, finite; they are normalised here.
        m: number of centroids, at least 1; with fewer tokens than m there is one centroid per token.
        seed: of the first choice of centroids (k-means++); equal tokens and seed give equal centroids.
        num_iterations: maximum number of updates, at least 1.

    Returns:
        float32 centroids on the CPU, largest cluster first; clusters of equal size in the order of their coordinates.

    Raises:
        ValueError: an argument is out of its range, or there are no tokens, or a token is not finite.
    """
    if m < 1 or num_iterations < 1:
        raise ValueError(f"m and num_iterations must be at least 1; got {m}, {num_iterations}")
    if not len(tokens) or not bool(torch.isfinite(tokens).all()):
        raise ValueError(f"tokens must be finite and at least one; got shape {tuple(tokens.shape)}")
    points = F.normalize(tokens.detach().to(device="cpu", dtype=torch.float64), dim=1)
    centroids = _first_centroids(points, min(m, len(points)), torch.Generator().manual_seed(seed))
    for _ in range(num_iterations):
        member = F.one_hot((points @ centroids.T).argmax(dim=1), len(centroids)).double()  # n m
        sums = member.T @ points
        # A cluster that is empty, or whose members cancel out, has no direction: it keeps its centroid.
        updated = torch.where(sums.norm(dim=1, keepdim=True) > MIN_NORM, F.normalize(sums, dim=1), centroids)
        if torch.equal(updated, centroids):
            break
        centroids = updated
    counts = (points @ centroids.T).argmax(dim=1).bincount(minlength=len(centroids)).tolist()
    rows = centroids.tolist()
    order = sorted(range(len(rows)), key=lambda i: (-counts[i], rows[i]))
    return centroids[order].float()


def distinct(vectors: Float[Tensor, "m d"], most: float = 0.999) -> list[int]:
    """Rows left after removing near-duplicates: cosine to every earlier row that is kept is at most `most`.

    >>> distinct(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]))
    [0, 2]
    """
    unit = F.normalize(vectors, dim=1)
    rows: list[int] = []
    for row in range(len(unit)):
        if not rows or float((unit[rows] @ unit[row]).max()) <= most:
            rows.append(row)
    return rows


def _first_centroids(points: Float[Tensor, "n d"], m: int, generator: torch.Generator) -> Float[Tensor, "m d"]:
    """k-means++: the chance of a point to be chosen next grows with its distance from the points chosen before."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    while len(chosen) < m:
        distance = (1 - (points @ points[chosen].T).amax(dim=1)).clamp_min(0)
        distance[chosen] = 0
        if float(distance.sum()) < MIN_NORM:
            # All remaining points are copies of chosen ones: any of them will do.
            distance = torch.ones(len(points)).index_fill(0, torch.tensor(chosen), 0)
        chosen.append(int(torch.multinomial(distance, 1, generator=generator)))
    return points[chosen]
