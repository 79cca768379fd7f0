"""Run the papers' tables of `papers` at a scale: tune, run every seed, write JSON, Markdown and HTML, lint.

Runs are stored as in `one_federation`: tables share them, and an interrupted command continues where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from omnifm.bench.inputs import keep_few, out_folder, site_names
from omnifm.bench.tables import document, lint
from omnifm.bench.tables.captions import caption
from omnifm.bench.tables.column_runs import ColumnRuns
from omnifm.bench.tables.comparison import Column as ColumnPlan
from omnifm.bench.tables.comparison import Row, Scale, Table
from omnifm.bench.tables.papers import SCALES, TABLES
from omnifm.bench.tables.records import Changes, Column, Document
from omnifm.bench.tables.tuning import grid, num_points
from omnifm.config import Experiment
from omnifm.data.datalist import SPLITS
from omnifm.data.demo import demo_site
from omnifm.data.site_folder import new_folder
from omnifm.metrics.rivals import rivals


def run(
    out: Path,
    scale: str,
    *,
    data: Path | None = None,
    names: tuple[str, ...] = (),
    columns: tuple[str, ...] = (),
    jobs: Path,
) -> list[str]:
    """Write `<out>/<table>.json`, `.md` and `.html` of every table.

    Args:
        out: folder for results, finished runs and demo data; runs that it holds are not repeated.
        scale: a key of `papers.SCALES`.
        data: folder of federation folders; demo data replace those that it lacks.
        names: keys of `papers.TABLES`; empty means all.
        columns: the only columns to run; empty means all of the scale.  Other columns that `out` holds stay.
        jobs: folder of the job folders.

    Returns:
        The lint's findings, a line each.

    Raises:
        ValueError: there is no such scale, table, column, job or folder; or data changed during a run.
    """
    chosen = _tables(scale, names, columns)
    if data is not None and not data.is_dir():
        raise ValueError("data must be a folder of federation folders; there is no such folder")
    bench = _Bench(out_folder(out), scale, SCALES[scale], data, jobs, columns)
    bench.check(chosen)
    bench.bar.total = sum(bench.num_runs(table) for table in chosen.values())
    findings: list[str] = []
    for name, table in chosen.items():
        findings += [f"{name}: {line}" for line in lint.lint(bench.table(name, table))]
    bench.bar.close()
    return findings


def _tables(scale: str, names: tuple[str, ...], columns: tuple[str, ...]) -> dict[str, Table]:
    """The tables that were asked for, by name.

    Raises:
        ValueError: as `run`, of scale, tables and columns.
    """
    for kind, known, asked in (("scale", SCALES, (scale,)), ("table", TABLES, names)):
        if unknown := sorted(set(asked) - set(known)):
            raise ValueError(f"{kind} must be one of {', '.join(known)}; got {unknown[0]!r:.80}")
    chosen = {name: TABLES[name] for name in names or TABLES}
    in_all = [column.name for table in chosen.values() for column in table.columns]
    if unknown := sorted(set(columns) - set(in_all)):
        raise ValueError(f"column must be one of {', '.join(in_all)}; got {unknown[0]!r:.80}")
    for name, table in chosen.items():
        if columns and not any(column.name in columns for column in table.columns):
            raise ValueError(f"table {name!r} must have a column that was asked for; it has none")
    return chosen


class _Bench:
    """What the tables of one command share.

    Args:
        name: the scale's name.
        out, data, jobs: as for `run`.
        only: `columns` of `run`.
    """

    def __init__(
        self, out: Path, name: str, scale: Scale, data: Path | None, jobs: Path, only: tuple[str, ...] = ()
    ) -> None:
        self.out, self.name, self.scale, self.data, self.jobs, self.only = out, name, scale, data, jobs, only
        self.bar = tqdm(unit="run")

    def columns(self, table: Table) -> list[ColumnPlan]:
        """The columns that were asked for, else those of the scale."""
        wanted = self.only or (table.smoke if self.name == "smoke" else [column.name for column in table.columns])
        return [column for column in table.columns if column.name in wanted]

    def check(self, tables: Mapping[str, Table]) -> None:
        """Refuse a mistaken command before it runs for hours.

        Raises:
            ValueError: `data` holds none of the federations, or only one site of a federation; a column is tuned in a
                column that was not asked for; or a file in `out` is not a table.
        """
        for name in tables:
            document.columns_of(self.out / f"{name}.json", self.name)
        shown = [(table, column) for table in tables.values() for column in self.columns(table)]
        if self.data is not None and not any(self._folder(column) for _, column in shown):
            wanted = sorted({column.data for _, column in shown})
            raise ValueError(f"data must be a folder that holds one of {', '.join(wanted)}; it holds none")
        for table, column in shown:
            first, experiment = self._tuned_in(table, column), self._experiment(column, demo=False)
            tuned = any(grid(row, self.scale, experiment) for row in self.rows(table, column))
            if tuned and first not in self.columns(table):
                raise ValueError(f"column {column.name!r} is tuned in {first.name!r}, which must be asked for too")

    def rows(self, table: Table, column: ColumnPlan) -> list[Row]:
        """The rows of the scale that can be run in this column."""
        rows = [row for row in table.rows if not row.only or column.name in row.only]
        return [row for row in rows if self.name != "smoke" or row.name in (table.smoke_rows or (row.name,))]

    def num_runs(self, table: Table) -> int:
        """Number of runs, without those beyond a grid's edge; runs that tables share count in each of them."""
        num = 0
        for column in self.columns(table):
            experiment = self._experiment(column, demo=self._folder(column) is None)
            for row in self.rows(table, column):
                num += self.scale.num_seeds
                if column is self._tuned_in(table, column):
                    num += num_points(grid(row, self.scale, experiment))
        return num

    def table(self, name: str, table: Table) -> Document:
        """Run a table and write it after each column."""
        told: Document | None = None
        fresh: dict[str, Column] = {}
        for column in self.columns(table):
            tuned = fresh.get(self._tuned_in(table, column).name)
            fresh[column.name] = self._column(name, table, column, tuned["chosen"] if tuned else {})
            # Read again each time: another process may have written other columns meanwhile.
            done = document.columns_of(self.out / f"{name}.json", self.name) | fresh
            columns = {one.name: done[one.name] for one in table.columns if one.name in done}
            told = {
                "table": name,
                "title": table.title,
                "scale": self.name,
                "caption": caption(table, self.name, self.scale, columns),
                "columns": columns,
            }
            document.write(self.out, told)
        assert told is not None  # `run` refuses a table without a column
        return told

    def _tuned_in(self, table: Table, column: ColumnPlan) -> ColumnPlan:
        """The column in which this one is tuned: itself, or the first with the same job and network."""
        if table.tuned_apart:
            return column

        def network(one: ColumnPlan) -> tuple[object, ...]:
            return one.job, one.changes.get("task"), one.changes.get("model")

        shown = table.columns if self.only else self.columns(table)
        return next(one for one in shown if network(one) == network(column))

    def _column(self, name: str, table: Table, column: ColumnPlan, chosen: Mapping[str, Changes]) -> Column:
        """Tune and run a column.

        Args:
            name: the table's name.
            chosen: row -> what tuning chose in another column; rows that it lacks are tuned here.
        """
        folder = self._folder(column)
        experiment = self._experiment(column, demo=folder is None)
        where = self._demo(column, experiment.task["name"]) if folder is None else folder
        runs = ColumnRuns(experiment, where, self.out, self.scale, self.bar, f"{name}, {column.name}")
        for row in self.rows(table, column):
            runs.add(row, chosen.get(row.name))
        return {
            "data": column.data if folder else f"demo for {column.data}",
            "source": "site" if folder else "demo",
            "sites": runs.sites,
            "seeds": self.scale.num_seeds,
            "num_rounds": experiment.train.num_rounds,
            "local_epochs": experiment.train.local_epochs,
            "rival": table.rival,
            "metrics": dict(runs.metrics),
            "shown": [metric for metric in table.metrics if metric in rivals(runs.metrics)],
            "by_site": table.by_site,
            "note": column.note if self.name != "paper" else "",
            "chosen": runs.chosen,
            "tried": runs.tried,
            "failed": runs.failed,
            **runs.compared(table.rival),
        }

    def _experiment(self, column: ColumnPlan, *, demo: bool) -> Experiment:
        """The column's job at this scale; on demo data all jobs of a task have one name, so that tables share runs."""
        preset = column.preset if self.scale.presets else None
        experiment = Experiment.from_job(self.jobs / column.job, preset=preset)
        task = experiment.task["name"]
        experiment = experiment.changed(self.scale.shrunk.get(task, {})).changed(column.changes)
        if self.name == "cpu":
            experiment = experiment.changed({"train": column.budget})
        if demo:
            experiment = replace(experiment, job=f"demo_{task}", data=replace(experiment.data, name="synthetic demo"))
        return experiment

    def _folder(self, column: ColumnPlan) -> Path | None:
        """The real federation; None where demo data replace it."""
        folder = None if self.data is None else self.data / column.data
        names = [] if folder is None else site_names(folder)
        if len(names) == 1:  # some of its sites are missing: not a case for demo data
            raise ValueError(f"data must hold at least 2 sites with a dataset.json in {column.data}; got 1")
        return folder if names else None

    def _demo(self, column: ColumnPlan, task: str) -> Path:
        """A demo federation of the column's number of sites, with as many cases as the scale keeps."""
        num, cases = min(column.num_sites, self.scale.num_sites), self.scale.cases.get(task)
        root = self.out / "demo" / "_".join(map(str, (task, num, *(cases or ()))))
        for site in (f"site-{number}" for number in range(1, num + 1)):
            if not (root / site).is_dir():
                with new_folder(root / site) as work:
                    shutil.copytree(demo_site(task, site), work, dirs_exist_ok=True)
                    if cases:
                        keep_few(work / "dataset.json", dict(zip(SPLITS, cases, strict=True)))
        return root
