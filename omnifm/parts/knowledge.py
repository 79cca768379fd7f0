"""GSKR: the server's bank of spectral prototypes, and retrieval from it.

Letters: b batch, n tokens or candidates, m vectors of one site, q queries, k retrieved, M bank size,
d token width.
Paper: arXiv 2603.21660, sec. 3.3, eq. (7) and (8).  Everything here is fp32 on the CPU and deterministic.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

# Norms below this are rounding noise; dividing by them would invent a direction.
MIN_NORM = 1e-6
# Cosines equal to this many decimals are ties, so that two machines agree on the order.
DECIMALS = 6

# What a saved bank holds besides the vectors: its columns of numbers, and its settings.
COLUMNS = ("id", "round", "hits", "age")
SETTINGS = (
    *("dim", "max_size", "radius", "ring", "decay", "grace", "prune", "ttl"),
    *("center", "exclude_self"),
)


@dataclass
class Entry:
    """Provenance of one vector of the bank."""

    id: int
    """Unique and increasing: a smaller id is older."""
    site: str
    """Opaque name of the site that sent it."""
    modality: str
    """Modality, or "" where the site does not say."""
    round: int
    """Round of the tokenizer that made it."""
    hits: float = 0.0
    """Running sum behind `frequency`, an EMA that starts at 0."""
    age: int = 0
    """Rounds in which at least one replying site had it in its shortlist."""

    def frequency(self, decay: float, even_share: float) -> float:
        """Share of queries that chose it when they could; one nobody was asked about counts as average."""
        # Dividing by the weight seen so far takes out the EMA's start at zero.
        return self.hits / (1 - decay**self.age) if self.age else even_share


class KnowledgeBank:
    """K(r): unit-ball vectors with provenance, bounded, pruned by use, never short of a site or modality.

    Insert site by site in sorted order: then the bank does not depend on who replied first.
    The last entry of a site, and of a modality other than "", is never evicted: rare modalities must not
    vanish.  This beats age (`ttl`), `ring`, use (`prune`) and `max_size`, which a federation of more sites
    than that exceeds.

    Args:
        dim: d, width of the vectors.
        max_size: most entries, at least 1.
        radius: rho of eq. (7), positive: longer vectors are shortened to it.
        ring: most entries per site, at least 1; the oldest leaves first.
        decay: of the hit frequency's EMA, in [0, 1); 0 is the last round alone.
        grace: rounds in which an entry is offered before it can be pruned, at least 0.
        prune: delta of eq. (8) in units of k / M, the share an average entry gets, at least 0; 0 never
            prunes.
        ttl: rounds after which an entry, made by an old tokenizer, expires, at least 1.
        center: whether cosines are taken after subtracting the bank's mean.
        exclude_self: whether a site never gets its own entries back.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        *,
        max_size: int = 256,
        radius: float = 1.0,
        ring: int = 4,
        decay: float = 0.9,
        grace: int = 3,
        prune: float = 0.25,
        ttl: int = 10,
        center: bool = True,
        exclude_self: bool = True,
    ) -> None:
        if min(dim, max_size, ring, ttl) < 1:
            raise ValueError(f"dim, max_size, ring and ttl must be at least 1; got {dim}, {max_size}, {ring}, {ttl}")
        if not 0 < radius < math.inf:
            raise ValueError(f"radius must be positive and finite; got {radius}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1); got {decay}")
        if grace < 0 or not 0 <= prune < math.inf:
            raise ValueError(f"grace and prune must be at least 0 and finite; got {grace}, {prune}")
        self.dim, self.max_size, self.radius, self.ring = dim, max_size, radius, ring
        self.decay, self.grace, self.prune, self.ttl = decay, grace, prune, ttl
        self.center, self.exclude_self = center, exclude_self
        self.vectors = torch.zeros(0, dim)
        self.entries: list[Entry] = []  # by id, so oldest first; entry i describes row i of vectors
        self._next_id = 0
        self._kept: tuple[Tensor, int, Tensor | None, Tensor] | None = None  # see _compared

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """What centring subtracts: the mean vector, zeros for an empty bank."""
        return self.vectors.sum(dim=0) / max(len(self), 1)

    def insert(self, vectors: Float[Tensor, "m d"], site: str, modality: str, round: int) -> list[int]:
        """Add one site's vectors and return their ids.

        Raises:
            ValueError: vectors of another width, or not finite.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"vectors must be (m, {self.dim}); got shape {tuple(vectors.shape)}")
        vectors = vectors.detach().to(device="cpu", dtype=torch.float32)
        if not bool(torch.isfinite(vectors).all()):
            raise ValueError(f"vectors must be finite; got NaN or infinity from site {site!r}")
        ids = list(range(self._next_id, self._next_id + len(vectors)))
        self.vectors = torch.cat([self.vectors, vectors])
        self.entries += [Entry(id, site, modality, round) for id in ids]
        self._next_id += len(ids)
        return ids

    def project(self) -> None:
        """Shorten every vector to the ball of radius rho (eq. 7)."""
        norms = self.vectors.norm(dim=1, keepdim=True)
        self.vectors = torch.where(norms > self.radius, self.vectors * (self.radius / norms), self.vectors)

    def step(self, round: int, hits: Mapping[str, Mapping[int, float]], num_retrieved: int = 2) -> list[int]:
        """One round after its inserts: project -> prune (use, age, ring) -> cap; returns the ids evicted.

        Args:
            round: the round that ends.
            hits: of each site that replied, for EVERY id of the shortlist it was sent, the share of its
                queries that chose that id, in [0, 1] (0 for one never chosen).  Entries that no replying
                site was sent keep their frequency; ids no longer in the bank and a site's own entries are
                passed over.
            num_retrieved: k, how many entries a query chooses.

        Raises:
            ValueError: a share outside [0, 1], or `num_retrieved` below 1.
        """
        if num_retrieved < 1:
            raise ValueError(f"num_retrieved must be at least 1; got {num_retrieved}")
        before = [entry.id for entry in self.entries]
        self.project()
        self._count_hits(hits)
        even_share = num_retrieved / max(len(self), 1)

        def frequency(entry: Entry) -> float:
            return entry.frequency(self.decay, even_share)

        threshold = self.prune * even_share
        self._evict([e for e in self.entries if e.age >= max(1, self.grace) and frequency(e) < threshold])
        self._evict([e for e in self.entries if round - e.round > self.ttl])
        counts = Counter(entry.site for entry in self.entries)
        excess = {site: count - self.ring for site, count in counts.items() if count > self.ring}
        crowd = sorted((e for e in self.entries if e.site in excess), key=lambda e: e.site)  # oldest of a site first
        self._evict(crowd, per_site=excess)
        # sorted() is stable, so among equals the oldest goes first.
        self._evict(sorted(self.entries, key=frequency), at_most=len(self) - self.max_size)
        kept = {entry.id for entry in self.entries}
        return [id for id in before if id not in kept]

    def shortlist(self, queries: Float[Tensor, "q d"], site: str, size: int = 32) -> tuple[list[int], Tensor]:
        """The entries nearest to any of a site's queries, best first; ties go to the older entry.

        Args:
            queries: the site's centroids; none gives an empty shortlist.
            site: whose own entries are left out under `exclude_self`.
            size: most entries returned, at least 0.

        Returns:
            Ids, and their vectors (n d), as stored and not centred; both may be empty.

        Raises:
            ValueError: queries of another width or not finite, or a negative size.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim or not bool(torch.isfinite(queries).all()):
            raise ValueError(f"queries must be finite and (q, {self.dim}); got shape {tuple(queries.shape)}")
        if size < 0:
            raise ValueError(f"size must be at least 0; got {size}")
        if not len(self) or not len(queries):
            return [], self.vectors[:0]
        mean, candidates = self._compared()
        best = _cosines(_unit(queries.detach().cpu().float(), mean), candidates).amax(dim=0)
        order = (-best.numpy()).argsort(kind="stable").tolist()
        foreign = (i for i in order if not (self.exclude_self and self.entries[i].site == site))
        rows = list(islice(foreign, size))
        return [self.entries[i].id for i in rows], self.vectors.index_select(0, torch.tensor(rows, dtype=torch.int64))

    def monitors(self) -> dict[str, Any]:
        """Is the bank alive?  Report these every round.

        Returns:
            size; effective_rank, exp of the entropy of the normalised singular values, in [1, min(M, d)], 0
            if empty; mean_cosine over pairs, uncentred, 1 for fewer than two entries; by_site and
            by_modality, counts; collapsed, whether effective_rank < 2.
        """
        rank = _effective_rank(self.vectors)
        return {
            "size": len(self),
            "effective_rank": rank,
            "mean_cosine": _mean_cosine(self.vectors),
            "by_site": dict(sorted(Counter(entry.site for entry in self.entries).items())),
            "by_modality": dict(sorted(Counter(entry.modality for entry in self.entries).items())),
            "collapsed": rank < 2,
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on after a restart: tensors, and a record that JSON can hold."""
        tensors = {
            "vectors": self.vectors.clone(),
            "id": torch.tensor([entry.id for entry in self.entries], dtype=torch.int64),
            "round": torch.tensor([entry.round for entry in self.entries], dtype=torch.int64),
            "hits": torch.tensor([entry.hits for entry in self.entries], dtype=torch.float64),
            "age": torch.tensor([entry.age for entry in self.entries], dtype=torch.int64),
        }
        record = {
            "settings": {name: getattr(self, name) for name in SETTINGS},
            "site": [entry.site for entry in self.entries],
            "modality": [entry.modality for entry in self.entries],
            "next_id": self._next_id,
        }
        return tensors, record

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "KnowledgeBank":
        """The bank that `state` described, exactly.

        Raises:
            ValueError: a part is missing, or the parts differ in length.
        """
        missing = ({"vectors", *COLUMNS} - set(tensors)) | ({"settings", "site", "modality", "next_id"} - set(record))
        if missing:
            raise ValueError(f"a bank's state must hold every part; missing {sorted(missing)}")
        columns = [record["site"], record["modality"], *(tensors[name].tolist() for name in COLUMNS)]
        lengths = [len(column) for column in columns]
        if set(lengths) != {len(tensors["vectors"])}:
            raise ValueError(f"a bank's parts must have one length; got {[len(tensors['vectors']), *lengths]}")
        bank = cls(**dict(record["settings"]))
        bank.vectors = tensors["vectors"].clone()
        bank.entries = [
            Entry(id, site, modality, round, hits, age)
            for site, modality, id, round, hits, age in zip(*columns, strict=True)
        ]
        bank._next_id = record["next_id"]
        return bank

    def _compared(self) -> tuple[Tensor | None, Tensor]:
        """What centring subtracts, and the centred unit vectors; kept until the vectors change.

        Every site of a round asks the same bank.
        """
        # _version counts changes in place, which leave the tensor the same object.
        if self._kept is None or self._kept[0] is not self.vectors or self._kept[1] != self.vectors._version:
            mean = self.mean if self.center else None
            self._kept = (self.vectors, self.vectors._version, mean, _unit(self.vectors, mean))
        return self._kept[2:]

    def _count_hits(self, hits: Mapping[str, Mapping[int, float]]) -> None:
        """One EMA step for every entry that somebody could have chosen; each replying site counts once."""
        shares: dict[int, list[float]] = {}
        owner = {entry.id: entry.site for entry in self.entries}
        for site in sorted(hits):
            for id, share in hits[site].items():
                if not 0 <= share <= 1:
                    raise ValueError(f"hits must be shares in [0, 1]; got {share} for entry {id}, site {site!r}")
                # A site must not vote for itself, whatever it says it was sent.
                if not (self.exclude_self and owner.get(id) == site):
                    shares.setdefault(id, []).append(share)
        for entry in self.entries:
            if offered := shares.get(entry.id):
                entry.hits = self.decay * entry.hits + (1 - self.decay) * sum(offered) / len(offered)
                entry.age += 1

    def _evict(
        self, candidates: list[Entry], at_most: int | None = None, per_site: Mapping[str, int] | None = None
    ) -> None:
        """Drop candidates in their order, passing over any that is the last of its site or modality.

        Args:
            at_most: how many in all.
            per_site: how many of each site that has candidates.
        """
        budget = len(candidates) if at_most is None else at_most
        if not candidates or budget <= 0:
            return
        sites = Counter(entry.site for entry in self.entries)
        modalities = Counter(entry.modality for entry in self.entries)
        left = None if per_site is None else dict(per_site)
        gone: set[int] = set()
        for entry in candidates:
            last_of_modality = entry.modality != "" and modalities[entry.modality] == 1
            if len(gone) >= budget or sites[entry.site] == 1 or last_of_modality:
                continue
            if left is not None:
                if left[entry.site] == 0:
                    continue
                left[entry.site] -= 1
            sites[entry.site] -= 1
            modalities[entry.modality] -= 1
            gone.add(entry.id)
        if gone:
            rows = [i for i, entry in enumerate(self.entries) if entry.id not in gone]
            self.vectors, self.entries = self.vectors[rows], [self.entries[i] for i in rows]


def distinct(vectors: Float[Tensor, "m d"], most: float = 0.999) -> list[int]:
    """Rows that are no near-duplicates: whose cosine to every earlier row kept is at most `most`."""
    unit = F.normalize(vectors, dim=1)
    rows: list[int] = []
    for row in range(len(unit)):
        if not rows or float((unit[rows] @ unit[row]).max()) <= most:
            rows.append(row)
    return rows


def retrieve(
    tokens: Float[Tensor, "b d"], candidates: Float[Tensor, "n d"], mean: Float[Tensor, " d"] | None, k: int
) -> Int[Tensor, "b chosen"]:
    """Rows of the min(k, n) candidates nearest to each token by cosine, best first; ties to the first row.

    Args:
        tokens: one per sample.
        candidates: a shortlist.
        mean: the bank's mean, subtracted from both; None compares them as they are.
        k: at least 0.

    Raises:
        ValueError: `k` is negative.
    """
    if k < 0:
        raise ValueError(f"k must be at least 0; got {k}")
    with torch.no_grad():
        wanted = tokens.float()
        offered = candidates.to(wanted)
        shift = None if mean is None else mean.to(wanted)
        cosines = _cosines(_unit(wanted, shift), _unit(offered, shift))
        return torch.sort(cosines, dim=1, descending=True, stable=True).indices[:, :k]


def spherical_kmeans(
    tokens: Float[Tensor, "n d"], m: int, seed: int, num_iterations: int = 20
) -> Float[Tensor, "m_or_n d"]:
    """Unit centroids of a site's tokens by cosine; m = 1 is the normalised mean.

    A centroid of few patients gives them away: count members with `retrieve(tokens, centroids, None, 1)`.

    Args:
        tokens: at least one, finite; normalised here.
        m: number of centroids, at least 1; fewer tokens than that give as many centroids as tokens.
        seed: of the first choice (k-means++); equal inputs and seed give equal centroids.
        num_iterations: most updates, at least 1.

    Returns:
        fp32 centroids on the CPU, largest cluster first, equal ones in order of their coordinates.

    Raises:
        ValueError: an argument is out of its range, or tokens are missing or not finite.
    """
    if m < 1 or num_iterations < 1:
        raise ValueError(f"m and num_iterations must be at least 1; got {m}, {num_iterations}")
    if not len(tokens) or not bool(torch.isfinite(tokens).all()):
        raise ValueError(f"tokens must be finite and at least one; got shape {tuple(tokens.shape)}")
    points = F.normalize(tokens.detach().to(device="cpu", dtype=torch.float64), dim=1)
    centroids = _spread_out(points, min(m, len(points)), torch.Generator().manual_seed(seed))
    for _ in range(num_iterations):
        member = F.one_hot((points @ centroids.T).argmax(dim=1), len(centroids)).double()  # n m
        sums = member.T @ points
        # A cluster without members, or whose members cancel out, has no direction: it stays where it was.
        updated = torch.where(sums.norm(dim=1, keepdim=True) > MIN_NORM, F.normalize(sums, dim=1), centroids)
        if torch.equal(updated, centroids):
            break
        centroids = updated
    counts = (points @ centroids.T).argmax(dim=1).bincount(minlength=len(centroids)).tolist()
    rows = centroids.tolist()
    order = sorted(range(len(rows)), key=lambda i: (-counts[i], rows[i]))
    return centroids[order].float()


def _spread_out(points: Tensor, m: int, generator: torch.Generator) -> Tensor:
    """k-means++: a point's chance to be the next one grows with its distance from those chosen."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    while len(chosen) < m:
        distance = (1 - (points @ points[chosen].T).amax(dim=1)).clamp_min(0)
        distance[chosen] = 0
        if float(distance.sum()) < MIN_NORM:
            # All that is left are copies of points already chosen.
            distance = torch.ones(len(points)).index_fill(0, torch.tensor(chosen), 0)
        chosen.append(int(torch.multinomial(distance, 1, generator=generator)))
    return points[chosen]


def _unit(vectors: Tensor, mean: Tensor | None) -> Tensor:
    """Directions after centring; zeros for a vector that is the mean itself."""
    return F.normalize(vectors if mean is None else vectors - mean, dim=-1, eps=MIN_NORM)


def _cosines(queries: Tensor, candidates: Tensor) -> Tensor:
    """(q n) cosines of unit vectors, rounded so that ties are ties on every machine."""
    return (queries @ candidates.T).round(decimals=DECIMALS)


def _effective_rank(vectors: Tensor) -> float:
    if not len(vectors):
        return 0.0
    values = torch.linalg.svdvals(vectors.double())
    if float(values.sum()) == 0:
        return 1.0
    share = values / values.sum()
    return math.exp(float(torch.special.entr(share).sum()))


def _mean_cosine(vectors: Tensor) -> float:
    size = len(vectors)
    if size < 2:
        return 1.0
    unit = F.normalize(vectors.double(), dim=1)
    return float((unit.sum(dim=0).square().sum() - unit.square().sum()) / (size * (size - 1)))
