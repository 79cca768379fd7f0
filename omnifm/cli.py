"""The `omnifm` command.  Wrong use and bad input cost one line and exit code 2, never a traceback."""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from omnifm.data import importers, redaction
from omnifm.report.numbers import counted

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="OmniFM: federated learning for medical images that differ in modality and task.",
)
prepare = typer.Typer(no_args_is_help=True, help="Turn a data set's own layout into one dataset.json per site.")
bench = typer.Typer(no_args_is_help=True, help="Measure methods against each other, and what the method costs.")
app.add_typer(prepare, name="prepare")
app.add_typer(bench, name="bench")


def main() -> None:
    """Entry point of the console script."""
    redaction.guard()
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"omnifm: {_line(error)}", file=sys.stderr)
        sys.exit(2)


def _line(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror or type(error).__name__}"
    return (redaction.words_of(error) or f"failed: {type(error).__name__}").splitlines()[0]


def _importer(name: str) -> Callable[..., Any]:
    """An importer's own `prepare` as a command: its signature becomes the arguments and options."""
    function = importers.load(name).prepare
    said = dict(re.findall(r"^\s+(\w+): (.+)$", inspect.getdoc(function) or "", re.MULTILINE))

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        source, destination = kwargs.get("source"), Path(kwargs["destination"])
        if source is not None and destination.resolve().is_relative_to(Path(source).resolve()):
            raise ValueError("destination must lie outside the source, which is left as it is; it lies inside")
        function(*args, **kwargs)
        print(f"prepared {name}: {_counts(Path(kwargs['destination']))} (training/validation/test)")

    signature = inspect.signature(function, eval_str=True)
    parameters = [
        p.replace(annotation=Annotated[p.annotation, _shown(p, said.get(p.name))])
        for p in signature.parameters.values()
    ]
    command.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _shown(parameter: inspect.Parameter, text: str | None) -> Any:
    positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    return typer.Argument(help=text) if positional else typer.Option(help=text)


def _counts(folder: Path) -> str:
    rows = [(file.parent.name, json.loads(file.read_text())) for file in sorted(folder.glob("*/dataset.json"))]
    splits = ("training", "validation", "test")
    return ", ".join(f"{name} {'/'.join(str(len(d.get(s, []))) for s in splits)}" for name, d in rows)


for _name in importers.names():
    prepare.command(_name, help=(importers.load(_name).__doc__ or "").splitlines()[0])(_importer(_name))


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="The site's folder, or its dataset.json.")],
    task: Annotated[str | None, typer.Option(help="What the data are for; by default the items tell.")] = None,
    job: Annotated[Path | None, typer.Option(help="A job folder, to read as that job will.")] = None,
    site_file: Annotated[Path | None, typer.Option(help="local/omnifm_site.json, for what it allows.")] = None,
    html: Annotated[Path | None, typer.Option(help="Page with sample pictures and histograms, for the staff.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Check a site's data before training: exit code 0 if they can be used, 1 if not.

    Reads every case as training does: counts, labels, geometry, duplicates, refusals with reasons.
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
        print("most items told the task; --task or --job names it", file=sys.stderr)
    raise typer.Exit(0 if report["usable"] else 1)


@app.command()
def report(
    path: Annotated[Path, typer.Argument(help="A run directory, or its summary.json.")],
) -> None:
    """Write report.html, one self-contained page with plots, beside a run's summary.json."""
    from omnifm.report.run import report as write

    print(write(path))


@app.command()
def predict(
    personal: Annotated[Path, typer.Option(help="The site's state folder, or one job's folder in it.")],
    source: Annotated[
        Path, typer.Option("--input", help="An image, a folder holding one DICOM series, or dataset.json.")
    ],
    output: Annotated[Path, typer.Option(help="A new or empty folder for the predictions.")],
    job: Annotated[str | None, typer.Option(help="Whose model, where the state folder holds several jobs.")] = None,
    question: Annotated[str | None, typer.Option(help="Question about the image (visual question answering).")] = None,
    second: Annotated[Path | None, typer.Option(help="The other image of the pair (image fusion).")] = None,
    split: Annotated[str | None, typer.Option(help="One list of dataset.json; by default every case in it.")] = None,
    site_file: Annotated[Path | None, typer.Option(help="local/omnifm_site.json, for what it allows.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
) -> None:
    """Use a site's own trained model on new cases: exit code 0 if all could be predicted, 1 if some were refused.

    Classes per voxel: NIfTI on the input's own grid; of a DICOM series a DICOM
    SEG, with its patient and study: it stays in the hospital; of a picture a PNG
    of class numbers and one to look at.

    Enlarged and fused images: PNG if in colour or 8-bit pictures, else NIfTI.

    Classes and answers stand in predictions.json, which lists every case by its
    position, never by name.  For research: no diagnosis.
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
    job: Annotated[Path | None, typer.Option(help="Sealed job or experiment.json; one batch of it is trained.")] = None,
) -> None:
    """Check this hospital before day one: exit code 0 if it can take part, 1 if something must be put right.

    Looks at software, certificates, policy, the way to the server, the site's file, its state folder and every case.
    """
    from omnifm.preflight import preflight as checks

    failed = False
    for check in checks(kit, job):
        print(check.line(), flush=True)
        failed |= check.verdict == "FAIL"
    raise typer.Exit(1 if failed else 0)


@bench.command()
def cost(
    out: Annotated[Path | None, typer.Option(help="Folder for what is measured, as JSON and Markdown.")] = None,
    flare: Annotated[bool, typer.Option(help="Also time a FLARE round against stock FedAvg (minutes).")] = True,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    peers: Annotated[bool, typer.Option("--peers", help="A plain loop, pfl, Flower and NVFLARE on one work.")] = False,
    sites: Annotated[int | None, typer.Option(min=2, help="Memory of our in-process driver up to so many.")] = None,
) -> None:
    """Time the method's parts as ratios in one run: training step, tokenizer, low band, bank, FLARE round.

    --peers and --sites measure what they say instead.
    """
    from omnifm.bench.inputs import out_folder

    out = None if out is None else out_folder(out)
    if peers or sites:
        from omnifm.bench.cost import peers as others
        from omnifm.bench.cost import scale

        if peers:
            others.run(out, job=Path("jobs/seg_fets"), flare=flare)
        if sites:
            scale.run(sorted({min(10, sites), min(100, sites), sites}), out)
        return
    from omnifm.bench.cost.ratios import run

    run(out, with_flare=flare, threads=threads)


@bench.command()
def reading(
    series: Annotated[Path | None, typer.Option(help="Folder of folders, one DICOM series each.")] = None,
    site: Annotated[Path | None, typer.Option(help="A 3-D segmentation site with dataset.json.")] = None,
) -> None:
    """Time our reading and loading against MONAI's own on the same files, as ratios in one run."""
    from omnifm.bench.cost.reading import run

    run(series, site)


@bench.command()
def spectra(
    data: Annotated[Path, typer.Option(help="Federation folder: one <site>/dataset.json per site.")],
    out: Annotated[Path, typer.Option(help="Folder for spectra.json, spectra.md and spectra.html.")],
    limit: Annotated[int, typer.Option(min=2, help="Most training images of a site.")] = 40,
    keep: Annotated[float, typer.Option(help="Radius of the low band as a share of Nyquist.")] = 0.25,
) -> None:
    """Measure the paper's motivating inequality: are modalities nearer to each other in the low band (figure 4)?"""
    from omnifm.bench.studies.spectra import run

    run(data, out, limit=limit, keep=keep)
    print((out / "spectra.md").read_text(), end="")


@bench.command()
def tables(
    out: Annotated[Path, typer.Option(help="Folder for the tables; finished cells in it are not run again.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Federation folder: one <site>/dataset.json per site.  With --scale a folder of them."),
    ] = None,
    scale: Annotated[str | None, typer.Option(help="The papers' tables: smoke, cpu or paper.")] = None,
    table: Annotated[list[str] | None, typer.Option(help="With --scale: one table, repeatable; else all.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="With --table: one column, repeatable; else all.")] = None,
    job: Annotated[Path, typer.Option(help="Job compared; with --scale the others lie beside it.")] = Path(
        "jobs/seg_fets"
    ),
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds, else 3; a scale has its own.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds, in place of the job's.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Local epochs per round, in place of the job's.")] = None,
    ablations: Annotated[bool, typer.Option(help="OmniFM without each of its parts, too.")] = True,
    row: Annotated[list[str] | None, typer.Option(help="One contender, repeatable; else all.")] = None,
) -> None:
    """Compare methods: Local, FedAvg, FedPer, OmniFM and its ablations on one federation, or the papers' tables.

    With --scale: tables 1-8 and figure 5 of OmniFM, 1-5 of FedSCA, and the
    README's real federations; smoke in minutes, cpu in hours, paper on GPUs.
    Demo data stand in for federations that --data lacks.  Exit code 1 if the
    tables' own arithmetic is wrong.
    """
    if scale is not None:
        if row or seeds or rounds or epochs or not ablations:
            raise ValueError("row, seeds, rounds, epochs and no-ablations go without --scale, which has its own")
        if column and not table:
            raise ValueError("column needs --table; there is none")
        from omnifm.bench.tables import paper_tables

        chosen = {"names": tuple(table or ()), "columns": tuple(column or ())}
        raise _exit(paper_tables.run(out, scale, data=data, jobs=job.parent, **chosen))
    if table or column or data is None:
        asked = "table needs" if table else "column needs" if column else "data must be given without"
        raise ValueError(f"{asked} --scale; there is none")
    from omnifm.bench.tables.one_federation import run

    findings = run(
        data,
        out,
        job=job,
        num_seeds=seeds or 3,
        num_rounds=rounds,
        num_epochs=epochs,
        ablations=ablations,
        rows=row or (),
    )
    raise _exit(findings)


@bench.command()
def summary(
    tables: Annotated[list[Path], typer.Argument(help="JSON of `bench tables`, each of one federation or several.")],
    row: Annotated[str, typer.Option(help="The contender.")] = "OmniFM (routed)",
) -> None:
    """Print where a contender wins, ties and loses against the best matched baseline of each federation."""
    from omnifm.bench.tables.summary import summary_table as text

    print(text(tables, row), end="")


@bench.command()
def unseen(
    data: Annotated[Path, typer.Option(help="Federation folder: one <site>/dataset.json per site.")],
    out: Annotated[Path, typer.Option(help="Folder for unseen.json and unseen.md; finished cells are not run again.")],
    job: Annotated[Path, typer.Option(help="Job folder whose experiment.json is run.")] = Path("jobs/seg_fets"),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds, in place of the job's.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Local epochs per round, in place of the job's.")] = None,
    shots: Annotated[int, typer.Option(min=1, help="Cases of the few-shot head, per class where there are any.")] = 5,
) -> None:
    """Leave each site out in turn: what FedAvg, FedPer (matched) and OmniFM give a hospital that joins afterwards."""
    from omnifm.bench.studies.unseen import run

    run(data, out, job=job, num_seeds=seeds, num_rounds=rounds, num_epochs=epochs, shots=shots)
    print((out / "unseen.md").read_text(), end="")


@bench.command()
def lint(folder: Annotated[Path, typer.Argument(help="Folder that `bench tables` wrote.")]) -> None:
    """Work out the tables' own arithmetic again: exit code 1 if something in them cannot be true."""
    from omnifm.bench.tables.lint import lint_folder

    raise _exit(lint_folder(folder))


def _exit(findings: list[str]) -> typer.Exit:
    """Print what the lint found; the exit that says whether it found anything."""
    for line in findings:
        print(line)
    print(f"lint: {counted(len(findings), 'finding')}")
    return typer.Exit(1 if findings else 0)
