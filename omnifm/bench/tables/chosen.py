"""Compare the methods that somebody names on one federation: same initial values, splits and budget, several seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from omnifm.bench.inputs import federation, out_folder
from omnifm.bench.tables import document
from omnifm.bench.tables.one_federation import DEMO_WARNING, Comparison
from omnifm.bench.tables.records import Document
from omnifm.bench.tables.scores import Cells
from omnifm.config import Experiment
from omnifm.data.demo import demo_site
from omnifm.plugins import load_method
from omnifm.records import Summary
from omnifm.simulation import Watcher

DEMO = "synthetic demo data"
Watch = Callable[[Experiment, str], AbstractContextManager[Watcher]]
"""Given the experiment of a run and its name, opens what shows its progress."""


def rows_of(experiment: Experiment, methods: Sequence[Mapping[str, object]]) -> dict[str, dict[str, object]]:
    """Row -> its section `method`.  The job's own settings hold for the job's own method, else the defaults.

    Args:
        methods: sections `method`, each with `name` and the settings that differ.

    Raises:
        ValueError: there are fewer than two methods, one is given twice, or a name or a setting is unknown.
    """
    rows: dict[str, dict[str, object]] = {}
    for section in methods:
        contender = experiment.changed({"method": section})
        load_method(contender)
        name = _row_name(section)
        if name in rows:
            raise ValueError(
                f"each method must be given once; {name!r} is given twice. To repeat its runs, use --seeds"
            )
        rows[name] = contender.method
    if len(rows) < 2:
        raise ValueError(
            f"a comparison needs at least two methods; got {', '.join(rows) or 'none'}. Add another one, for example "
            f"--method {'local' if 'Local' not in rows else 'fedavg'}; `omnifm methods` lists them"
        )
    return rows


def _row_name(section: Mapping[str, object]) -> str:
    """The method's name with its settings."""
    settings = ", ".join(f"{key}={value}" for key, value in section.items() if key != "name")
    name = "Local" if section["name"] == "local" else str(section["name"])  # "Local" is the name that tables look for
    return f"{name} ({settings})" if settings else name


def run(
    experiment: Experiment,
    data: Path | None,
    sites: Sequence[str],
    out: Path,
    rows: Mapping[str, dict[str, object]],
    *,
    num_seeds: int,
    device: str = "cpu",
    watch: Watch,
) -> Document:
    """Run what is missing, then write comparison.json, comparison.md and comparison.html.

    Args:
        data: federation folder; None is the synthetic demo data.
        out: folder of the results; runs that it holds are not repeated.
        rows: from `rows_of`; the first is what the others are compared with.

    Raises:
        ValueError: a folder is unusable, or no run was complete.
    """
    where = demo_folder(experiment, sites) if data is None else federation(data)
    rival = next(iter(rows))
    experiment = replace(experiment, reference=[])  # training alone is a row of its own where it is wanted
    comparison = Comparison(
        experiment, where, sorted(sites), out_folder(out), num_seeds, contenders=rows, rival=rival, device=device
    )
    for seed in range(num_seeds):
        for name, section in rows.items():
            with watch(replace(experiment, method=section, seed=seed), f"{name}, seed {seed}: ") as watcher:
                comparison.run(name, seed, watcher)
    told = comparison.document()
    told["table"] = "comparison"
    told["caption"] = [*_sameness(comparison.cells), *told["caption"]]
    if data is None:
        told["title"] = f"{experiment.job} on {DEMO}"
        say_demo(told)
    document.write(out, told)
    return told


def say_demo(told: Document) -> None:
    """Call the data of the only column synthetic: the runs read them from a folder, as they read a hospital's."""
    (column,) = told["columns"].values()
    column["data"], column["source"] = DEMO, "demo"
    told["columns"] = {DEMO: column}
    told["caption"] = [*told["caption"], DEMO_WARNING]


def demo_folder(experiment: Experiment, sites: Sequence[str]) -> Path:
    """The folder that holds the demo sites of the experiment's task."""
    folders = [demo_site(experiment.task["name"], site) for site in sites]
    return folders[0].parent


def twins(cells: Cells) -> dict[str, str]:
    """Row -> an earlier row whose runs gave exactly the same models and scores."""
    found: dict[str, str] = {}
    for name, runs in cells.items():
        results = _results(runs)
        same = next((other for other in cells if _results(cells[other]) == results), name)
        if same != name:
            found[name] = same
    return found


def _results(runs: Sequence[Summary]) -> list[object]:
    scores = [{site: record["metrics"] for site, record in run["sites"].items()} for run in runs]
    return [(run["final_hash"], score) for run, score in zip(runs, scores, strict=True)]


def _sameness(cells: Cells) -> list[str]:
    return [
        f"{name} is the same as {other} in this model: all seeds end with the same weights and scores. It changes "
        "something that this model does not have."
        for name, other in twins(cells).items()
    ]
