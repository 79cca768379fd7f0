"""The document of a table, as `<table>.json` holds it (written by `one_federation` and `paper_tables`).

Letters: s seeds, k sites.  None stands for a number that is not defined.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

Moment = Literal["before", "after"]
"""Scores of the received model, and after local training."""
MOMENTS: tuple[Moment, ...] = ("before", "after")
Changes = Mapping[str, Mapping[str, Any]]
"""Section of experiment.json -> key -> value, laid over an experiment."""
Metrics = Mapping[str, bool]
"""Metric -> whether higher is better, in a task's order."""
ContenderRow = dict[str, Any]
"""A contender's row: under each metric's name a `Moments`, and beside them, where known, `effective_rank` (float),
`facts` (`Facts`), `curve` (metric -> a validation score per round) and `rounds_to_90` (metric -> round)."""


class Difference(TypedDict):
    """The paired difference to the rival, and its 95 % interval over seeds."""

    difference: float | None
    low: float | None
    high: float | None


class Scores(TypedDict):
    """One metric of one contender at one moment, on the test split."""

    mean: float | None
    std_over_seeds: float | None
    worst_site: float | None
    std_over_sites: float | None
    per_site: list[float | None]
    """Mean over seeds of each site."""
    values: list[list[float | None]]
    """Every score (s k)."""
    sites_below_local: NotRequired[int]
    """Number of sites that score worse than when they train alone."""
    against_rival: NotRequired[Difference]


class Moments(TypedDict):
    """One metric of one contender."""

    before: Scores
    after: Scores


class NumValues(TypedDict):
    """Number of values by part of the model."""

    shared: int
    personal: int
    frozen: int


class Facts(TypedDict):
    """What a contender's runs started from and cost."""

    init_hash: list[str]
    """Of each seed."""
    backbone_hash: list[str | None]
    """Of each seed; None in runs of older versions."""
    partition_hash: str
    steps: list[int]
    """Optimisation steps of all sites and rounds, of each seed."""
    num_values: NumValues
    values_moved: int
    """FedSCA eq. 11: the shared values of all rounds and sites, there and back."""
    bytes_up: int
    """Size of the serialised messages from sites, of the first seed."""
    bytes_down: int


class Point(TypedDict):
    """One value that tuning tried."""

    key: str
    """`section.key` of experiment.json."""
    value: float
    validation: float | None
    """None where the run failed."""


class Rows(TypedDict):
    """The contenders, and the trivial rivals that the task scores beside the model."""

    rows: dict[str, ContenderRow]
    trivial: dict[str, ContenderRow]


class Column(Rows):
    """One federation and setting."""

    data: str
    source: str
    """`demo` (synthetic) or `site` (real)."""
    sites: list[str]
    seeds: int
    num_rounds: int
    local_epochs: int
    rival: str | None
    """The row that all others are compared with."""
    metrics: dict[str, bool]
    shown: list[str]
    """The metrics that the table shows, its own first."""
    failed: dict[str, str]
    """Contender -> why its run failed."""
    by_site: NotRequired[bool]
    note: NotRequired[str]
    chosen: NotRequired[dict[str, Changes]]
    """Contender -> what tuning chose."""
    tried: NotRequired[dict[str, list[Point]]]


class Document(TypedDict):
    """One table."""

    table: str
    """Its name, which names its files."""
    title: str
    scale: str | None
    caption: list[str]
    columns: dict[str, Column]
