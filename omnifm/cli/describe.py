"""The commands that say what there is to choose from: methods, settings."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from omnifm.describe import MethodRecord, Setting

WIDTH = 100
"""Largest width of a line of text."""


def methods(
    name: Annotated[str | None, typer.Argument(help="Everything about this method.  Default: a list of all.")] = None,
) -> None:
    """List the methods, or explain one: its paper, what travels, when to choose it, and its settings."""
    from omnifm import describe

    if name is not None:
        _explain(describe.method(name))
        return
    for method in describe.methods():
        print(f"{method.name:10}  {method.title}: {method.summary}")
        print(f"{'':10}  {_paper(method)}.  Travels: {method.travels}")
    print("\nomnifm methods NAME says more.  Try one: omnifm simulate JOB --set method.name=NAME")
    print("Compare several: omnifm compare JOB --method fedavg --method NAME")


def settings(
    section: Annotated[
        str | None, typer.Argument(help="train, data, site, a task's name or a method's name.  Default: list them.")
    ] = None,
) -> None:
    """Explain the settings of a section: default, range, and what each one does."""
    from omnifm import describe
    from omnifm.plugins import names

    if section is not None:
        _print_settings(describe.settings(section))
        return
    print("omnifm settings SECTION explains the keys of experiment.json.  SECTION is one of:")
    print("  train    rounds, local training, who takes part")
    print("  data     how cases are kept in memory")
    print(f"  a task   keys of `task` and `model`: {', '.join(names('tasks'))}")
    print(fill(f"  a method keys of `method`: {', '.join(names('methods'))}", WIDTH, subsequent_indent=" " * 11))
    print("  site     keys of a hospital's own local/omnifm_site.json")
    print("Besides these sections, experiment.json holds:\n")
    _print_settings(describe.top_level())


def _explain(method: MethodRecord) -> None:
    print(f"{method.title}: {method.summary}\n")
    print(f"Paper:   {_paper(method)}" + (f", https://arxiv.org/abs/{method.arxiv}" if method.arxiv else ""))
    print(f"Travels: {method.travels}")
    if extra := sorted(method.sends | method.says):
        print(f"         Besides weights, a site sends: {', '.join(extra)}")
    print(f"\n{fill(method.when, WIDTH)}\n\n{method.about}\n")
    _print_settings(method.settings)


def _paper(method: MethodRecord) -> str:
    return f"{method.paper}, arXiv {method.arxiv}" if method.arxiv else method.paper.capitalize()


def _print_settings(settings: Iterable[Setting]) -> None:
    for setting in settings:
        default = "required" if setting.default is None else f"default {setting.default}"
        print(f"{setting.key}  ({setting.kind}; {default})")
        if setting.text:
            print(fill(setting.text, WIDTH, initial_indent="    ", subsequent_indent="    "))
