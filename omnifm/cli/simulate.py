"""`omnifm simulate`: train all sites of a federation in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnifm.cli.choices import Changes, Data, Device, Job, Preset, Sites, experiment_of, sites_of

if TYPE_CHECKING:
    from omnifm.config import Experiment
    from omnifm.run_folder import RunFolder

RUNS = Path("runs")
"""Where runs lie whose folder is not named."""


def simulate(
    job: Job,
    data: Data = None,
    sites: Sites = "all",
    preset: Preset = None,
    changes: Changes = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; name it again to go on after an interruption.  Default: runs/JOB."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train a federation on this computer: all sites in one process, one after another.

    Exit code 0: the run is COMPLETE.  Exit code 1: it is not.  The result is
    the same as with NVIDIA FLARE, bit for bit.
    """
    experiment = experiment_of(job, preset, changes)
    names = sites_of(data, sites, experiment.train.min_sites)
    from omnifm.run_folder import new_folder, open_run

    source = "demo" if data is None else data.resolve().name
    folder = open_run(out or new_folder(experiment.job, RUNS), experiment, names, source)
    print(f"{experiment.job}: method {experiment.method['name']}, sites {', '.join(names)}", flush=True)
    if data is None:
        print("No --data, so the sites hold synthetic demo data.", flush=True)
    try:
        status = _run(experiment, data, names, folder, device)
    except KeyboardInterrupt:
        print(_interrupted(folder), file=sys.stderr)
        raise typer.Exit(1) from None
    raise typer.Exit(0 if status == "COMPLETE" else 1)


def _run(experiment: Experiment, data: Path | None, names: list[str], folder: RunFolder, device: str) -> str:
    """Run, print how it ended, and return the status."""
    from rich.console import Console

    from omnifm import simulation
    from omnifm.cli.progress import RunProgress
    from omnifm.federation.closing import closing_lines

    with RunProgress(experiment, names, Console()) as progress:
        summary = simulation.run(
            experiment,
            data,
            names,
            state_dir=folder.state,
            results_dir=folder.results,
            device=device,
            watcher=progress,
        )
    print("\n" + "\n".join(closing_lines(summary, folder.results)))
    for line in _next_steps(folder, list(summary["sites"])):
        print(line)
    return summary["status"]


def _interrupted(folder: RunFolder) -> str:
    """What was interrupted, and how to go on.  References run after the run itself, which is complete then."""
    if (folder.results / "summary.json").is_file():
        return (
            f"Interrupted in the reference.  The run itself is finished, in {folder.path}, but its report lacks the "
            "comparison.  For that, give the same command with a new --out"
        )
    return f"Interrupted.  To go on, give the same command with --out {folder.path}"


def _next_steps(folder: RunFolder, sites: list[str]) -> list[str]:
    """Where the trained models lie, and what to do with them."""
    if not sites:
        return []
    own = folder.state / sites[0]
    return [
        f"Models:  {folder.state}/<site>, one for each site",
        f"Next:    omnifm predict --personal {own} --input IMAGE --output predictions",
    ]
