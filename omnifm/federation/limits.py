"""Rules that decide whether a site's reply may take part in a round, and how much one site may weigh.

`Partition.refuse` checks which tensors a reply must hold.  The rules here check the rest: the plain fields have the
declared types, the change is not much larger than the other sites', and no site outweighs all the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from omnifm import statistics
from omnifm.method import Tensors
from omnifm.update import Update

COUNT_KEYS = ("num_train", "num_validation", "num_test", "num_refused")
"""Keys of `Facts` that count cases."""
MAX_COUNT = 10**9
"""Largest number of cases that a site may claim."""
SPLIT_BY = ("patient", "image")
"""What a site's splits may rest on."""
MAX_MODALITIES = 32
"""Largest number of modalities of a site.  The bank always keeps one entry of each modality of each site."""
MIN_PEERS = 3
"""Smallest number of replies whose median shows which one is unusual; of two, nobody can say which is wrong."""


class Change(NamedTuple):
    """How much a site changed what it received."""

    norm: float
    """L2 norm over all tensors, computed in float64."""
    tensor: str
    """Name of the tensor that changed most; empty if there is none."""


def malformed(update: Update) -> str | None:
    """Return why the plain fields do not have the declared types or ranges, or None if they do."""
    if type(update.num_samples) is not int:
        return f"num_samples must be a positive integer; got {update.num_samples!r:.20}"
    for name, value in (("train_loss", update.train_loss), ("seconds", update.seconds)):
        if not _finite(value) and not (value is None and name == "train_loss"):
            return f"{name} must be finite; got {value!r:.20}"
    for name, score in [*update.before.items(), *update.after.items()]:
        if score.mean is not None and not _finite(score.mean):
            return f"metric {name!r:.30} must be finite or None; got {score.mean!r:.20}"
        if not all(type(count) is int and count >= 0 for count in (score.support, score.undefined)):
            return f"metric {name!r:.30} must count its cases; got {score.support!r:.20}, {score.undefined!r:.20}"
    if reason := statistics.malformed(update.statistics):
        return reason
    return _malformed_facts(update) if update.stage == "describe" else None


def _malformed_facts(update: Update) -> str | None:
    facts, modalities = update.facts, update.facts.get("modalities")
    if not isinstance(modalities, dict) or len(modalities) > MAX_MODALITIES:
        return f"facts must count the cases of at most {MAX_MODALITIES} modalities"
    counts = [facts.get(key) for key in COUNT_KEYS] + list(modalities.values())
    if not all(type(count) is int and 0 <= count <= MAX_COUNT for count in counts):
        return f"facts must hold counts of cases per split and modality, 0 to {MAX_COUNT}"
    if facts.get("source") not in ("demo", "site"):
        return "facts must hold the source of the data, demo or site"
    if facts.get("split_by", "image") not in SPLIT_BY:
        return f"facts must say what the splits rest on, {' or '.join(SPLIT_BY)}"
    return None


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def change(sent: Tensors, received: Tensors) -> Change:
    """Measure how much a site changed the shared part.

    >>> import torch
    >>> change({"w": torch.zeros(2), "b": torch.zeros(1)}, {"w": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])})
    Change(norm=5.0, tensor='b')
    """
    squares = {name: float((value.double() - sent[name].double()).square().sum()) for name, value in received.items()}
    return Change(math.sqrt(sum(squares.values())), max(squares, key=lambda name: squares[name], default=""))


def outliers(
    norms: Mapping[str, float], weights: Mapping[str, int], past: Sequence[float], ratio: float
) -> dict[str, float]:
    """Find the sites whose change is too large to be trusted.

    The reference is the median of the round's norms.  With fewer than MIN_PEERS replies it is the smallest of them or
    the median of `past`, whichever is larger: honest changes may grow from round to round (LoRA starts near zero), so
    a reply must be larger than both to be refused.  A site may change `ratio` times the reference, and
    proportionally more if it weighs more than the median site, because it takes more steps.  Without a reference, or
    if nobody changed anything, there is no limit.

    Args:
        norms: norm of the change, by site that replied.
        weights: number of training cases of each of these sites, after `capped`.
        past: norms of the accepted replies of earlier rounds.
        ratio: greater than 1.

    Returns:
        The largest allowed norm, by site that exceeds it.

    >>> outliers({"a": 1.0, "b": 1.2, "c": 50.0}, {"a": 10, "b": 10, "c": 10}, [], 10.0)
    {'c': 12.0}
    """
    if len(norms) < MIN_PEERS:
        reference = max(min(norms.values()), median(past)) if norms and past else 0.0
    else:
        reference = median(norms.values())
    if not reference:
        return {}
    usual = median(weights[site] for site in norms)
    bounds = {site: ratio * reference * max(1.0, weights[site] / usual) for site in norms}
    return {site: bounds[site] for site in sorted(norms) if not norms[site] <= bounds[site]}


def capped(counts: Mapping[str, int], ratio: float) -> dict[str, int]:
    """Limit the weight of each site to `ratio` times the median site's number of training cases.

    The median is over all sites of the federation that have a case, not over one round's replies, so that a site's
    weight does not depend on which other sites were drawn.  With fewer than MIN_PEERS sites there is no limit.

    >>> capped({"a": 10, "b": 10, "c": 900}, ratio=3.0)
    {'a': 10, 'b': 10, 'c': 30}
    """
    present = [count for count in counts.values() if count > 0]
    if len(present) < MIN_PEERS:
        return dict(counts)
    most = max(1, int(ratio * median(present)))
    return {site: min(count, most) for site, count in counts.items()}
