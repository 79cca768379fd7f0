"""The commands about jobs and their runs: jobs, new, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omnifm import shipped


def jobs() -> None:
    """List the jobs that come with the package: name, task, and what each one trains.

    Where a command takes a job, it takes one of these names, or the path of a job folder.
    """
    rows = shipped.jobs()
    names, tasks = max(len(row.name) for row in rows), max(len(row.task) for row in rows)
    for row in rows:
        print(f"{row.name:{names}}  {row.task:{tasks}}  {row.about}")


def new(
    job: Annotated[str, typer.Argument(help="Name of a shipped job (`omnifm jobs` lists them), or a job folder.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The new job folder; it must not exist yet.")],
) -> None:
    """Copy a job to a new folder, where you can edit its experiment.json."""
    print(f"edit {shipped.new_job(job, destination)}, then run: nvflare simulator -w ws {destination}")


def report(
    path: Annotated[Path, typer.Argument(help="A run directory, or its summary.json.")],
) -> None:
    """Write report.html next to a run's summary.json: one page with plots that needs no other file."""
    from omnifm.report.run import report as write

    print(write(path))
