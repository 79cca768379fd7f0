"""Who gains and who loses by joining: every site's score against that of training alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omnifm.records import Summary
from omnifm.report.elements import Cell, Table
from omnifm.report.metric_names import common_unit, metric_name
from omnifm.report.numbers import NONE, Score, defined, natural, number
from omnifm.report.scores import sign

ALONE = "local"
"""Name of the method that trains every site alone."""


@dataclass(frozen=True)
class Change:
    """A bar of the plot: left of the middle is worse, right is better.

    Attributes:
        left, width: in percent of the plot.
        is_better: None if nothing changed.
    """

    site: str
    words: str
    left: str
    width: str
    is_better: bool | None


@dataclass(frozen=True)
class Joining:
    """What the page shows of it.

    Attributes:
        verdict: how many sites gain and lose, in words.
    """

    metric: str
    verdict: str
    table: Table
    changes: Sequence[Change]


def joining(summary: Summary, metric: str | None) -> Joining | None:
    """Compare the sites with training alone; None if the run has no such reference.

    Args:
        metric: the metric to compare.
    """
    alone = summary.get("reference", {}).get(ALONE)
    if not alone or metric is None or not sign(summary, metric):
        return None
    sites = sorted({*summary["sites"], *alone}, key=natural)
    pairs = {site: (alone.get(site, {}).get(metric), _joined(summary, site, metric)) for site in sites}
    gains = {site: _gain(summary, metric, *pair) for site, pair in pairs.items()}
    words = metric_name(metric, common_unit(metric, summary["sites"].values()))
    rows: list[list[Cell]] = [
        [site, *map(number, pairs[site]), _signed(pairs[site]), _word(gains[site])] for site in sites
    ]
    table = Table(["Site", f"{words}, training alone", f"{words}, joined", "Change", ""], rows, text=(0, 4))
    return Joining(words, _verdict(list(gains.values())), table, _bars(gains, pairs))


def _joined(summary: Summary, site: str, metric: str) -> Score:
    record = summary["sites"].get(site)
    found = record["metrics"].get(metric) if record else None
    return found["after"] if found else None


def _gain(summary: Summary, metric: str, alone: Score, joined: Score) -> Score:
    """The change; positive is better."""
    if not defined(alone) or not defined(joined):
        return None
    return (joined - alone) * (1 if sign(summary, metric) > 0 else -1)


def _signed(pair: tuple[Score, Score]) -> str:
    alone, joined = pair
    return f"{joined - alone:+.3f}" if defined(alone) and defined(joined) else NONE


def _word(gain: Score) -> str:
    if not defined(gain):
        return "unknown"
    return "gains" if gain > 0 else "loses" if gain < 0 else "no change"


def _verdict(gains: Sequence[Score]) -> str:
    counts = {word: sum(_word(gain) == word for gain in gains) for word in ("gains", "loses", "no change", "unknown")}
    texts = {"gains": "gain by joining", "loses": "lose", "no change": "do not change", "unknown": "are unknown"}
    parts = [f"{counts[word]} {text}" for word, text in texts.items() if counts[word] or word in ("gains", "loses")]
    return f"Of {len(gains)} sites {', '.join(parts)}."


def _bars(gains: dict[str, Score], pairs: dict[str, tuple[Score, Score]]) -> list[Change]:
    known = {site: gain for site, gain in gains.items() if defined(gain)}
    most = max((abs(gain) for gain in known.values()), default=0) or 1
    return [
        Change(
            site,
            _signed(pairs[site]),
            left=f"{50 + min(0.0, 50 * gain / most):.1f}",
            width=f"{50 * abs(gain) / most:.1f}",
            is_better=None if gain == 0 else gain > 0,
        )
        for site, gain in known.items()
    ]
