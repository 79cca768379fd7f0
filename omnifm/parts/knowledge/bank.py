"""The knowledge bank: spectral prototypes at the server, each with its origin.

Letters: m vectors of one site, q queries, k retrieved, n vectors returned, M bank size, d token width.
Paper: arXiv 2603.21660, sec. 3.3, eq. (7) and (8).  Everything is float32 on the CPU and deterministic.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from omnifm.parts.knowledge.diversity import effective_rank, mean_cosine
from omnifm.parts.knowledge.entries import Entry, removable
from omnifm.parts.knowledge.records import BankRecord, BankSettings, Monitors
from omnifm.parts.knowledge.retrieval import cosines, directions

MIN_SPREAD = 1e-4
"""Smallest spread of the vectors around their mean, as a share of their length, that is more than rounding."""
COLUMNS = ("id", "round", "hits", "age")
"""Tensors of a saved bank beside `vectors`: one number per entry."""


class KnowledgeBank:
    """K(r): vectors in a ball of radius rho, each with its origin; limited in number and pruned by use.

    Insert site by site in sorted order: then the bank does not depend on which site replied first.

    The last entry of a site, and of a modality other than "", is never removed, so that rare modalities stay.  This
    rule is stronger than `ttl`, `ring`, `prune` and `max_size`: a federation of more sites than `max_size` has a
    larger bank.

    >>> bank = KnowledgeBank(2)
    >>> bank.insert(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "site-1", "MR", round=0)
    [0, 1]
    >>> bank.shortlist(torch.tensor([[0.1, 1.0]]), "site-2", size=1)
    ([1], tensor([[0., 1.]]))

    Args:
        dim: d, width of the vectors.
        max_size: maximum number of entries, at least 1.
        radius: rho of eq. (7), positive: longer vectors are shortened to it.
        ring: maximum number of entries per site, at least 1; the oldest is removed first.
        decay: of the moving average of the retrieval frequency, in [0, 1); 0 uses the last round only.
        grace: number of rounds in shortlists before an entry can be pruned, at least 0.
        prune: delta of eq. (8) in units of k / M, the share of an average entry, at least 0; 0 never prunes.
        ttl: number of rounds after which an entry expires, because an old tokenizer made it; at least 1.
        center: whether cosines are taken after subtracting the mean of the bank.
        exclude_self: whether a site never receives its own entries.

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
        self.dim = dim
        self.max_size = max_size
        self.radius = radius
        self.ring = ring
        self.decay = decay
        self.grace = grace
        self.prune = prune
        self.ttl = ttl
        self.center = center
        self.exclude_self = exclude_self
        self.vectors = torch.zeros(0, dim)
        self.entries: list[Entry] = []  # oldest first; entry i describes row i of `vectors`
        self._next_id = 0
        self._comparable_cache: tuple[Tensor, int, Tensor | None, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """The mean vector, which centring subtracts; zeros for an empty bank."""
        return self.vectors.sum(dim=0) / max(len(self), 1)

    def insert(self, vectors: Float[Tensor, "m d"], site: str, modality: str, round: int) -> list[int]:
        """Add the vectors of one site and return their ids.

        Raises:
            ValueError: the vectors have another width, or are not finite.
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
        """Shorten every vector that is longer than rho to length rho (eq. 7)."""
        norms = self.vectors.norm(dim=1, keepdim=True)
        self.vectors = torch.where(norms > self.radius, self.vectors * (self.radius / norms), self.vectors)

    def step(self, round: int, hits: Mapping[str, Mapping[int, float]], num_retrieved: int = 2) -> list[int]:
        """End a round, after its inserts: project, count hits, remove entries (eq. 7 and 8).

        Removed are, in this order: entries used too little, expired entries, entries beyond `ring` per site, and
        entries beyond `max_size`.

        Args:
            round: the round that ends.
            hits: by replying site: for EVERY id of the shortlist that it received, the share of its queries that
                chose this id, in [0, 1]; 0 for an id that was never chosen.  An entry that is in no replying site's
                shortlist keeps its frequency.  Ids that are no longer in the bank, and a site's own entries, are
                ignored.
            num_retrieved: k, number of entries that one query chooses.

        Returns:
            Ids of the removed entries.

        Raises:
            ValueError: a share is outside [0, 1], or `num_retrieved` is below 1.
        """
        if num_retrieved < 1:
            raise ValueError(f"num_retrieved must be at least 1; got {num_retrieved}")
        before = [entry.id for entry in self.entries]
        self.project()
        self._count_hits(hits)
        even_share = num_retrieved / max(len(self), 1)
        frequency = {entry.id: entry.frequency(self.decay, even_share) for entry in self.entries}
        threshold = self.prune * even_share
        self._remove([e for e in self.entries if e.age >= max(1, self.grace) and frequency[e.id] < threshold])
        self._remove([e for e in self.entries if round - e.round > self.ttl])
        self._remove_beyond_ring()
        # sorted() is stable, so among equals the oldest is removed first.
        least_used = sorted(self.entries, key=lambda entry: frequency[entry.id])
        self._remove(least_used, at_most=len(self) - self.max_size)
        kept = {entry.id for entry in self.entries}
        return [id for id in before if id not in kept]

    def shortlist(
        self, queries: Float[Tensor, "q d"], site: str, size: int = 32
    ) -> tuple[list[int], Float[Tensor, "n d"]]:
        """The entries that are nearest to any of a site's queries, best first; of equals the older one is first.

        Args:
            queries: the site's centroids; without any the shortlist is empty.
            site: its own entries are left out under `exclude_self`.
            size: maximum number of entries returned, at least 0.

        Returns:
            Ids, and their vectors as stored (not centred); both may be empty.

        Raises:
            ValueError: the queries have another width or are not finite, or the size is negative.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim or not bool(torch.isfinite(queries).all()):
            raise ValueError(f"queries must be finite and (q, {self.dim}); got shape {tuple(queries.shape)}")
        if size < 0:
            raise ValueError(f"size must be at least 0; got {size}")
        if not len(self) or not len(queries):
            return [], self.vectors[:0]
        mean, candidates = self._comparable()
        best = cosines(directions(queries.detach().cpu().float(), mean), candidates).amax(dim=0)
        order = (-best.numpy()).argsort(kind="stable").tolist()
        allowed = (i for i in order if not (self.exclude_self and self.entries[i].site == site))
        rows = list(islice(allowed, size))
        return [self.entries[i].id for i in rows], self.vectors.index_select(0, torch.tensor(rows, dtype=torch.int64))

    def monitors(self) -> Monitors:
        """Numbers that show whether the bank is in use and diverse; reported after every round."""
        rank = effective_rank(self.vectors)
        centred = self.vectors.double() - self.vectors.double().mean(dim=0)
        return {
            "size": len(self),
            "effective_rank": rank,
            "mean_cosine": mean_cosine(self.vectors),
            "by_site": dict(sorted(Counter(entry.site for entry in self.entries).items())),
            "by_modality": dict(sorted(Counter(entry.modality for entry in self.entries).items())),
            "collapsed": rank < 2,
            "centred_rank": effective_rank(centred),
            "centred_cosine": mean_cosine(centred),
            "alike": len(self) > 1 and bool(centred.norm() <= MIN_SPREAD * self.vectors.double().norm()),
        }

    def state(self) -> tuple[dict[str, Tensor], BankRecord]:
        """Everything that a restart needs: tensors, and a record that JSON can hold."""
        tensors = {
            "vectors": self.vectors.clone(),
            "id": torch.tensor([entry.id for entry in self.entries], dtype=torch.int64),
            "round": torch.tensor([entry.round for entry in self.entries], dtype=torch.int64),
            "hits": torch.tensor([entry.hits for entry in self.entries], dtype=torch.float64),
            "age": torch.tensor([entry.age for entry in self.entries], dtype=torch.int64),
        }
        settings: BankSettings = {
            "dim": self.dim,
            "max_size": self.max_size,
            "radius": self.radius,
            "ring": self.ring,
            "decay": self.decay,
            "grace": self.grace,
            "prune": self.prune,
            "ttl": self.ttl,
            "center": self.center,
            "exclude_self": self.exclude_self,
        }
        record: BankRecord = {
            "settings": settings,
            "site": [entry.site for entry in self.entries],
            "modality": [entry.modality for entry in self.entries],
            "next_id": self._next_id,
        }
        return tensors, record

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], record: BankRecord) -> KnowledgeBank:
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
        bank = cls(**record["settings"])
        bank.vectors = tensors["vectors"].clone()
        bank.entries = [
            Entry(id, site, modality, round, hits, age)
            for site, modality, id, round, hits, age in zip(*columns, strict=True)
        ]
        bank._next_id = record["next_id"]
        return bank

    def _comparable(self) -> tuple[Tensor | None, Tensor]:
        """The mean that centring subtracts, and the centred unit vectors.

        They are cached until the vectors change, because every site of a round asks the same bank.
        """
        cache = self._comparable_cache
        # `_version` counts in-place changes, after which the tensor is still the same object.
        if cache is None or cache[0] is not self.vectors or cache[1] != self.vectors._version:
            mean = self.mean if self.center else None
            cache = (self.vectors, self.vectors._version, mean, directions(self.vectors, mean))
            self._comparable_cache = cache
        return cache[2:]

    def _count_hits(self, hits: Mapping[str, Mapping[int, float]]) -> None:
        """Update the moving average of every entry that a replying site could choose; sites count equally."""
        shares: dict[int, list[float]] = {}
        owner = {entry.id: entry.site for entry in self.entries}
        for site in sorted(hits):
            for id, share in hits[site].items():
                if not 0 <= share <= 1:
                    raise ValueError(f"hits must be shares in [0, 1]; got {share} for entry {id}, site {site!r}")
                # A site must not raise the frequency of its own entries, whatever shortlist it claims to have.
                if not (self.exclude_self and owner.get(id) == site):
                    shares.setdefault(id, []).append(share)
        for entry in self.entries:
            if offered := shares.get(entry.id):
                entry.hits = self.decay * entry.hits + (1 - self.decay) * sum(offered) / len(offered)
                entry.age += 1

    def _remove_beyond_ring(self) -> None:
        """Remove the oldest entries of every site that has more than `ring`."""
        counts = Counter(entry.site for entry in self.entries)
        excess = {site: count - self.ring for site, count in counts.items() if count > self.ring}
        # Site by site, the oldest entry of a site first.
        crowded = sorted((entry for entry in self.entries if entry.site in excess), key=lambda entry: entry.site)
        self._remove(crowded, per_site=excess)

    def _remove(
        self, candidates: Sequence[Entry], at_most: int | None = None, per_site: Mapping[str, int] | None = None
    ) -> None:
        """Remove the candidates that `removable` allows."""
        removed = removable(self.entries, candidates, at_most, per_site)
        if removed:
            rows = [i for i, entry in enumerate(self.entries) if entry.id not in removed]
            self.vectors = self.vectors[rows]
            self.entries = [self.entries[i] for i in rows]
