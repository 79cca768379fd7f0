"""The commands of `omnifm bench`: compare methods, and measure what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omnifm.shipped import job_folder

bench = typer.Typer(no_args_is_help=True, help="Compare methods with each other, and measure time, memory and traffic.")


@bench.command()
def cost(
    out: Annotated[Path | None, typer.Option(help="Folder for the results, as JSON and Markdown.")] = None,
    flare: Annotated[bool, typer.Option(help="Also compare a FLARE round with stock FedAvg; takes minutes.")] = True,
    threads: Annotated[int, typer.Option(min=1, help="Number of CPU threads that torch uses.")] = 1,
    peers: Annotated[
        bool, typer.Option("--peers", help="Compare with a plain loop, pfl, Flower and NVFLARE on the same training.")
    ] = False,
    sites: Annotated[
        int | None,
        typer.Option(min=2, help="Measure the memory of a federation in one process, up to this number of sites."),
    ] = None,
) -> None:
    """Time the parts of OmniFM, each as a ratio to a reference measured in the same run.

    The parts are: training step, tokenizer, low band, bank and FLARE round.
    With --peers or --sites, only what these options name is measured.
    """
    from omnifm.bench.inputs import out_folder

    out = None if out is None else out_folder(out)
    if peers or sites:
        from omnifm.bench.cost import peers as others
        from omnifm.bench.cost import scale

        if peers:
            others.run(out, job=Path("seg_fets"), flare=flare)
        if sites:
            scale.run(sorted({min(10, sites), min(100, sites), sites}), out)
        return
    from omnifm.bench.cost.ratios import run

    run(out, with_flare=flare, threads=threads)


@bench.command()
def reading(
    series: Annotated[Path | None, typer.Option(help="Folder that holds one folder per DICOM series.")] = None,
    site: Annotated[Path | None, typer.Option(help="Folder of a 3-D segmentation site, with dataset.json.")] = None,
) -> None:
    """Compare the time of our image reading and loading with MONAI's on the same files."""
    from omnifm.bench.cost.reading import run

    run(series, site)


@bench.command()
def spectra(
    data: Annotated[Path, typer.Option(help="Federation folder: one <site>/dataset.json per site.")],
    out: Annotated[Path, typer.Option(help="Folder for spectra.json, spectra.md and spectra.html.")],
    limit: Annotated[int, typer.Option(min=2, help="Largest number of training images used per site.")] = 40,
    keep: Annotated[float, typer.Option(help="Radius of the low band, as a fraction of the Nyquist frequency.")] = 0.25,
) -> None:
    """Measure whether modalities are more alike in the low frequency band, as figure 4 of the paper claims."""
    from omnifm.bench.studies.spectra import run

    run(data, out, limit=limit, keep=keep)
    print((out / "spectra.md").read_text(), end="")


@bench.command()
def tables(
    out: Annotated[Path, typer.Option(help="Folder for the tables.  Finished cells in it are not run again.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Federation folder: one <site>/dataset.json per site.  With --scale: a folder of such folders."
        ),
    ] = None,
    scale: Annotated[
        str | None, typer.Option(help="Compute the papers' tables at this scale: smoke, cpu or paper.")
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="With --scale: only this table; may be repeated.  Default: all.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="With --table: only this column; may be repeated.  Default: all.")
    ] = None,
    job: Annotated[
        Path,
        typer.Option(
            help="Job to run: a folder or a shipped job's name.  With --scale: the other jobs are looked for beside it."
        ),
    ] = Path("jobs/seg_fets"),
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds.  Default: 3.  Not with --scale.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Number of rounds instead of the job's.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Local epochs per round instead of the job's.")] = None,
    ablations: Annotated[bool, typer.Option(help="Also run OmniFM without each of its parts.")] = True,
    row: Annotated[
        list[str] | None, typer.Option(help="Only this method (one row of the table); may be repeated.  Default: all.")
    ] = None,
) -> None:
    """Compare Local, FedAvg, FedPer, OmniFM and its ablations on one federation, or compute the papers' tables.

    With --scale: tables 1-8 and figure 5 of OmniFM, tables 1-5 of FedSCA, and
    the real federations of docs/evidence.md.  Scale smoke takes minutes, cpu hours, paper
    needs GPUs.  A federation that --data lacks is replaced by demo data.
    Exit code 1 if the arithmetic of the tables is wrong.
    """
    if scale is not None:
        if row or seeds or rounds or epochs or not ablations:
            raise ValueError("row, seeds, rounds, epochs and no-ablations go without --scale, which has its own")
        if column and not table:
            raise ValueError("column needs --table; there is none")
        from omnifm.bench.tables import paper_tables

        names, columns = tuple(table or ()), tuple(column or ())
        findings = paper_tables.run(out, scale, data=data, jobs=job_folder(job).parent, names=names, columns=columns)
        raise _exit(findings)
    if table or column:
        raise ValueError(f"{'table' if table else 'column'} needs --scale; there is none")
    if data is None:
        raise ValueError("data must be given without --scale; there is none")
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
    tables: Annotated[
        list[Path],
        typer.Argument(help="JSON files that `omnifm bench tables` wrote, each of one federation or several."),
    ],
    row: Annotated[str, typer.Option(help="The method (row) to compare.")] = "OmniFM (routed)",
) -> None:
    """Print where one method wins, ties and loses against the best matched baseline of each federation."""
    from omnifm.bench.tables.summary import summary_table as text

    print(text(tables, row), end="")


@bench.command()
def unseen(
    data: Annotated[Path, typer.Option(help="Federation folder: one <site>/dataset.json per site.")],
    out: Annotated[
        Path, typer.Option(help="Folder for unseen.json and unseen.md.  Finished cells in it are not run again.")
    ],
    job: Annotated[Path, typer.Option(help="Job to run: a folder or a shipped job's name.")] = Path("seg_fets"),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    rounds: Annotated[int | None, typer.Option(min=1, help="Number of rounds instead of the job's.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Local epochs per round instead of the job's.")] = None,
    shots: Annotated[
        int,
        typer.Option(min=1, help="Number of cases that train the few-shot head; per class, if the task has classes."),
    ] = 5,
) -> None:
    """Leave out each site in turn, and measure what FedAvg, FedPer and OmniFM give a site that joins later."""
    from omnifm.bench.studies.unseen import run

    run(data, out, job=job, num_seeds=seeds, num_rounds=rounds, num_epochs=epochs, shots=shots)
    print((out / "unseen.md").read_text(), end="")


@bench.command()
def lint(folder: Annotated[Path, typer.Argument(help="Folder that `omnifm bench tables` wrote.")]) -> None:
    """Check the arithmetic of tables that were written before.  Exit code 1 if a number in them is impossible."""
    from omnifm.bench.tables.lint import lint_folder

    raise _exit(lint_folder(folder))


def _exit(findings: list[str]) -> typer.Exit:
    """Print the findings; the exit code is 1 if there is one."""
    from omnifm.report.numbers import counted

    for line in findings:
        print(line)
    print(f"lint: {counted(len(findings), 'finding')}")
    return typer.Exit(1 if findings else 0)
