"""Where each vector of the bank comes from, and which vectors may be removed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass
class Entry:
    """The origin and the use of one vector of the bank."""

    id: int
    """Unique and increasing: a smaller id is older."""
    site: str
    """Opaque name of the site that sent it."""
    modality: str
    """DICOM modality code, or "" where the site does not tell it."""
    round: int
    """Round in which it was made, so the round of its tokenizer."""
    hits: float = 0.0
    """Running sum behind `frequency`: an exponential moving average that starts at 0."""
    age: int = 0
    """Number of rounds in which at least one replying site had it in its shortlist."""

    def frequency(self, decay: float, even_share: float) -> float:
        """Share of the queries that chose this entry when they could, in [0, 1].

        >>> Entry(0, "a", "MR", 0, hits=0.25, age=1).frequency(decay=0.5, even_share=0.2)
        0.5
        >>> Entry(1, "a", "MR", 0).frequency(decay=0.5, even_share=0.2)
        0.2

        Args:
            decay: of the moving average, in [0, 1).
            even_share: the value for an entry that was in no shortlist yet: the share of an average entry.
        """
        if not self.age:
            return even_share
        # Dividing by the sum of the weights so far corrects for the start at zero.
        return self.hits / (1 - decay**self.age)


def removable(
    entries: Sequence[Entry],
    candidates: Sequence[Entry],
    at_most: int | None = None,
    per_site: Mapping[str, int] | None = None,
) -> set[int]:
    """Ids of the candidates that may be removed, taken in the order given.

    The last entry of a site is never removed, nor the last entry of a modality other than "": otherwise rare
    modalities would disappear from the bank.

    >>> bank = [Entry(0, "a", "MR", 0), Entry(1, "a", "CT", 0), Entry(2, "b", "CT", 0)]
    >>> removable(bank, candidates=bank)
    {1}

    Args:
        entries: all entries of the bank.
        candidates: entries to remove if that is allowed.
        at_most: maximum number to remove; None is no limit.
        per_site: maximum number to remove of each site that has candidates; None is no limit.
    """
    budget = len(candidates) if at_most is None else at_most
    sites = Counter(entry.site for entry in entries)
    modalities = Counter(entry.modality for entry in entries)
    removed_of = Counter[str]()
    removed: set[int] = set()
    for entry in candidates:
        if len(removed) >= budget:
            break
        last_of_modality = entry.modality != "" and modalities[entry.modality] == 1
        site_is_done = per_site is not None and removed_of[entry.site] >= per_site[entry.site]
        if sites[entry.site] == 1 or last_of_modality or site_is_done:
            continue
        sites[entry.site] -= 1
        modalities[entry.modality] -= 1
        removed_of[entry.site] += 1
        removed.add(entry.id)
    return removed
