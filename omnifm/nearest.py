"""What somebody may have meant by a word that is unknown: the nearest of the words that are known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message that refuses `word`; empty where no known word is near.

    >>> did_you_mean("fedprx", ["fedavg", "fedprox"])
    "; did you mean 'fedprox'?"

    Args:
        prefix: stands before the suggested word, for example "train.".
    """
    found = nearest(word, known)
    return "" if found is None else f"; did you mean {prefix + found!r}?"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is nearest to `word`, None if none is near.

    Words with the same initials are near ("learning_rate" and "lr"), then words of which one ends or begins with the
    other ("epochs" and "local_epochs"), then words that are spelt alike.
    """
    names = sorted(known)
    lower = _plain(word)
    for near in (_same_initials, _one_in_the_other):
        if found := [name for name in names if near(lower, _plain(name))]:
            return found[0]
    spelt = difflib.get_close_matches(lower, [_plain(name) for name in names], n=1, cutoff=0.6)
    return next((name for name in names if _plain(name) in spelt), None)


def _plain(word: str) -> str:
    return word.lower().replace("-", "_").replace(" ", "_")


def _same_initials(one: str, other: str) -> bool:
    """Whether one word is the initials of the other: "lr" of "learning_rate"."""
    return one in (_initials(other), other) or other == _initials(one)


def _initials(word: str) -> str:
    return "".join(part[:1] for part in word.split("_")) if "_" in word else word


def _one_in_the_other(one: str, other: str) -> bool:
    """Whether one word is the first or the last parts of the other: "epochs" of "local_epochs"."""
    return any(
        long.startswith(f"{short}_") or long.endswith(f"_{short}") for short, long in ((one, other), (other, one))
    )
