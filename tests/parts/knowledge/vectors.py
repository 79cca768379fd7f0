"""Random unit vectors, and banks of them."""

import torch
from torch.nn.functional import normalize

from omnifm.parts.knowledge import KnowledgeBank


def vectors(m: int, d: int = 4, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(m, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def bank_of(*sites: str, d: int = 4, **settings: object) -> KnowledgeBank:
    """One entry per name, with ids 0, 1, ... and no modality, made in round 0."""
    bank = KnowledgeBank(d, **settings)
    for i, site in enumerate(sites):
        bank.insert(vectors(1, d, seed=i), site, "", 0)
    return bank
