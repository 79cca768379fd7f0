"""The arithmetic of ratios: two things timed alternately in one run, and the bar for their ratio.

A ratio is the median over pairs (A B, B A, A B ...), so that a slow phase of the machine slows both sides.  Wall time
decides.  CPU time is shown beside it, because other processes disturb it less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BUDGET_S = 25.0
"""A comparison stops after this time, but not before it has `MIN_PAIRS` pairs."""
MIN_PAIRS = 3


@dataclass(frozen=True)
class Seconds:
    """One timing."""

    wall: float
    cpu: float
    """Of all threads."""


@dataclass(frozen=True)
class Measure:
    """One number and its bar.

    Attributes:
        value: what is compared with the bar: the median of the wall ratios, or another quantity in `unit`.
        low, high: quartiles.
        cpu: the same from CPU time; None where there is no such number.
        bar: the highest allowed value.
        unit: `x` for a ratio, `s` for seconds, `difference` for a largest absolute difference.
        what: what was measured, in words.
    """

    name: str
    value: float
    low: float
    high: float
    cpu: float | None
    bar: float
    unit: str
    what: str

    @property
    def holds(self) -> bool:
        """Whether the value is not above the bar; False for NaN."""
        return self.value <= self.bar

    def line(self) -> str:
        """One line for people."""
        cpu = "" if self.cpu is None else f", CPU {shown(self.cpu)}"
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        return f"{self.name}: {self.shown()}{cpu}; bar {shown(self.bar)}: {verdict} ({self.what})"

    def shown(self) -> str:
        """Value, unit and quartiles."""
        spread = "" if self.low == self.high else f" [{shown(self.low)}, {shown(self.high)}]"
        return f"{shown(self.value)} {self.unit}{spread}"


def interleave(
    ours: Callable[[], object], theirs: Callable[[], object], num_pairs: int, budget_s: float = BUDGET_S
) -> list[tuple[Seconds, Seconds]]:
    """Time both alternately, after one untimed call of each.

    Every second pair runs in the other order, so that neither side always runs on the cache that the other left.

    Returns:
        (ours, theirs) per pair; at most `num_pairs`, and fewer if `budget_s` is spent.
    """
    ours()
    theirs()
    started = time.perf_counter()
    pairs: list[tuple[Seconds, Seconds]] = []
    while len(pairs) < num_pairs:
        if len(pairs) >= MIN_PAIRS and time.perf_counter() - started >= budget_s:
            break
        if len(pairs) % 2:
            second = timed(theirs)
            first = timed(ours)
        else:
            first = timed(ours)
            second = timed(theirs)
        pairs.append((first, second))
    return pairs


def timed(work: Callable[[], object]) -> Seconds:
    """Seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def ratio(name: str, pairs: Sequence[tuple[Seconds, Seconds]], bar: float, what: str) -> Measure:
    """The median of ours / theirs over pairs, with quartiles.

    Raises:
        ValueError: there is no pair.
    """
    if not pairs:
        raise ValueError("pairs must hold at least one timing; got none")
    low, middle, high = np.percentile([a.wall / b.wall for a, b in pairs], (25, 50, 75)).tolist()
    # A call that is shorter than the CPU clock's step gives no CPU ratio.
    cpus = [a.cpu / b.cpu for a, b in pairs if a.cpu > 0 and b.cpu > 0]
    seconds = [float(np.median([pair[side].wall for pair in pairs])) for side in (0, 1)]
    told = f"{what}; {duration(seconds[0])} against {duration(seconds[1])}, {len(pairs)} pairs"
    return Measure(name, middle, low, high, float(np.median(cpus)) if cpus else None, bar, "x", told)


def shown(value: float) -> str:
    """A number with three decimals; a very small one in scientific notation."""
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Milliseconds below one second, else seconds."""
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
