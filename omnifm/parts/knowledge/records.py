"""The records of the knowledge bank: its settings, its saved state, its numbers for the round's report."""

from typing import TypedDict


class BankSettings(TypedDict):
    """The arguments of `KnowledgeBank`, as a saved bank records them."""

    dim: int
    max_size: int
    radius: float
    ring: int
    decay: float
    grace: int
    prune: float
    ttl: int
    center: bool
    exclude_self: bool


class BankRecord(TypedDict):
    """The part of a saved bank that is JSON."""

    settings: BankSettings
    site: list[str]
    modality: list[str]
    next_id: int


class Monitors(TypedDict):
    """The state of the bank after a round."""

    size: int
    """Number of entries M."""
    effective_rank: float
    """Number of directions in use, in [1, min(M, d)]; 0 for an empty bank."""
    mean_cosine: float
    """Mean cosine over pairs, not centred; 1 for fewer than two entries."""
    by_site: dict[str, int]
    by_modality: dict[str, int]
    collapsed: bool
    """Whether the effective rank is below 2: the vectors, not centred, point almost the same way.  Alignment does this,
    and retrieval still works, because it compares centred vectors: `alike` tells whether it does."""
    centred_rank: float
    """As `effective_rank`, after subtracting the mean.  Two kinds of vectors have rank 1, three have at most rank 2."""
    centred_cosine: float
    """As `mean_cosine`, after subtracting the mean; without structure it is -1 / (M - 1)."""
    alike: bool
    """Whether the vectors are equal but for rounding, so that retrieval has nothing to tell them apart by."""
