"""Model soup (ours): a site keeps the mixture of received and trained weights with the best validation score.

A model that is trained further on few cases forgets part of what it knew.  A point between the two sets of weights is
often better than either (Wortsman et al. 2022, arXiv 2109.01903; a mixture of own and shared model: APFL, Deng et al.
2020, arXiv 2003.13461).  The mixture is made after the update was taken, and only the site's own model is mixed.  So
the federation is the same with and without it.
"""

from __future__ import annotations

import torch

from omnifm.method import LocalRound, Tensors

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of the trained weights, in the order of trial; a later share is taken only if its score is strictly better."""


def mix_with_received(local: LocalRound) -> float:
    """Set the shared weights of the site's model to the best mixture; return its share of trained weights, in [0, 1].

    Each share of `SHARES` costs one pass over the validation split.  Personal weights stay as trained.
    """
    trained = local.partition.pick(local.model, "shared")
    if not trained:
        return 1.0
    best = None
    kept = 1.0
    for share in SHARES:
        _load_mixture(local, trained, share)
        scores = local.validate()
        if best is None or local.task.better(scores, best):
            best = scores
            kept = share
    _load_mixture(local, trained, kept)
    return kept


def _load_mixture(local: LocalRound, trained: Tensors, share: float) -> None:
    """Load share * trained + (1 - share) * received into the model."""
    mixed = {name: torch.lerp(local.received[name].to(own), own, share) for name, own in trained.items()}
    local.model.load_state_dict(mixed, strict=False)
