"""Ours, not the paper's: a site keeps the mixture of received and trained weights that its validation split likes best.

A model tuned on few cases forgets part of what it was tuned from, and a point between the two is often better than
either (Wortsman et al. 2022, arXiv 2109.01903; own and shared model mixed: APFL, Deng et al. 2020, arXiv 2003.13461).
It is the site's own model that is mixed, after what leaves was taken: the federation goes on as without it.
"""

from __future__ import annotations

import torch

from omnifm.method import LocalRound

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Of what the site trained, in the order tried: only a strictly better validation score moves it away from that."""


def mix_with_received(local: LocalRound) -> float:
    """Set the shared weights of the site's model to the best mixture and return its share of what was trained.

    Each share costs one pass over the validation split.  What is personal stays as trained.
    """
    trained = local.partition.pick(local.model, "shared")
    if not trained:
        return 1.0
    best, kept = None, 1.0
    for share in SHARES:
        _set(local, trained, share)
        scores = local.validate()
        if best is None or local.task.better(scores, best):
            best, kept = scores, share
    _set(local, trained, kept)
    return kept


def _set(local: LocalRound, trained: dict[str, torch.Tensor], share: float) -> None:
    mixed = {name: torch.lerp(local.received[name].to(own), own, share) for name, own in trained.items()}
    local.model.load_state_dict(mixed, strict=False)
