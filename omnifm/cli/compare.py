"""`omnifm compare`: several methods on the same data, from the same start, with the same budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnifm.cli.choices import Changes, Data, Device, Job, Preset, Sites, experiment_of, parsed, sites_of
from omnifm.cli.simulate import RUNS

if TYPE_CHECKING:
    from omnifm.bench.tables.records import Document


def compare(
    job: Job,
    method: Annotated[
        list[str],
        typer.Option(help="A method, with its settings if they differ: fedprox:mu=0.1.  Give at least two."),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs of each method.")] = 3,
    data: Data = None,
    sites: Sites = "all",
    preset: Preset = None,
    changes: Changes = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the results; finished runs in it are not repeated.  Default: runs/JOB-comparison"),
    ] = None,
    device: Device = "auto",
) -> None:
    """Compare methods: each starts from the same network, with the same splits, rounds and epochs.

    Prints a table, and writes it as a page with the curves.  Exit code 1: a
    run failed, or the methods had unequal budgets.
    """
    from rich.console import Console

    from omnifm.bench.tables import chosen, lint
    from omnifm.cli.progress import RunProgress

    experiment = experiment_of(job, preset, changes)
    names = sites_of(data, sites, experiment.train.min_sites)
    rows = chosen.rows_of(experiment, [section_of(text) for text in method])
    folder = out or RUNS / f"{experiment.job}-comparison"
    console = Console()
    told = chosen.run(
        experiment,
        data,
        names,
        folder,
        rows,
        num_seeds=seeds,
        device=device,
        watch=lambda one, label: RunProgress(one, names, console, label),
    )
    _print_table(told)
    print(f"\nPage:    {folder / 'comparison.html'}\nNumbers: {folder / 'comparison.json'}")
    wrong = lint.lint(told)
    for line in wrong:
        print(f"WARNING: {line}")
    raise typer.Exit(1 if wrong else 0)


def section_of(text: str) -> dict[str, object]:
    """A section `method` from NAME or NAME:KEY=VALUE,KEY=VALUE.

    >>> section_of("fedprox:mu=0.1")
    {'name': 'fedprox', 'mu': 0.1}

    Raises:
        ValueError: it has another form.
    """
    name, _, settings = text.partition(":")
    return {"name": name.strip(), **parsed([part for part in settings.split(",") if part.strip()])}


def _print_table(told: Document) -> None:
    """Scores of the first metric on the test split."""
    from omnifm.bench.tables.page import main_metric, spread, versus
    from omnifm.metrics.defined import mean_of_defined
    from omnifm.report.numbers import counted, number

    column = next(iter(told["columns"].values()))
    metric, rival = main_metric(column), column["rival"]
    better = "higher" if column["metrics"][metric] else "lower"
    print(f"\nTest {metric} ({better} is better), {counted(len(column['sites']), 'site')}, ", end="")
    print(f"{counted(column['seeds'], 'seed')}, mean ± standard deviation over seeds\n")
    heads = ["method", "after local training", "worst site", "as received", f"minus {rival} [95 %]", "each seed"]
    cells = []
    for name, row in column["rows"].items():
        before, after = row[metric]["before"], row[metric]["after"]
        each = "  ".join(number(mean_of_defined(values)) for values in after["values"])
        cells.append([name, spread(after), number(after["worst_site"]), spread(before), versus(after), each])
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(heads))]
    for line in [heads, *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for name, reason in column["failed"].items():
        print(f"{name} failed: {reason}")
    for paragraph in told["caption"]:
        if " is the same as " in paragraph:
            print(f"\nNote: {paragraph}")
