"""Compare methods on one federation: same initial values, splits and budget, several seeds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from tqdm import tqdm

from omnifm.bench.cells import Incomplete, cell, finished, key_of
from omnifm.bench.inputs import federation, job_experiment, out_folder, site_names
from omnifm.bench.tables import document, lint
from omnifm.bench.tables.records import Column, Document, Metrics
from omnifm.bench.tables.scores import RIVAL, Cells, compare
from omnifm.config import Experiment
from omnifm.metrics.rivals import rivals
from omnifm.plugins import plugin
from omnifm.records import Summary
from omnifm.simulation import Watcher

DEMO_WARNING = "Synthetic demo data: what is better here need not be better on real data."
MAIN: Mapping[str, dict[str, object]] = {
    "Local": {"name": "local"},
    "FedAvg": {"name": "fedavg"},
    "FedPer (paper)": {"name": "fedper", "capacity": "paper"},
    "Local (matched)": {"name": "local", "capacity": "matched"},
    "FedAvg (matched)": {"name": "fedavg", "capacity": "matched"},
    "FedPer (matched)": {"name": "fedper", "capacity": "matched"},
    "FedAvg (matched, soup)": {"name": "fedavg", "capacity": "matched", "soup": True},
    "OmniFM": {"name": "omnifm"},
    "OmniFM (routed)": {"name": "omnifm", "reach": 0.3, "share": "all"},
    "OmniFM (routed, soup)": {"name": "omnifm", "reach": 0.3, "share": "all", "soup": True},
}
"""Row -> its section `method` of experiment.json."""
ABLATIONS: Mapping[str, dict[str, object]] = {
    "OmniFM w/o GSKR": {"name": "omnifm", "retrieval": "mean"},
    "OmniFM w/o ECA": {"name": "omnifm", "fusion": "film"},
    "OmniFM w/o PSP": {"name": "omnifm", "prompting": "linear"},
    "OmniFM w/o SPAlign": {"name": "omnifm", "align_weight": 0.0},
    "OmniFM w/o local key": {"name": "omnifm", "local_key": False},
}
"""OmniFM without each of its parts."""
CONTENDERS = {**MAIN, **ABLATIONS}


def run(
    data: Path,
    out: Path,
    *,
    job: Path,
    num_seeds: int,
    num_rounds: int | None = None,
    num_epochs: int | None = None,
    ablations: bool = True,
    rows: Collection[str] = (),
) -> list[str]:
    """Run what is missing, then write table.json, table.md and table.html.

    Args:
        data: federation folder, one `<site>/dataset.json` per site.
        out: folder of the results; runs that it holds are not repeated.
        job: job folder whose experiment.json is run with each method.
        num_seeds: seeds 0..num_seeds-1; the splits do not depend on them where dataset.json gives all three.
        num_rounds, num_epochs: rounds, and local epochs per round, in place of the job's.
        ablations: whether OmniFM without each of its parts is run too.
        rows: the only contenders to run; empty runs all.  Others stay in the table if `out` holds every seed of them.

    Returns:
        The lint's findings, a line each.

    Raises:
        ValueError: a folder or the configuration is unusable, or no contender's run was complete.
    """
    experiment, data, out = job_experiment(job, num_rounds, num_epochs), federation(data), out_folder(out)
    if foreign := sorted(set(rows) - set(CONTENDERS)):
        raise ValueError(f"row must be one of {', '.join(CONTENDERS)}; got {', '.join(map(repr, foreign))}")
    comparison = Comparison(experiment, data, site_names(data, 2), out, num_seeds)
    groups = [[name for name in group if not rows or name in rows] for group in (MAIN, ABLATIONS if ablations else {})]
    comparison.take_earlier(name for name in CONTENDERS if not any(name in group for group in groups))
    told: Document | None = None
    with tqdm(total=num_seeds * sum(map(len, groups)), unit="run") as bar:
        for group in groups:
            for seed in range(num_seeds) if group else ():
                for name in group:
                    bar.set_description(f"{name}, seed {seed}")
                    comparison.run(name, seed)
                    bar.update()
                told = comparison.document()
                document.write(out, told)
    return lint.lint(told or {})


class Comparison:
    """The runs of one comparison.

    Args:
        data: federation folder.
        sites: sorted names of the sites that take part.
        out: folder of the results; runs that it holds are not repeated.
        num_seeds: every contender runs with the seeds 0..num_seeds-1.
        contenders: row -> its section `method` of experiment.json.
        rival: the row that the others are compared with.
        device: auto, cpu or cuda:N.
    """

    def __init__(
        self,
        experiment: Experiment,
        data: Path,
        sites: list[str],
        out: Path,
        num_seeds: int,
        *,
        contenders: Mapping[str, dict[str, object]] = CONTENDERS,
        rival: str = RIVAL,
        device: str = "cpu",
    ) -> None:
        self.experiment, self.data, self.sites, self.out = experiment, data, sites, out
        self.num_seeds, self.contenders, self.rival, self.device = num_seeds, contenders, rival, device
        self.metrics: Metrics = plugin("tasks", experiment.task["name"]).metrics
        self.cells: Cells = {}
        self.failed: dict[str, str] = {}

    def take_earlier(self, names: Iterable[str]) -> None:
        """Take the runs of contenders that `out` holds every seed of."""
        for name in names:
            runs = self._finished(replace(self.experiment, method=self.contenders[name]))
            if len(runs) == self.num_seeds:
                self.cells[name] = runs

    def _finished(self, experiment: Experiment) -> list[Summary]:
        """A contender's runs that `out` holds."""
        found = []
        for seed in range(self.num_seeds):
            key = key_of(replace(experiment, seed=seed), self.data, self.sites)
            run = finished(self.out, key, self.data, self.sites)
            if run is not None:
                found.append(cast(Summary, run))
        return found

    def run(self, name: str, seed: int, watcher: Watcher | None = None) -> None:
        """Run a contender, unless one of its seeds failed before."""
        if name in self.failed:
            return
        experiment = replace(self.experiment, method=self.contenders[name], seed=seed)
        try:
            self.cells.setdefault(name, []).append(
                cell(experiment, self.data, self.sites, self.out, self.device, watcher)
            )
        except Incomplete as error:  # the other contenders go on
            self.failed[name] = str(error)

    def document(self) -> Document:
        """The table of the contenders that have run as many seeds as any.

        Raises:
            ValueError: no contender's run was complete.
        """
        cells = {name: self.cells[name] for name in self.contenders if name in self.cells and name not in self.failed}
        if not cells:
            raise ValueError(next(iter(self.failed.values())))
        num_seeds = max(map(len, cells.values()))
        cells = {name: runs for name, runs in cells.items() if len(runs) == num_seeds}
        rival = self.rival if self.rival in {*cells, *self.failed} else None
        column = self._column(cells, num_seeds, rival)
        caption = [
            "No hyperparameter is tuned here: learning rate and constants are the job's.",
            *document.reading(num_seeds, rival),
        ]
        if column["source"] == "demo":
            caption.append(DEMO_WARNING)
        name = self.data.name
        title = f"{self.experiment.job} on {name}"
        return {"table": "table", "title": title, "scale": None, "caption": caption, "columns": {name: column}}

    def _column(self, cells: Cells, num_seeds: int, rival: str | None) -> Column:
        train = self.experiment.train
        budgets = dict.fromkeys(cells, (train.batch_size, train.local_epochs))
        compared = compare(cells, budgets, self.metrics, self.rival)
        return {
            "data": self.data.name,
            "source": next(iter(cells.values()))[0]["data_source"],
            "sites": self.sites,
            "seeds": num_seeds,
            "num_rounds": train.num_rounds,
            "local_epochs": train.local_epochs,
            "rival": rival,
            "metrics": dict(self.metrics),
            "shown": [*rivals(self.metrics)][:2],
            "failed": dict(self.failed),
            "rows": compared["rows"],
            "trivial": compared["trivial"],
        }
