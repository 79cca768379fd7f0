"""Ours, not the paper's: a site mixes what it received with what it trained last, as its own validation split advises.

Where sites differ, an average is at first worse than what a site had, and where they are alike it is better; a mixture
of two models trained from one start is often better than both (model soups, Wortsman et al. 2022, arXiv 2203.05482; own
and shared model mixed: APFL, Deng et al. 2020, arXiv 2003.13461).  Nothing of it leaves the site.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from omnifm.method import LocalRound

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of what the site trained last, in the order tried: only a strictly better validation score moves it from what it
received."""


def stir(local: LocalRound, own: Mapping[str, Tensor], names: Collection[str]) -> float:
    """Set the named weights of the site's model to the best mixture and return its share of the site's own.

    Args:
        own: what the site trained last; without all of the names nothing is mixed.
        names: shared tensors that are mixed.
    """
    if not own.keys() >= set(names):
        return 0.0
    received = {name: local.received[name] for name in names}
    before = {name: own[name].to(received[name]) for name in names}
    best, kept = None, 0.0
    for share in SHARES:
        _set(local, received, before, share)
        scores = local.validate()
        if best is None or local.task.better(scores, best):
            best, kept = scores, share
    _set(local, received, before, kept)
    return kept


def _set(local: LocalRound, received: Mapping[str, Tensor], own: Mapping[str, Tensor], share: float) -> None:
    mixed = {name: torch.lerp(received[name], own[name], share) for name in received}
    local.model.load_state_dict(mixed, strict=False)
