"""`omnifm plan`: what a run would take from the data of all sites, before anything is trained."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from omnifm.cli.choices import Changes, Data, Job, Preset, Sites, experiment_of, sites_of


def plan(
    job: Job,
    data: Data = None,
    sites: Sites = "all",
    preset: Preset = None,
    changes: Changes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON, as in results/plan.json.")] = False,
) -> None:
    """Check all sites' data and show what would be planned from them: size of voxels, patch, memory.

    Nothing is trained.  To fix a value yourself, use --set, or write it into experiment.json.
    """
    experiment = experiment_of(job, preset, changes)
    names = sites_of(data, sites, 1)
    from rich.console import Console
    from rich.table import Table

    from omnifm import simulation

    rows = simulation.plan(experiment, data, names)
    if as_json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
        return
    table = Table("What", "Planned", "Why", title=f"{experiment.job}: plan from the data of {', '.join(names)}")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
