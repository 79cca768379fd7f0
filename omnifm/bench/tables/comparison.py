"""The parts of a paper's table: contenders, federations, and how much of it each scale runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from omnifm.bench.tables.records import Changes


@dataclass(frozen=True)
class Row:
    """A contender.

    Attributes:
        method: its section of experiment.json.
        grid: its own constants, each with the values that tuning tries.
        extra_epochs: passes it makes beside `local_epochs`; they are subtracted, so that every row has equal steps.
        only: columns in which it can run; empty means all.
        tuned: whether its learning rate and grid are tuned; rows of an ablation keep the job's values.
    """

    name: str
    method: Mapping[str, object]
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    extra_epochs: int = 0
    only: tuple[str, ...] = ()
    tuned: bool = True


@dataclass(frozen=True)
class Column:
    """One federation and setting.

    Attributes:
        data: the federation's folder below --data.
        job: the job's folder name.
        changes: changes to the job's experiment at every scale.
        preset: the job's preset at scale `paper`.
        num_sites: sites of the demo data that replace a missing federation.
        budget: changes to `train` at scale `cpu`, where the federation needs other rounds than the job's.
        note: how this column differs from the others.
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
        metrics: metrics shown, the table's own first; a column shows those that its task has.
        rival: the row that all others are compared with.
        smoke, smoke_rows: columns and rows at scale `smoke`; no rows means all.
        by_site: whether the paper prints a score per site.
        tuned_apart: whether every column is tuned on its own; else only the first column with a network is tuned.
        note: how the table differs from the paper's.
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
    """How much of every table is run.

    Attributes:
        num_seeds: runs of each row.
        lr_factors: factors of the job's learning rate that tuning tries for every row (`tuning.tune` goes beyond the
            best edge); empty keeps the job's rate.
        constants: whether rows' own grids are tried too.
        presets: whether a column's preset is used.
        shrunk: task -> changes that make a run last about a second.
        cases: task -> cases per split (training, validation, test) of the demo data; empty keeps all.
        num_sites: most sites of the demo data.
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
