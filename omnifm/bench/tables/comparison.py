"""What a table of a paper is made of: contenders, federations, and how much of it a scale runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Changes = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """A contender.

    Attributes:
        method: its section of experiment.json.
        grid: its own constants, each with the values tried on validation.
        extra_epochs: passes it takes beside `local_epochs`; they are taken off, so that all take as many steps.
        only: columns where it can be run; empty is all.
        tuned: whether learning rate and grid are tried; rows of an ablation keep those of the job.
    """

    name: str
    method: Mapping[str, Any]
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    extra_epochs: int = 0
    only: tuple[str, ...] = ()
    tuned: bool = True


@dataclass(frozen=True)
class Column:
    """One federation and setting.

    Attributes:
        data: the federation's folder below --data.
        changes: laid over the job's experiment at every scale.
        preset: the job's preset at scale `paper`.
        num_sites: sites of the demo data that stand in.
        budget: laid over `train` at scale `cpu`, where the job's rounds are not what its data need.
        note: what is different in this column alone.
    """

    name: str
    data: str
    job: str
    changes: Changes = field(default_factory=dict)
    preset: str = "paper"
    num_sites: int = 3
    budget: Mapping[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        metrics: those shown, the table's own first; a column shows those that its task has.
        rival: the row that all others are compared with.
        smoke, smoke_rows: columns and rows at scale `smoke`; no rows are all.
        by_site: whether the paper prints sites.
        tuned_apart: whether every column is tuned on its own, not only the first of a network.
        note: what is different from the paper's.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    rival: str
    smoke: tuple[str, ...]
    by_site: bool = False
    tuned_apart: bool = False
    note: str = ""
    smoke_rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scale:
    """How much of it.

    Attributes:
        presets: whether a column's preset is taken.
        lr_factors: of the job's learning rate; the grid for every row, which `tuning.tune` follows beyond an edge; none
            keep the job's.
        constants: whether rows' own grids are tried too.
        shrunk: task -> changes that make a cell last about a second.
        cases: task -> cases per split that are kept of the demo data; empty keeps all.
        num_sites: of the demo data, if fewer than the column's.
        device: auto, cpu or cuda:N.
    """

    num_seeds: int
    lr_factors: tuple[float, ...] = ()
    constants: bool = False
    presets: bool = False
    shrunk: Mapping[str, Changes] = field(default_factory=dict)
    cases: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    num_sites: int = 100
    device: str = "cpu"
