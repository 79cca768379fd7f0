"""Whether a site's reply may take part in a round, and how much one site may weigh.

The manifest (`Partition.refuse`) says which tensors a reply must hold.  Here is the rest: that its plain fields are
what they should be, that its change is of the size of the others', and that no site outweighs them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from omnifm.method import Method, ServerView, Tensors
from omnifm.update import Update

COUNT_KEYS = ("num_train", "num_validation", "num_test", "num_refused")
MAX_COUNT = 10**9
"""Cases of a site above which a count is no count."""
MAX_MODALITIES = 32
"""Modalities of a site; the bank keeps an entry of each, whatever its size."""
MIN_PEERS = 3
"""Replies from which a median tells the odd one: of two, nobody can say which is wrong."""


def malformed(update: Update) -> str | None:
    """Why the plain fields are not numbers as declared, or None if they are."""
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
    return None


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def change(sent: Tensors, received: Tensors) -> tuple[float, str]:
    """L2 norm of what a site changed in the shared part, in float64, and the tensor that changed most ("" for none)."""
    squares = {name: float((value.double() - sent[name].double()).square().sum()) for name, value in received.items()}
    return math.sqrt(sum(squares.values())), max(squares, key=lambda name: squares[name], default="")


def outliers(
    norms: Mapping[str, float], weights: Mapping[str, int], past: Sequence[float], ratio: float
) -> dict[str, float]:
    """Sites whose change is too large to be trusted, with the most that it could have been.

    The reference is the median of the round's norms.  With fewer than MIN_PEERS replies it is the smallest of them or
    the median of `past`, whichever is larger: honest changes may grow from round to round (LoRA starts near zero), so
    a reply must stick out from both.  A site may change `ratio` times as much, and as many times more as it weighs
    more than the median site: it takes more steps.  Without a reference, or where nobody changed anything, there is
    no bound.

    Args:
        norms: norm of each reply's change.
        weights: capped number of training cases of each of these sites.
        past: norms of earlier rounds' accepted replies.
        ratio: greater than 1.
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
    """Weights of the sites: their training cases, but at most `ratio` times the median site's.

    The median is over all sites of the federation with any case, not over one round's replies: a site weighs the same
    whoever else was drawn, until others join.  Fewer than MIN_PEERS sites are not capped.
    """
    present = [count for count in counts.values() if count > 0]
    if len(present) < MIN_PEERS:
        return dict(counts)
    most = max(1, int(ratio * median(present)))
    return {site: min(count, most) for site, count in counts.items()}


def remove_refused(method: Method, update: Update, view: ServerView) -> tuple[Update, list[str]]:
    """Remove the tensors that the method itself refuses (`Method.judge`); return the rest and the reasons."""
    refused = method.judge(update, view)
    extra = {name: value for name, value in update.extra.items() if name not in refused}
    return replace(update, extra=extra), sorted(set(refused.values()))
