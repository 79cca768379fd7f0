"""What the commands that train have in common: the job with its changes, the data, and which sites take part."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from omnifm.config import Experiment

Job = Annotated[str, typer.Argument(help="Name of a shipped job (`omnifm jobs` lists them), or a job folder.")]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder with one folder per site, as `omnifm prepare` writes it.  Default: synthetic demo data."),
]
Sites = Annotated[str, typer.Option(help="Names of the sites, separated by commas, or all.")]
Preset = Annotated[str | None, typer.Option(help="A preset of the job, for example paper.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, for example train.lr=0.001; may be repeated."),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda:N.")]


def experiment_of(job: str, preset: str | None, changes: Sequence[str] | None) -> Experiment:
    """The job's experiment with its preset and changes, after a check of all of its sections.

    Raises:
        ValueError: there is no such job, preset or key, or a value is not allowed.
    """
    from omnifm.config import Experiment
    from omnifm.plugins import load_method, load_task

    chosen = {} if preset is None else {"preset": preset}
    experiment = Experiment.from_job(job, **chosen).changed(parsed(changes or ()))
    load_task(experiment)
    load_method(experiment)
    return experiment


def parsed(changes: Sequence[str]) -> dict[str, Any]:
    """Changes as nested objects.  Values are JSON; a word that is no JSON is a text.

    >>> parsed(["train.lr=0.001", "method.name=fedprox"])
    {'train': {'lr': 0.001}, 'method': {'name': 'fedprox'}}

    Raises:
        ValueError: a change is not KEY=VALUE.
    """
    found: dict[str, Any] = {}
    for change in changes:
        key, sign, value = change.partition("=")
        *sections, name = key.strip().split(".")
        if not sign or not all([*sections, name]):
            raise ValueError(f"--set must be KEY=VALUE, for example train.lr=0.001; got {change!r:.80}")
        inside = found
        for section in sections:
            inside = inside.setdefault(section, {})
            if not isinstance(inside, dict):
                raise ValueError(f"--set {key}: {section} is set to a value already, so it has no keys")
        inside[name] = value_of(value)
    return found


def value_of(text: str) -> object:
    """JSON, or else the text itself.

    >>> value_of("true"), value_of("[1, 2]"), value_of("fedavg")
    (True, [1, 2], 'fedavg')
    """
    try:
        return json.loads(text)
    except ValueError:
        return text


def sites_of(data: Path | None, wanted: str, least: int) -> list[str]:
    """The names of the sites that take part.

    Args:
        wanted: `all`, or names separated by commas.
        least: the job's `train.min_sites`.

    Raises:
        ValueError: the data hold no such site, or there are too few.
    """
    from omnifm.nearest import did_you_mean
    from omnifm.simulation import DEMO_SITES, prepared_sites

    prepared = None if data is None else prepared_sites(data)
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if wanted == "all":
        names = list(DEMO_SITES) if prepared is None else prepared
    for name in names:
        if prepared is not None and name not in prepared:
            raise ValueError(f"sites must be of {', '.join(prepared)}; got {name!r}{did_you_mean(name, prepared)}")
    if len(set(names)) < least:
        raise ValueError(
            f"train.min_sites is {least}, and sites that take part: {len(set(names))}. Prepare another site, or use "
            "--set train.min_sites=1"
        )
    return list(dict.fromkeys(names))
