"""Tune and run the rows of one column of a paper's table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from omnifm.bench.cells import Incomplete, cell
from omnifm.bench.inputs import site_names
from omnifm.bench.tables import course
from omnifm.bench.tables.comparison import Row, Scale
from omnifm.bench.tables.records import Changes, Metrics, Point, Rows
from omnifm.bench.tables.scores import Cells, compare
from omnifm.bench.tables.tuning import grid, num_points, tune
from omnifm.config import Experiment
from omnifm.plugins import plugin
from omnifm.records import Summary


class ColumnRuns:
    """The runs of one column.

    Args:
        experiment: the column's experiment; rows put their method into it.
        where: the federation's folder.
        out: folder of the results; runs that it holds are not repeated.
        bar: counts runs.
        label: table and column, for the bar.
    """

    def __init__(self, experiment: Experiment, where: Path, out: Path, scale: Scale, bar: tqdm, label: str) -> None:
        self.experiment, self.where, self.out, self.scale = experiment, where, out, scale
        self.bar, self.label = bar, label
        self.sites = site_names(where)
        self.metrics: Metrics = plugin("tasks", experiment.task["name"]).metrics
        self.main = next(iter(self.metrics))
        self.cells: Cells = {}
        self.budgets: dict[str, tuple[int, int]] = {}
        self.chosen: dict[str, Changes] = {}
        self.tried: dict[str, list[Point]] = {}
        self.failed: dict[str, str] = {}

    def add(self, row: Row, chosen: Changes | None) -> None:
        """Run every seed of a row, with what was chosen for it; None tunes it first."""
        start = _contender(self.experiment, row)
        if chosen is None:
            values = grid(row, self.scale, start)
            chosen, self.tried[row.name] = tune(start, values, self._validation, self.metrics[self.main])
            self.bar.total += len(self.tried[row.name]) - num_points(values)
        self.chosen[row.name] = chosen
        best = start.changed(chosen)
        try:
            runs = [self._run(replace(best, seed=seed), row.name) for seed in range(self.scale.num_seeds)]
        except Incomplete as error:
            self.failed[row.name] = str(error)
            return
        self.cells[row.name] = runs
        self.budgets[row.name] = (best.train.batch_size, best.train.local_epochs + row.extra_epochs)

    def compared(self, rival: str) -> Rows:
        """The rows of the column."""
        if not self.cells:
            return {"rows": {}, "trivial": {}}
        return compare(self.cells, self.budgets, self.metrics, rival)

    def _run(self, experiment: Experiment, what: str) -> Summary:
        self.bar.set_description(f"{self.label}, {what}")
        self.bar.update()
        return cell(experiment, self.where, self.sites, self.out, self.scale.device)

    def _validation(self, experiment: Experiment) -> float | None:
        """The validation score of one value that tuning tries; None if the run failed, so that it is never chosen."""
        try:
            return course.validation(self._run(experiment, "tuning"), self.main, self.metrics[self.main])
        except Incomplete as error:
            self.bar.write(f"{self.label}, a value of tuning is left out: {error}")
            return None


def _contender(experiment: Experiment, row: Row) -> Experiment:
    """The experiment with a row's method; passes that the method adds are subtracted from the local epochs."""
    epochs = max(1, experiment.train.local_epochs - row.extra_epochs)
    return replace(experiment, method=dict(row.method), train=replace(experiment.train, local_epochs=epochs))
