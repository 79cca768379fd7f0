"""The `omnifm` command.  Wrong use and bad input end with one line and exit code 2, never with a traceback.

Each command imports what it needs when it runs, so that `omnifm --help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from omnifm import __version__
from omnifm.bench.commands import bench
from omnifm.cli import data, describe, jobs
from omnifm.cli.compare import compare
from omnifm.cli.plan import plan
from omnifm.cli.prepare import prepare
from omnifm.cli.simulate import simulate
from omnifm.data import redaction

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="OmniFM: hospitals train one model together on medical images of different modalities and tasks.",
)
app.add_typer(prepare, name="prepare")
for command in (
    simulate,
    compare,
    plan,
    jobs.jobs,
    jobs.new,
    describe.methods,
    describe.settings,
    data.check,
    jobs.report,
    data.predict,
    data.preflight,
):
    app.command()(command)
app.add_typer(bench, name="bench")


def main() -> None:
    """Entry point of the console script."""
    redaction.guard()
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"omnifm: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror or type(error).__name__}"
    return (redaction.words_of(error) or f"failed: {type(error).__name__}").splitlines()[0]


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(__version__)
        raise typer.Exit
    return wanted


@app.callback()
def version(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that come before the command."""
