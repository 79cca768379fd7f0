"""The records of `omnifm bench spectra`, as spectra.json holds them."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypedDict

from torch import Tensor

When = Literal["before", "after"]
"""Before and after subtracting the mean over sites."""


class Compared(TypedDict):
    """What one kind of spectrum says of the inequality.

    Distances are means over pairs of images.
    """

    groups: dict[str, dict[str, float]]
    """Group of pairs (`site`, `modality`, `across`) -> distance in the `low` band and the `full` spectrum; a group
    without a pair is left out."""
    low_over_full: float
    """Mean over pairs across modalities of low / full distance."""
    even: float
    """The same if differences were spread evenly over frequencies; 1 where each band has its own unit length."""
    apart_low: float
    """Distance across modalities / distance within a site, in the low band."""
    apart_full: float
    """The same in the full spectrum."""
    nearer: list[float]
    """[2.5 %, 97.5 %] of apart_full - apart_low over bootstrap samples of each site's images; above 0 where the low
    band brings modalities together."""


class Described(Compared):
    """`Compared`, with the spectrum in words."""

    what: str


class SiteImages(TypedDict):
    """Whose images were measured."""

    modality: str
    num_images: int


class Numbers(TypedDict):
    """All numbers of a federation."""

    side: int
    """Of the squares, in pixels."""
    low_share_of_frequencies: float
    sites: dict[str, SiteImages]
    spectra: dict[str, Described]
    cosines: dict[When, list[list[float]]]
    """Between sites' mean low-band log spectra, `before` and `after` subtracting the mean over sites."""


class Result(Numbers):
    """The content of spectra.json."""

    schema: int
    data: str
    keep: float
    limit: int
    seed: int


class Measured(NamedTuple):
    """What `measure` returns."""

    numbers: Numbers
    pictures: dict[str, Tensor]
    """Mean log spectrum (s, s // 2 + 1) of each site, for the figure."""
