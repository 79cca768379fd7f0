"""Dealing cases to splits and to sites: pure functions on lists, repeatable by their seed.

A patient's split follows from a hash of seed and patient.  Another order, or another patient who comes or goes, never
moves anybody.  Only `fill_empty` looks at the others, where a split of a small site would be empty; whoever calls it
remembers the result, and passes it as `known` the next time.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import accumulate

import numpy as np

SHARES = {"training": 0.6, "validation": 0.2, "test": 0.2}
"""Share of the patients by split, where a data set has no split of its own."""
NEEDED = ("training", "test", "validation")
"""Which splits a small site fills first: with two patients it needs a test more than a validation."""
PARTITIONS = ("natural", "dirichlet", "modality", "count")
MIN_PATIENTS = 3
"""Minimum number of patients per site in `deal`: one each for training, validation and test."""
MAX_DRAWS = 1000
"""Number of draws from Dirichlet after which `deal` gives up."""


def seeded_order(names: Sequence[str], seed: int) -> list[str]:
    """The distinct names, shuffled.

    They are sorted by a hash of seed and name.  Unlike a random generator's, this order is the same in every version of
    every library, and a name that is added later does not change the order of the others.

    >>> seeded_order(["a", "b", "c", "a"], seed=0)
    ['a', 'c', 'b']
    """
    return sorted(set(names), key=lambda name: _hash(name, seed))


def _hash(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()


def split_of(patient: str, seed: int = 0, wanted: Collection[str] = tuple(SHARES)) -> str:
    """The split of a patient, by a hash of seed and patient alone.

    Args:
        patient: a name, or whatever must stay in one split.
        seed: seed of the hash.
        wanted: the splits to choose from; they keep the ratio of their `SHARES`.

    >>> [split_of(name) for name in ("0", "1", "2")]
    ['validation', 'test', 'training']
    """
    shares = {name: share for name, share in SHARES.items() if name in wanted}
    point = int.from_bytes(_hash(patient, seed)[:8], "big") / 2**64 * sum(shares.values())
    ends = zip(shares, accumulate(shares.values()), strict=True)
    return next((name for name, end in ends if point < end), next(reversed(shares)))


def fill_empty(
    splits: Mapping[str, str], movable: Collection[str], seed: int = 0, wanted: Collection[str] = tuple(SHARES)
) -> dict[str, str]:
    """Give each empty split one patient of the largest other split: training first, then test, then validation.

    Args:
        splits: split by patient, of one site.
        movable: the patients whose split was never used.  No other patient is moved.
        seed: decides which of several patients is moved.
        wanted: the splits that may be filled.

    Returns:
        split by patient.  A split stays empty if there are too few patients, or too few that may be moved.

    >>> fill_empty({"a": "validation", "b": "validation"}, ["a", "b"])
    {'a': 'training', 'b': 'test'}
    """
    filled = dict(splits)
    for split in (name for name in NEEDED if name in wanted and name not in filled.values()):
        sizes = Counter(filled.values())
        later = NEEDED[NEEDED.index(split) + 1 :]
        donors = [
            name
            for name in seeded_order(list(movable), seed)
            if filled[name] in wanted and (sizes[filled[name]] > 1 or filled[name] in later)
        ]
        if donors:
            filled[max(donors, key=lambda name: sizes[filled[name]])] = split
    return filled


def three_way(
    patients: Sequence[str], seed: int = 0, known: Mapping[str, str] | None = None
) -> dict[str, tuple[int, ...]]:
    """Split the items of one site into training, validation and test; no patient is in two of them.

    Args:
        patients: the patient of each item.
        seed: seed of the hash.
        known: split by patient, of an earlier call; these patients keep theirs.

    Returns:
        item indices (ascending) by split.  None is empty if there are three patients.

    >>> three_way(["2", "2", "1", "0"])
    {'training': (0, 1), 'validation': (3,), 'test': (2,)}
    """
    return split_sites([range(len(patients))], patients, [""] * len(patients), seed, known)[0][0]


def dirichlet(labels: Sequence[Hashable], num_sites: int, alpha: float, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Deal items to sites with unequal shares of labels, which are drawn from Dirichlet(alpha) for each label.

    Args:
        labels: the label of each item.
        num_sites: number of sites, >= 1.
        alpha: concentration, > 0.  With 0.1 a site has nearly one label only; with 100 sites are nearly equal.
        seed: seed of the draws and of the shuffle.

    Returns:
        one tuple of item indices (ascending) per site.  A site may be empty when alpha is small.

    Raises:
        ValueError: `num_sites` or `alpha` is out of range.
    """
    if num_sites < 1 or not alpha > 0:
        raise ValueError(f"num_sites must be >= 1 and alpha > 0; got {num_sites} and {alpha}")
    generator = np.random.default_rng(seed)
    sites: list[list[int]] = [[] for _ in range(num_sites)]
    for label in sorted(set(labels), key=str):
        members = generator.permutation([i for i, own in enumerate(labels) if own == label])
        cuts = (np.cumsum(generator.dirichlet([alpha] * num_sites))[:-1] * len(members)).astype(int)
        for site, part in zip(sites, np.split(members, cuts), strict=True):
            site.extend(part.tolist())
    return tuple(tuple(sorted(site)) for site in sites)


def by_modality(modalities: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """One site per modality, in alphabetical order: the paper's scenario in which sites share no modality.

    >>> by_modality(["MR", "CT", "MR"])
    {'CT': (1,), 'MR': (0, 2)}
    """
    names = sorted(set(modalities))
    return {name: tuple(i for i, own in enumerate(modalities) if own == name) for name in names}


def by_count(patients: Sequence[str], shares: Sequence[float], seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Deal items to sites of unequal size, whole patients at a time.

    Args:
        patients: the patient of each item.
        shares: share of the patients for each site, each > 0, with any sum.  No site is empty if there are at least as
            many patients as sites.  With fewer patients, the first sites get one each.
        seed: seed of the shuffle.

    Returns:
        one tuple of item indices (ascending) per site.

    Raises:
        ValueError: a share is not > 0.

    >>> by_count(["p", "p", "q", "r", "r"], (0.6, 0.2, 0.2))
    ((3, 4), (0, 1), (2,))
    """
    if not shares or min(shares) <= 0:
        raise ValueError(f"shares must be positive numbers; got {tuple(shares)}")
    order = seeded_order(patients, seed)
    parts = [set(names) for names in _cut(order, _whole_sizes(len(order), shares))]
    return tuple(tuple(i for i, name in enumerate(patients) if name in part) for part in parts)


def deal(
    partition: str,
    patients: Sequence[str],
    *,
    homes: Sequence[str],
    modalities: Sequence[str],
    labels: Sequence[Hashable],
    num_sites: int,
    gamma: float,
    seed: int = 0,
) -> tuple[tuple[int, ...], ...]:
    """Deal items to sites.

    Args:
        partition: "natural" makes a site of each home, in the order in which homes first appear; "modality" makes a
            site of each modality; "count" makes `num_sites` sites of equal size; "dirichlet" makes `num_sites` sites
            with unequal shares of labels.  The last two keep a patient's items together, and a patient's label is the
            most frequent one of these items.
        patients, homes, modalities, labels: one value for each item.
        num_sites: number of sites, >= 1; used by "dirichlet" and "count".
        gamma: the `alpha` of `dirichlet`, > 0.
        seed: seed of the draws.

    Returns:
        one tuple of item indices (ascending) per site; none is empty.

    Raises:
        ValueError: the partition is unknown, or there are too few patients for so many sites.
    """
    if partition not in PARTITIONS:
        raise ValueError(f"partition must be one of {', '.join(PARTITIONS)}; got {partition!r}")
    if partition == "natural":
        return tuple(tuple(i for i, own in enumerate(homes) if own == home) for home in dict.fromkeys(homes))
    if partition == "modality":
        return tuple(by_modality(modalities).values())
    num_patients = len(set(patients))
    if num_patients < MIN_PATIENTS * num_sites:
        raise ValueError(f"sites must have {MIN_PATIENTS} patients each; got {num_patients} for {num_sites} sites")
    if partition == "count":
        return by_count(patients, [1.0] * num_sites, seed)
    return _dirichlet_of_patients(patients, labels, num_sites, gamma, seed)


def split_sites(
    sites: Sequence[Sequence[int]],
    patients: Sequence[str],
    official: Sequence[str],
    seed: int = 0,
    known: Mapping[str, str] | None = None,
) -> tuple[tuple[dict[str, tuple[int, ...]], ...], int]:
    """Split every site's items into training, validation and test; no patient is in two of them, at any site.

    The official split of the data set is kept if every item has one and no patient is in two parts of it.  Otherwise
    each patient's split follows from `split_of`, which is the same at all sites, and empty splits are filled.

    Args:
        sites: item indices of each site.
        patients: the patient of each item.
        official: the official split of each item, or "".
        seed: seed of the hash.
        known: split by patient, of an earlier call; these patients keep theirs.

    Returns:
        (one {"training": indices, "validation": ..., "test": ...} per site, number of patients that are in two parts of
        the official split).
    """
    splits_of: dict[str, set[str]] = {}
    for patient, split in zip(patients, official, strict=True):
        splits_of.setdefault(patient, set()).add(split)
    num_cut = sum(len(splits) > 1 for splits in splits_of.values())
    if num_cut == 0 and all(official):
        split_by_patient = {patient: min(splits) for patient, splits in splits_of.items()}
    else:
        split_by_patient = _split_patients([{patients[i] for i in site} for site in sites], seed, known or {})
    parts = tuple(
        {name: tuple(i for i in site if split_by_patient[patients[i]] == name) for name in SHARES} for site in sites
    )
    return parts, num_cut


def _split_patients(sites: Sequence[Collection[str]], seed: int, known: Mapping[str, str]) -> dict[str, str]:
    """Split by patient; `sites` holds the patients of each site."""
    everybody = set().union(*sites)
    splits = {patient: known.get(patient) or split_of(patient, seed) for patient in sorted(everybody)}
    num_sites_of = Counter(patient for site in sites for patient in site)
    # Whom several sites have is moved only where nobody else can be, because that changes all of these sites.
    for most_sites in (1, len(sites), 1):
        for site in sites:
            movable = [name for name in site if name not in known and num_sites_of[name] <= most_sites]
            splits |= fill_empty({name: splits[name] for name in site}, movable, seed)
    return splits


def _dirichlet_of_patients(
    patients: Sequence[str], labels: Sequence[Hashable], num_sites: int, gamma: float, seed: int
) -> tuple[tuple[int, ...], ...]:
    """`dirichlet` for patients, drawn again until every site has enough of them; one tuple of item indices per site."""
    counts: dict[str, Counter[Hashable]] = {}
    for patient, label in zip(patients, labels, strict=True):
        counts.setdefault(patient, Counter())[label] += 1
    names = list(counts)
    most_frequent = [counts[name].most_common(1)[0][0] for name in names]
    for draw in range(MAX_DRAWS):
        parts = dirichlet(most_frequent, num_sites, gamma, seed + draw * 2**32)
        if min(map(len, parts)) >= MIN_PATIENTS:
            site_of = {names[k]: site for site, part in enumerate(parts) for k in part}
            sites: list[list[int]] = [[] for _ in parts]
            for i, patient in enumerate(patients):
                sites[site_of[patient]].append(i)
            return tuple(map(tuple, sites))
    rule = f"gamma must leave {MIN_PATIENTS} patients to each of {num_sites} sites"
    raise ValueError(f"{rule}; {gamma} never did in {MAX_DRAWS} draws: use a larger one")


def _whole_sizes(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers close to the shares, with the sum `total`; none is 0 if `total` is large enough."""
    if total <= len(shares):
        return [1] * total + [0] * (len(shares) - total)
    rest, weight = total - len(shares), sum(shares)
    wanted = [max(0.0, share / weight * total - 1) for share in shares]  # each part already has one
    ends = [round(end / sum(wanted) * rest) for end in accumulate(wanted)]
    return [1 + end - start for start, end in zip([0, *ends], ends, strict=False)]


def _cut(order: Sequence[str], sizes: Sequence[int]) -> list[Sequence[str]]:
    ends = list(accumulate(sizes))
    return [order[end - size : end] for end, size in zip(ends, sizes, strict=True)]
