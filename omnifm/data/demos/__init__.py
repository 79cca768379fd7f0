"""Synthetic demo data, one file per task.

Each file has a function `make(folder, site, seed)` that writes the dataset.json and the images of one site.
"""

import hashlib

import numpy as np

CASES_PER_SPLIT = {"training": 12, "validation": 4, "test": 5}
"""Number of cases of one site, for tasks that do not define their own."""


def site_number(site: str) -> int | None:
    """The number in a site's name (its last six digits), or None if the name has no digit.

    The demo data use it to choose how a site differs, so that sites with consecutive numbers are never alike.

    >>> site_number("site-12"), site_number("ward")
    (12, None)
    """
    digits = "".join(c for c in site if c.isdigit())
    return int(digits[-6:]) if digits else None


def generator(*words: object) -> np.random.Generator:
    """A random generator seeded by words: the same words give the same numbers on any machine.

    >>> int(generator("case", "site-1", 0).integers(100)) == int(generator("case", "site-1", 0).integers(100))
    True
    """
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
