"""`omnifm prepare`: one command per importer."""

from __future__ import annotations

import functools
import inspect
import json
import re
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from omnifm.data import importers


class ImporterCommands(TyperGroup):
    """One command per importer.  An importer is loaded when its command is asked for."""

    def list_commands(self, ctx: object) -> list[str]:
        """Names of the importers."""
        return list(importers.names())

    def get_command(self, ctx: object, cmd_name: str) -> TyperCommand | None:
        """The command of one importer, None if there is no such importer."""
        return importer_command(cmd_name) if cmd_name in importers.names() else None


prepare = typer.Typer(
    cls=ImporterCommands,
    no_args_is_help=True,
    help="Convert a public data set, or a folder of your own, to one dataset.json per site.",
)


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
