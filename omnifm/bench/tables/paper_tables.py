"""Run the papers' tables of `papers` at a scale: tune, run every seed, write JSON, Markdown and HTML, lint.

Cells are those of `tables`: what was run for one table is there for the next, and a run that was cut off goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from omnifm.bench.cells import Incomplete, cell
from omnifm.bench.inputs import keep_few, out_folder, site_names
from omnifm.bench.tables import course, document, lint
from omnifm.bench.tables.comparison import Column, Row, Scale, Table
from omnifm.bench.tables.one_federation import Cells, compare
from omnifm.bench.tables.papers import SCALES, TABLES
from omnifm.bench.tables.tuning import BEYOND, changed, grid, num_points, tune
from omnifm.config import Experiment
from omnifm.data.datalist import SPLITS
from omnifm.data.demo import demo_site
from omnifm.data.site_folder import new_folder
from omnifm.metrics.rivals import rivals
from omnifm.plugins import plugin


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
        out: results, finished cells and demo data; what is there is not done again.
        scale: of `papers.SCALES`.
        data: folder of federation folders; demo data stand in for those that it lacks.
        names: of `papers.TABLES`; empty is all.
        columns: of these tables, the only ones that are run, empty is all of the scale; others that `out` holds stay.
        jobs: folder of the job folders.

    Returns:
        What the lint says, a line per finding.

    Raises:
        ValueError: there is no such scale, table, column, job or folder; or data changed during a run.
    """
    for kind, known, asked in (("scale", SCALES, (scale,)), ("table", TABLES, names)):
        if unknown := sorted(set(asked) - set(known)):
            raise ValueError(f"{kind} must be one of {', '.join(known)}; got {unknown[0]!r:.80}")
    if data is not None and not data.is_dir():
        raise ValueError("data must be a folder of federation folders; it is not there")
    chosen = {name: TABLES[name] for name in names or TABLES}
    in_all = [column.name for table in chosen.values() for column in table.columns]
    if unknown := sorted(set(columns) - set(in_all)):
        raise ValueError(f"column must be one of {in_all}; got {unknown[0]!r:.80}")
    for name, table in chosen.items():
        if columns and not any(column.name in columns for column in table.columns):
            raise ValueError(f"table {name!r} must have a column that was asked for; it has none")
    bench = _Bench(out_folder(out), scale, SCALES[scale], data, jobs, columns)
    bench.check(chosen)
    bench.bar.total = sum(bench.num_runs(table) for table in chosen.values())
    findings: list[str] = []
    for name, table in chosen.items():
        findings += [f"{name}: {line}" for line in lint.lint(bench.table(name, table))]
    bench.bar.close()
    return findings


class _Bench:
    """What the tables of one command share.

    Args:
        out, data, jobs: as for `run`.
        only: `columns` of `run`.
    """

    def __init__(
        self, out: Path, name: str, scale: Scale, data: Path | None, jobs: Path, only: tuple[str, ...] = ()
    ) -> None:
        self.out, self.name, self.scale, self.data, self.jobs, self.only = out, name, scale, data, jobs, only
        self.bar = tqdm(unit="run")

    def columns(self, table: Table) -> list[Column]:
        """Those that were asked for, else those of the scale."""
        wanted = self.only or (table.smoke if self.name == "smoke" else [column.name for column in table.columns])
        return [column for column in table.columns if column.name in wanted]

    def check(self, tables: Mapping[str, Table]) -> None:
        """Refuse what would run for hours and not be what was asked for.

        Raises:
            ValueError: `data` holds none of the federations, or of one a single site; a column is tuned in one that was
                not asked for; or what `out` holds is no table.
        """
        for name in tables:
            document.columns_of(self.out / f"{name}.json", self.name)
        shown = [(table, column) for table in tables.values() for column in self.columns(table)]
        if self.data is not None and not any(self._folder(column) for _, column in shown):
            wanted = sorted({column.data for _, column in shown})
            raise ValueError(f"data must be a folder that holds one of {wanted}; it holds none")
        for table, column in shown:
            first, experiment = self._tuned_in(table, column), self._experiment(column, demo=False)
            tuned = any(grid(row, self.scale, experiment) for row in self.rows(table, column))
            if tuned and first not in self.columns(table):
                raise ValueError(f"column {column.name!r} is tuned in {first.name!r}, which must be asked for too")

    def rows(self, table: Table, column: Column) -> list[Row]:
        """Those of the scale that can be run in this column."""
        rows = [row for row in table.rows if not row.only or column.name in row.only]
        return [row for row in rows if self.name != "smoke" or row.name in (table.smoke_rows or (row.name,))]

    def num_runs(self, table: Table) -> int:
        """Cells, those that several tables share counted every time, without steps beyond a grid."""
        num = 0
        for column in self.columns(table):
            experiment = self._experiment(column, demo=self._folder(column) is None)
            for row in self.rows(table, column):
                num += self.scale.num_seeds
                if column is self._tuned_in(table, column):
                    num += num_points(grid(row, self.scale, experiment))
        return num

    def table(self, name: str, table: Table) -> dict[str, Any]:
        """Run a table, writing it after each column; returns its JSON."""
        told, fresh = dict[str, Any](), dict[str, Any]()
        for column in self.columns(table):
            chosen = fresh.get(self._tuned_in(table, column).name, {}).get("chosen")
            fresh[column.name] = self._column(name, table, column, chosen)
            # Read again each time: another process may have written other columns meanwhile.
            done = document.columns_of(self.out / f"{name}.json", self.name) | fresh
            columns = {one.name: done[one.name] for one in table.columns if one.name in done}
            told = {
                "table": name,
                "title": table.title,
                "scale": self.name,
                "caption": self._caption(table, columns),
                "columns": columns,
            }
            document.write(self.out, told)
        return told

    def _tuned_in(self, table: Table, column: Column) -> Column:
        """The column where this one is tuned: itself, or the first with the same job and network."""
        if table.tuned_apart:
            return column

        def network(one: Column) -> tuple[Any, ...]:
            return one.job, one.changes.get("task"), one.changes.get("model")

        shown = table.columns if self.only else self.columns(table)
        return next(one for one in shown if network(one) == network(column))

    def _column(self, name: str, table: Table, column: Column, chosen: Mapping[str, Any] | None) -> dict[str, Any]:
        folder = self._folder(column)
        demo = folder is None
        experiment = self._experiment(column, demo=demo)
        where = self._demo(column, experiment.task["name"]) if folder is None else folder
        sites = site_names(where)
        metrics: Mapping[str, bool] = plugin("tasks", experiment.task["name"]).metrics
        main = next(iter(metrics))
        cells: Cells = {}
        budgets, found, tried, failed = {}, dict[str, Any](), dict[str, Any](), dict[str, str]()

        def ran(experiment: Experiment, label: str) -> dict[str, Any]:
            self.bar.set_description(f"{name}, {column.name}, {label}")
            self.bar.update()
            return cell(experiment, where, sites, self.out, self.scale.device)

        def score(experiment: Experiment) -> float | None:
            try:
                return course.validation(ran(experiment, "tuning"), main, metrics[main])
            except Incomplete as error:  # never chosen
                self.bar.write(f"{name}, {column.name}, a value tried is not counted: {error}")
                return None

        for row in self.rows(table, column):
            start = _contender(experiment, row)
            if chosen is None or row.name not in chosen:
                values = grid(row, self.scale, start)
                found[row.name], tried[row.name] = tune(start, values, score, metrics[main])
                self.bar.total += len(tried[row.name]) - num_points(values)
            else:
                found[row.name] = chosen[row.name]
            best = changed(start, found[row.name])
            try:
                runs = [ran(replace(best, seed=seed), row.name) for seed in range(self.scale.num_seeds)]
            except Incomplete as error:
                failed[row.name] = str(error)
                continue
            cells[row.name] = runs
            budgets[row.name] = (best.train.batch_size, best.train.local_epochs + row.extra_epochs)
        result = compare(cells, budgets, metrics, table.rival) if cells else {"rows": {}, "trivial": {}}
        return {
            "data": column.data if folder else f"demo for {column.data}",
            "source": "demo" if demo else "site",
            "sites": sites,
            "seeds": self.scale.num_seeds,
            "num_rounds": experiment.train.num_rounds,
            "local_epochs": experiment.train.local_epochs,
            "rival": table.rival,
            "metrics": dict(metrics),
            "shown": [metric for metric in table.metrics if metric in rivals(metrics)],
            "by_site": table.by_site,
            "note": column.note if self.name != "paper" else "",
            "chosen": found,
            "tried": tried,
            "failed": failed,
            **result,
        }

    def _experiment(self, column: Column, *, demo: bool) -> Experiment:
        """The column's job at this scale; on demo data under one name per task, so that tables share cells."""
        preset = column.preset if self.scale.presets else None
        experiment = Experiment.from_job(self.jobs / column.job, preset=preset)
        task = experiment.task["name"]
        experiment = changed(changed(experiment, self.scale.shrunk.get(task, {})), column.changes)
        if self.name == "cpu":
            experiment = changed(experiment, {"train": column.budget})
        if demo:
            experiment = replace(experiment, job=f"demo_{task}", data=replace(experiment.data, name="synthetic demo"))
        return experiment

    def _folder(self, column: Column) -> Path | None:
        """The real federation, None where demo data stand in."""
        folder = None if self.data is None else self.data / column.data
        names = [] if folder is None else site_names(folder)
        if len(names) == 1:  # a federation that lost its sites is no federation that is lacking
            raise ValueError(f"data must hold at least 2 sites with a dataset.json in {column.data}; got 1")
        return folder if names else None

    def _demo(self, column: Column, task: str) -> Path:
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

    def _caption(self, table: Table, columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
        scale = self.scale
        demo = [one.data for one in table.columns if columns.get(one.name, {}).get("source") == "demo"]
        rates = ", ".join(f"{factor:.2g}" for factor in scale.lr_factors)
        left = [column.name for column in table.columns if column.name not in columns]
        grids = "; ".join(
            f"{row.name} {key} {', '.join(map(str, values))}"
            for row in table.rows
            if row.tuned
            for key, values in row.grid.items()
        )
        lines = [
            table.note,
            *document.reading(scale.num_seeds, table.rival),
            f"Scale {self.name}.",
        ]
        if scale.lr_factors and any(row.tuned for row in table.rows):
            where = "in each column" if table.tuned_apart else "in the first column of a network"
            lines.append(
                f"Chosen on validation, seed 0, {where}: the job's learning rate times {rates} and, while an edge is "
                f"best, up to {BEYOND} steps beyond it{'; then ' + grids if grids else ''}.  (edge): the lowest or "
                "highest value tried is the best."
            )
            if any(not row.tuned for row in table.rows):
                lines.append("Rows of an ablation keep the job's.")
        elif scale.shrunk:
            lines.append("Nothing is tuned at this scale: network, pictures, budget and learning rate are made small.")
        else:
            lines.append("Nothing is tuned here: learning rate and constants are the job's.")
        if self.name == "smoke" and table.smoke_rows:
            left += [row.name for row in table.rows if row.name not in table.smoke_rows]
        if left:
            lines.append(f"Left out here: {'; '.join(left)}.")
        if demo:
            lines.append(
                f"Demo data, whose sites differ in their own way, stand in for {', '.join(sorted(set(demo)))}."
            )
        return [line for line in lines if line]


def _contender(experiment: Experiment, row: Row) -> Experiment:
    epochs = max(1, experiment.train.local_epochs - row.extra_epochs)
    return replace(experiment, method=dict(row.method), train=replace(experiment.train, local_epochs=epochs))
