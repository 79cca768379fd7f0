"""Synthetic demo data, one file per task: `make(folder, site, seed)` writes one site's dataset.json and files."""

import hashlib

import numpy as np

CASES_PER_SPLIT = {"training": 12, "validation": 4, "test": 5}
"""Cases of one site unless its task says otherwise."""


def site_number(site: str) -> int | None:
    """The number in a site's name, at most six digits of it; None without one.

    Sites named with consecutive numbers take turns by it, so that two demo sites always differ.
    """
    digits = "".join(c for c in site if c.isdigit())
    return int(digits[-6:]) if digits else None


def generator(*words: object) -> np.random.Generator:
    """A random generator seeded by words: the same words, the same numbers, on any machine."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
