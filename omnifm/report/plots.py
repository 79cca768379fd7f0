"""Curves and other drawings of matplotlib, for a page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from omnifm.report.elements import COLOURS, MARKERS, Picture
from omnifm.report.numbers import Score, defined, number

MAX_POINTS = 800
"""Largest number of points of a plot that is drawn as vectors; with more points a bitmap is smaller."""


@dataclass(frozen=True)
class Plot:
    """A drawing with its title.

    Attributes:
        alt: the drawing in words, different for each drawing of a page.
        svg: what follows `<svg` in the file of matplotlib; None if the drawing is a bitmap.
        bitmap: the drawing as a picture, or None.
    """

    title: str
    alt: str
    svg: Markup | None = None
    bitmap: Picture | None = None


def plot(
    title: str,
    rounds: Sequence[int],
    series: Mapping[str, Sequence[Score]],
    limits: tuple[int | float, int | float] | None = None,
) -> Plot:
    """Draw curves over rounds.

    The drawing holds no name; the alternative text does.

    Args:
        rounds: at least one.
        series: name -> one value for each round; a value that is not defined leaves a gap.
        limits: smallest and largest value of the vertical axis; None takes those of the data.
    """
    figure, axes = _round_axes(rounds, limits)
    for index, values in enumerate(series.values()):
        _curve(axes, rounds, values, index)
    ends = [f"{name} {number(next(filter(defined, reversed(values)), None))}" for name, values in series.items()]
    alt = f"{title} over {len(rounds)} rounds; last values: {', '.join(ends)}"
    if len(rounds) * len(series) > MAX_POINTS:
        return Plot(title, alt, bitmap=Picture(alt, _bitmap(figure)))
    return drawing(title, figure, alt)


def drawing(title: str, figure: Figure, alt: str) -> Plot:
    """Return a matplotlib figure as vectors.

    Args:
        alt: says in words what the figure shows.  Each drawing of a page needs its own.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "omnifm"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue().decode()
    # Several drawings share one page: without a prefix of their own, their ids would be the same.
    for start in ('id="', "url(#", 'href="#'):
        svg = svg.replace(start, f"{start}p{crc32(alt.encode(errors='replace')):x}-")
    return Plot(title, alt, Markup(svg[svg.index("<svg") + len("<svg") :]))  # noqa: S704 (matplotlib escapes its texts)


def _round_axes(rounds: Sequence[int], limits: tuple[int | float, int | float] | None) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.3, 2.9), layout="constrained")
    axes = figure.subplots()
    if limits:
        room = 0.06 * (limits[1] - limits[0]) or 0.05
        axes.set_ylim(limits[0] - room, limits[1] + room)
    axes.set_xlim(min(rounds) - 0.3, max(rounds) + 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("round")
    axes.grid(color="#e4e9ee")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _curve(axes: Axes, rounds: Sequence[int], values: Sequence[Score], index: int) -> None:
    numbers = [math.nan, *(value if defined(value) else math.nan for value in values), math.nan]
    alone = [math.isnan(left) and math.isnan(right) for left, right in zip(numbers, numbers[2:], strict=False)]
    step = 1 + len(rounds) // 30
    # A point without neighbours has no line: it must have a marker.
    marked = [k for k, is_alone in enumerate(alone) if is_alone or k % step == 0]
    markers = list(MARKERS)
    axes.plot(
        rounds,
        numbers[1:-1],
        color=COLOURS[index % len(COLOURS)],
        marker=markers[index % len(markers)],
        linewidth=1.4,
        markersize=4.5,
        markevery=marked,
    )


def _bitmap(figure: Figure) -> bytes:
    """Return the figure as a PNG file of few colours, which is small."""
    buffer = io.BytesIO()
    few_colours = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    Image.open(buffer).convert("RGB").quantize(32).save(few_colours, format="PNG", optimize=True)
    return few_colours.getvalue()
