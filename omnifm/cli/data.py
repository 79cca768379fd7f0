"""The commands that a hospital runs on its own data: check, predict, preflight."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

SiteFile = Annotated[
    Path | None, typer.Option(help="The site's own settings, local/omnifm_site.json in its startup kit.")
]


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

    Images without labels can be used, for predict or to draw masks, unless
    --task or --job names a task that needs labels.

    Reads every case exactly as training does.  Reports the number of cases,
    labels, geometry, duplicates, and why a case was refused.
    """
    from omnifm.config import Experiment
    from omnifm.quality.inspection import check_site, in_words, write_page

    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise ValueError("html must be a file whose name ends in .html; it is not")
    report, pictures = check_site(path, task, site_file, None if job is None else Experiment.from_job(job))
    if html is not None:
        write_page(html, report, pictures)
    print(json.dumps(report, indent=1) if as_json else "\n".join(in_words(report)))
    if report["task"] and not (as_json or task or job):
        print(f"Task guessed from your data: {report['task']}. If it is wrong, use --task.", file=sys.stderr)
    raise typer.Exit(0 if report["usable"] else 1)


def predict(
    personal: Annotated[Path, typer.Option(help="The site's state folder, or the folder of one job in it.")],
    source: Annotated[
        Path,
        typer.Option("--input", help="An image, a folder with one DICOM series or with images, or a dataset.json."),
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
    position, never by name.  For a folder of images, names.txt leads from the
    positions to their names.  A class whose probability is below 0.6 has
    low_confidence; a segmentation has the mean probability of its foreground as
    confidence.  For research only, not for diagnosis.
    """
    from omnifm.data.local_lists import LeftOut, in_lines
    from omnifm.data.writers import LOW_CONFIDENCE
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
    refused = [LeftOut(case["reason"], "", case["message"]) for case in index["cases"] if case["status"] == "refused"]
    print(f"predicted {len(index['cases']) - len(refused)} of {len(index['cases'])} cases")
    if refused:
        print(f"refused {len(refused)}:", *in_lines(refused), sep="\n")
    if unsure := sum(case.get("low_confidence", False) for case in index["cases"]):
        print(f"{unsure} with a low confidence, the best class below {LOW_CONFIDENCE:g}: look at them first")
    raise typer.Exit(1 if refused else 0)


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
    print("something must be put right first: the lines with FAIL" if failed else "this hospital can take part")
    raise typer.Exit(1 if failed else 0)
