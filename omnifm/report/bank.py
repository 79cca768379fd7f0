"""The panel of the knowledge bank: how many prototypes it holds, whose they are, and whether they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omnifm.records import RoundEntry
from omnifm.report.elements import Bar, Cell, Note, Table
from omnifm.report.numbers import natural, number
from omnifm.report.plots import Plot, plot

ALIKE = Note(
    "the spectral prototypes of all sites look alike, so retrieval adds nothing here. The scores above remain valid.",
    "Technical note",
)
PLOTS = {
    "size": "Prototypes",
    "centred_rank": "Effective rank, centred",
    "centred_cosine": "Mean cosine, centred",
    "effective_rank": "Effective rank, not centred",
    "mean_cosine": "Mean cosine, not centred",
}
"""Key of a round's bank -> title; retrieval compares centred prototypes, so the other two are for old summaries."""


@dataclass(frozen=True)
class Bank:
    """State of the knowledge bank over rounds, and whose prototypes it holds after the last one."""

    alike: Note | None
    plots: Sequence[Plot]
    shares: Sequence[Table]


def bank_panel(history: Sequence[RoundEntry]) -> Bank | None:
    """Return what the page shows of the bank; None if the method has none."""
    banks = {entry["round"]: entry["bank"] for entry in history if entry.get("bank")}
    if not banks:
        return None
    last = banks[max(banks)]
    is_centred = all("centred_rank" in bank for bank in banks.values())
    names = ("size", "centred_rank", "centred_cosine") if is_centred else ("size", "effective_rank", "mean_cosine")
    titles = {name: f"{PLOTS[name]}, now {last['size'] if name == 'size' else number(last[name])}" for name in names}
    plots = [
        plot(title, list(banks), {"bank": [bank[key] for bank in banks.values()]}) for key, title in titles.items()
    ]
    shares = [_share(word, last.get(f"by_{word}") or {}) for word in ("modality", "site")]
    return Bank(ALIKE if last.get("alike") else None, plots, shares)


def _share(word: str, counts: Mapping[str, int]) -> Table:
    most = max(counts.values(), default=0) or 1
    rows: list[list[Cell]] = [
        [name or "unnamed", f"{counts[name]:,}", Bar(counts[name] / most)] for name in sorted(counts, key=natural)
    ]
    return Table([f"By {word}, last round", "Prototypes", ""], rows, text=(0, 2))
