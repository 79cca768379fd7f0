"""The caption of a paper's table: how to read it, what was tuned, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping

from omnifm.bench.tables import document
from omnifm.bench.tables.comparison import Scale, Table
from omnifm.bench.tables.records import Column
from omnifm.bench.tables.tuning import BEYOND


def caption(table: Table, scale_name: str, scale: Scale, columns: Mapping[str, Column]) -> list[str]:
    """One paragraph per line.

    Args:
        scale_name: the scale's key in `papers.SCALES`.
        columns: the columns that have been run.
    """
    missing = [column.name for column in table.columns if column.name not in columns]
    if scale_name == "smoke" and table.smoke_rows:
        missing += [row.name for row in table.rows if row.name not in table.smoke_rows]
    demo = {column.data for column in table.columns if column.name in columns and _is_demo(columns[column.name])}
    how_to_read = document.reading(scale.num_seeds, table.rival)
    lines = [table.note, *how_to_read, f"Scale {scale_name}.", *_tuning(table, scale)]
    if missing:
        lines.append(f"Left out here: {'; '.join(missing)}.")
    if demo:
        lines.append(f"Demo data, whose sites differ in their own way, replace {', '.join(sorted(demo))}.")
    return [line for line in lines if line]


def _is_demo(column: Column) -> bool:
    return column.get("source") == "demo"


def _tuning(table: Table, scale: Scale) -> list[str]:
    """What was tuned, and how."""
    if not scale.lr_factors or not any(row.tuned for row in table.rows):
        if scale.shrunk:
            return ["Nothing is tuned at this scale: network, pictures, budget and learning rate are made small."]
        return ["Nothing is tuned here: learning rate and constants are the job's."]
    where = "in each column" if table.tuned_apart else "in the first column of each network"
    rates = ", ".join(f"{factor:.2g}" for factor in scale.lr_factors)
    grids = "; ".join(
        f"{row.name} {key} {', '.join(map(str, values))}"
        for row in table.rows
        if row.tuned
        for key, values in row.grid.items()
    )
    lines = [
        f"Tuned on validation with seed 0, {where}: the job's learning rate times {rates}.  While the best rate is at "
        f"an edge, up to {BEYOND} more rates beyond it are tried{'; then ' + grids if grids else ''}.  (edge): the "
        "best value is the lowest or highest one that was tried."
    ]
    if any(not row.tuned for row in table.rows):
        lines.append("Rows of an ablation keep the job's values.")
    return lines
