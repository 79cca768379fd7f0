"""Dealing cases to splits and to sites: pure functions on lists, seeded."""

import hashlib
from collections.abc import Hashable, Sequence
from itertools import accumulate

import numpy as np

SHARES = (0.6, 0.2, 0.2)
"""Training, validation, test where a data set brings no split of its own."""


def seeded_order(names: Sequence[str], seed: int) -> list[str]:
    """The distinct names, shuffled.

    Sorted by a hash of seed and name rather than by a generator: no library version changes it, and a case
    that joins later leaves the others' order alone.
    """
    return sorted(set(names), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())


def split_by_patient(
    patients: Sequence[str], shares: Sequence[float] = SHARES, seed: int = 0
) -> tuple[tuple[int, ...], ...]:
    """Deal items to splits so that no patient is in two of them.

    Args:
        patients: each item's patient.
        shares: of patients per split, each > 0, any sum.  With at least as many patients as splits none stays
            empty; with fewer the first splits are served first.
        seed: of the shuffle.

    Returns:
        one tuple of item indices (ascending) per share.

    Raises:
        ValueError: a share is not > 0.
    """
    if not shares or min(shares) <= 0:
        raise ValueError(f"shares must be positive numbers; got {tuple(shares)}")
    order = seeded_order(patients, seed)
    sizes = _whole_sizes(len(order), shares)
    parts = [set(names) for names in _cut(order, sizes)]
    return tuple(tuple(i for i, name in enumerate(patients) if name in part) for part in parts)


def three_way(patients: Sequence[str], seed: int = 0) -> dict[str, tuple[int, ...]]:
    """`split_by_patient` into training, validation and test; of two patients none goes to validation."""
    # A site with two patients needs a test more than a validation.
    training, test, validation = split_by_patient(patients, (SHARES[0], SHARES[2], SHARES[1]), seed)
    return {"training": training, "validation": validation, "test": test}


def dirichlet(labels: Sequence[Hashable], num_sites: int, alpha: float, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Deal items to sites with skewed label shares: each label is cut by a draw from Dirichlet(alpha).

    Args:
        labels: each item's label.
        num_sites: >= 1.
        alpha: > 0; 0.1 gives sites nearly one label each, 100 nearly equal sites.
        seed: of draw and shuffle.

    Returns:
        one tuple of item indices (ascending) per site; a site may be empty when alpha is small.

    Raises:
        ValueError: `num_sites` or `alpha` out of range.
    """
    if num_sites < 1 or not alpha > 0:
        raise ValueError(f"num_sites must be >= 1 and alpha > 0; got {num_sites} and {alpha}")
    generator = np.random.default_rng(seed)
    sites: list[list[int]] = [[] for _ in range(num_sites)]
    for label in sorted(set(labels), key=str):
        members = generator.permutation([i for i, own in enumerate(labels) if own == label])
        cuts = (np.cumsum(generator.dirichlet([alpha] * num_sites))[:-1] * len(members)).astype(int)
        for site, part in zip(sites, np.split(members, cuts), strict=True):
            site.extend(part.tolist())
    return tuple(tuple(sorted(site)) for site in sites)


def by_modality(modalities: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """One site per modality, in alphabetical order: the paper's scenario of sites that share no modality."""
    names = sorted(set(modalities))
    return {name: tuple(i for i, own in enumerate(modalities) if own == name) for name in names}


def by_count(patients: Sequence[str], shares: Sequence[float], seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Deal items to sites of unequal size, whole patients at a time; `shares` as in `split_by_patient`."""
    return split_by_patient(patients, shares, seed)


def _whole_sizes(total: int, shares: Sequence[float]) -> list[int]:
    """`total` in whole parts close to the shares; every part gets one while there are enough."""
    if total <= len(shares):
        return [1] * total + [0] * (len(shares) - total)
    rest, weight = total - len(shares), sum(shares)
    wanted = [max(0.0, share / weight * total - 1) for share in shares]  # each part already holds one
    ends = [round(end / sum(wanted) * rest) for end in accumulate(wanted)]
    return [1 + end - start for start, end in zip([0, *ends], ends, strict=False)]


def _cut(order: Sequence[str], sizes: Sequence[int]) -> list[Sequence[str]]:
    ends = list(accumulate(sizes))
    return [order[end - size : end] for end, size in zip(ends, sizes, strict=True)]
