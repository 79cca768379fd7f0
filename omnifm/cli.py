"""The `omnifm` command.  Wrong use and bad input end with one line and exit code 2, never with a traceback.

Each command imports what it needs when it runs, so that `omnifm --help` answers at once.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from omnifm import __version__, shipped
from omnifm.bench.commands import bench
from omnifm.data import importers, redaction


class ImporterCommands(TyperGroup):
    """One command per importer.  An importer is loaded when its command is asked for."""

    def list_commands(self, ctx: object) -> list[str]:
        """Names of the importers."""
        return list(importers.names())

    def get_command(self, ctx: object, cmd_name: str) -> TyperCommand | None:
        """The command of one importer, None if there is no such importer."""
        return importer_command(cmd_name) if cmd_name in importers.names() else None


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="OmniFM: hospitals train one model together on medical images of different modalities and tasks.",
)
prepare = typer.Typer(
    cls=ImporterCommands,
    no_args_is_help=True,
    help="Convert a public data set, or a folder of your own, to one dataset.json per site.",
)
app.add_typer(prepare, name="prepare")
app.add_typer(bench, name="bench")

SiteFile = Annotated[
    Path | None, typer.Option(help="The site's own settings, local/omnifm_site.json in its startup kit.")
]


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


@functools.cache
def importer_command(name: str) -> TyperCommand:
    """An importer's own `prepare` as a command: its signature becomes the arguments and options."""
    module = importers.load(name)
    function = module.prepare
    texts = dict(re.findall(r"^\s+(\w+): (.+)$", inspect.getdoc(function) or "", re.MULTILINE))

    @functools.wraps(function)
    def command(*args: object, **kwargs: object) -> None:
        source, destination = kwargs.get("source"), Path(str(kwargs["destination"]))
        if source is not None and destination.resolve().is_relative_to(Path(str(source)).resolve()):
            raise ValueError("destination must lie outside the source, which is left as it is; it lies inside")
        function(*args, **kwargs)
        print(f"prepared {name}: {_case_counts(destination)} (training/validation/test)")

    signature = inspect.signature(function, eval_str=True)
    parameters = [_described(parameter, texts.get(parameter.name)) for parameter in signature.parameters.values()]
    shown = signature.replace(parameters=parameters, return_annotation=None)
    command.__signature__ = shown  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    one.command(name, help=(module.__doc__ or "").splitlines()[0])(command)
    built = typer.main.get_command(one)
    assert isinstance(built, TyperCommand)
    built.name = name
    return built


def _described(parameter: inspect.Parameter, text: str | None) -> inspect.Parameter:
    """The parameter with its help text, as typer reads it."""
    positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    info = typer.Argument(help=text) if positional else typer.Option(help=text)
    return parameter.replace(annotation=Annotated[parameter.annotation, info])


def _case_counts(folder: Path) -> str:
    splits = ("training", "validation", "test")
    sites = []
    for file in sorted(folder.glob("*/dataset.json")):
        record = json.loads(file.read_text())
        sites.append(f"{file.parent.name} " + "/".join(str(len(record.get(split, []))) for split in splits))
    return ", ".join(sites)


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


@app.command()
def jobs() -> None:
    """List the jobs that come with the package: name, task, and what each one trains.

    Where a command takes a job, it takes one of these names, or the path of a job folder.
    """
    rows = shipped.jobs()
    names, tasks = max(len(row.name) for row in rows), max(len(row.task) for row in rows)
    for row in rows:
        print(f"{row.name:{names}}  {row.task:{tasks}}  {row.about}")


@app.command()
def new(
    job: Annotated[str, typer.Argument(help="Name of a shipped job (`omnifm jobs` lists them), or a job folder.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The new job folder; it must not exist yet.")],
) -> None:
    """Copy a job to a new folder, where you can edit its experiment.json."""
    print(f"edit {shipped.new_job(job, destination)}, then run: nvflare simulator -w ws {destination}")


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="The site's folder, or its dataset.json.")],
    task: Annotated[
        str | None, typer.Option(help="The task that the data are for.  Default: found from the keys of the items.")
    ] = None,
    job: Annotated[
        Path | None, typer.Option(help="Read the data as this job does: a job folder or a shipped job's name.")
    ] = None,
    site_file: SiteFile = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with sample pictures and histograms, for the hospital only.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Check a site's data before training.  Exit code 0: the data can be used.  Exit code 1: they cannot.

    Reads every case exactly as training does.  Reports the number of cases,
    labels, geometry, duplicates, and why a case was refused.
    """
    from omnifm.check.inspection import check_site, in_words, write_page
    from omnifm.config import Experiment

    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise ValueError("html must be a file whose name ends in .html; it is not")
    report, pictures = check_site(path, task, site_file, None if job is None else Experiment.from_job(job))
    if html is not None:
        write_page(html, report, pictures)
    print(json.dumps(report, indent=1) if as_json else "\n".join(in_words(report)))
    if report["task"] and not (as_json or task or job):
        print("the task was found from the items; --task or --job sets it", file=sys.stderr)
    raise typer.Exit(0 if report["usable"] else 1)


@app.command()
def report(
    path: Annotated[Path, typer.Argument(help="A run directory, or its summary.json.")],
) -> None:
    """Write report.html next to a run's summary.json: one page with plots that needs no other file."""
    from omnifm.report.run import report as write

    print(write(path))


@app.command()
def predict(
    personal: Annotated[Path, typer.Option(help="The site's state folder, or the folder of one job in it.")],
    source: Annotated[
        Path, typer.Option("--input", help="An image, a folder with one DICOM series, or a dataset.json.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the predictions; it must be new or empty.")],
    job: Annotated[
        str | None, typer.Option(help="Name of the job whose model is used, if the state folder holds several jobs.")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="Question about the image (visual question answering only).")
    ] = None,
    second: Annotated[Path | None, typer.Option(help="The second image of the pair (image fusion only).")] = None,
    split: Annotated[
        str | None, typer.Option(help="Only this split of dataset.json: training, validation or test.  Default: all.")
    ] = None,
    site_file: SiteFile = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
) -> None:
    """Apply a site's own trained model to new cases.  Exit code 1: some cases were refused.

    Segmentation writes NIfTI on the grid of the input.  For a DICOM series it
    writes a DICOM SEG, which names the patient and the study: keep it in the
    hospital.  For a picture it writes a PNG of class numbers and one to look at.

    Super-resolution and fusion write a PNG for pictures, NIfTI otherwise.

    Classes and answers are in predictions.json, which lists the cases by
    position, never by name.  For research only, not for diagnosis.
    """
    from omnifm.site.predict import predict as run

    index = run(
        personal,
        source,
        output,
        job=job,
        second=second,
        question=question,
        split=split,
        site_file=site_file,
        device=device,
    )
    refused = Counter(case["reason"] for case in index["cases"] if case["status"] == "refused")
    reasons = "".join(f"; {number} refused: {reason}" for reason, number in sorted(refused.items()))
    print(f"predicted {len(index['cases']) - refused.total()} of {len(index['cases'])} cases{reasons}")
    raise typer.Exit(1 if refused else 0)


@app.command()
def preflight(
    kit: Annotated[Path, typer.Option(help="This hospital's startup kit.")],
    job: Annotated[
        Path | None,
        typer.Option(
            help="Also train one batch of this job: a job folder, an experiment.json or a shipped job's name."
        ),
    ] = None,
) -> None:
    """Check this hospital before the first training.  Exit code 0: it can take part.  Exit code 1: something is wrong.

    Checks the software, certificates, policy, the connection to the server,
    the site's settings, its state folder, and every case.
    """
    from omnifm.preflight import preflight as checks

    failed = False
    for check in checks(kit, job):
        print(check.line(), flush=True)
        failed |= check.verdict == "FAIL"
    raise typer.Exit(1 if failed else 0)
