"""The parts of the documentation that are made from the code.  `hooks.py` puts them into the pages."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields

import typer

import omnifm
from describing import SHARED, Setting, methods, settings_of
from omnifm.cli import app
from omnifm.config import Data, Experiment, SiteConfig, Train
from omnifm.data.refusal import REASONS
from omnifm.model import Capacity
from omnifm.plugins import names, plugin
from omnifm.shipped import jobs as shipped_jobs
from omnifm.update import Update

MANY = 10
"""Number of settings from which on the table of methods does not list them."""


def refusals() -> str:
    """Why an image is refused, and what to do."""
    rows = [[f"`{name}`", reason.meaning, reason.advice] for name, reason in REASONS.items()]
    return table(["reason", "meaning", "what to do"], rows)


def jobs() -> str:
    """The shipped jobs."""
    return table(["job", "task", "what it trains"], [[f"`{job.name}`", job.task, job.about] for job in shipped_jobs()])


def table_of_methods() -> str:
    """One line per method."""
    rows = []
    for method in methods():
        keys = ", ".join(f"`{setting.name}`" for setting in method.own) if len(method.own) < MANY else "see below"
        rows.append([f"[`{method.name}`](#{method.name})", method.summary, method.paper, method.travels, keys])
    return table(["name", "what it does", "paper", "what travels, by default", "keys of its own"], rows)


def shared_settings() -> str:
    """The settings that all baselines have."""
    return table_of_settings(settings_of(Capacity))


def settings_of_methods() -> str:
    """A section per method: its settings."""
    parts = []
    for method in methods():
        parts += [f"### {method.name}", method.about, table_of_settings(method.own)]
        if method.has_shared:
            keys = ", ".join(f"`{name}`" for name in sorted(SHARED))
            parts.append(f"It also has {keys}, the [settings of all baselines](#settings-of-all-baselines).")
    return "\n\n".join(parts)


def settings() -> str:
    """All settings that do not belong to a method."""
    parts = ["## train: rounds, optimisation, who takes part", table_of_settings(settings_of(Train))]
    parts += ["## data", table_of_settings(settings_of(Data))]
    parts += ["## method", "See [Methods](methods.md#every-method-and-its-settings)."]
    parts += ["## task and model", "`task.name` chooses the task.  Each task has its own keys in `task` and `model`."]
    for name in names("tasks"):
        kind = plugin("tasks", name)
        keys = " and ".join(f"`{key}`" for key in kind.required)
        parts += [f"### {name}", f"Every item of `dataset.json` must have {keys}."]
        for section, cls in (("task", kind.Settings), ("model", kind.Model)):
            parts += [f"Keys of `{section}`:", table_of_settings(settings_of(cls))]
    parts += ["## The rest", table_of_settings(s for s in settings_of(Experiment) if s.name in ("job", "seed"))]
    parts += [
        "## A site's own settings",
        "`local/omnifm_site.json` in a site's startup kit.  It is never sent anywhere.",
    ]
    return "\n\n".join([*parts, table_of_settings(settings_of(SiteConfig))])


def fields_of_an_update() -> str:
    """Every field of the message that a site sends."""
    section = inspect.getdoc(Update).split("Attributes:\n")[1]
    rows, found = [], []
    for entry in re.split(r"\n(?=\S)", textwrap.dedent(section)):
        keys, text = entry.split(":", 1)
        found += keys.split(", ")
        rows.append([", ".join(f"`{key}`" for key in keys.split(", ")), " ".join(text.split())])
    assert found == [field.name for field in fields(Update)]
    return table(["field", "what it holds"], rows)


def what_methods_send() -> str:
    """What every method adds to an update."""
    rows = [[f"`{m.name}`", code(m.sends), code(m.says), "yes" if m.seeds else "no"] for m in methods()]
    return table(["method", "tensors (`sends`)", "facts (`says`)", "replies before round 1"], rows)


def front_door() -> str:
    """What `import omnifm` offers, as mkdocstrings documents it."""
    places = {name: f"{module}.{attribute}" for name, (module, attribute) in omnifm._PLACES.items()}
    members = {"Experiment": "from_job, from_json, hash"}
    parts = []
    for name, place in sorted(places.items()):
        chosen = f"\n    options:\n      members: [{members[name]}]" if name in members else ""
        parts.append(f"## {name}\n\n::: {place}{chosen}")
    return "\n\n".join(parts)


def commands() -> str:
    """Every command with its arguments and options."""
    root = typer.main.get_command(app)
    return "\n\n".join(_commands("omnifm", root))


def _commands(path: str, command: object) -> Iterable[str]:
    context = typer.Context(command)
    if hasattr(command, "list_commands"):
        for name in command.list_commands(context):
            yield from _commands(f"{path} {name}", command.get_command(context, name))
        return
    yield f"## {path}"
    yield paragraphs(command.help or "")
    rows = [_parameter(parameter) for parameter in command.params if parameter.name != "help"]
    if rows:
        yield table(["argument or option", "default", "meaning"], rows)


def _parameter(parameter: object) -> Sequence[str]:
    option = parameter.param_type_name == "option"
    name = (
        ", ".join([*parameter.opts, *parameter.secondary_opts]) if option else str(parameter.metavar or parameter.name)
    )
    default = "required" if parameter.required else shown(parameter.default)
    return [f"`{name}`", default, " ".join((getattr(parameter, "help", None) or "").split())]


def table_of_settings(settings: Iterable[Setting]) -> str:
    """Settings as a table; a sentence if there are none."""
    rows = [[f"`{s.name}`", s.kind, s.default, s.text] for s in settings]
    return table(["key", "value", "default", "meaning"], rows) if rows else "It has no settings of its own."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def paragraphs(text: str) -> str:
    """A docstring as paragraphs whose lines are joined."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))


def shown(value: object) -> str:
    """An option's default as it is written on the command line; empty if there is none."""
    if value is None:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def code(names: Iterable[str]) -> str:
    """Names in code font, or a dash."""
    return ", ".join(f"`{name}`" for name in sorted(names)) or "–"


PARTS: dict[str, Callable[[], str]] = {
    "refusals": refusals,
    "jobs": jobs,
    "methods": table_of_methods,
    "method-settings": settings_of_methods,
    "shared-settings": shared_settings,
    "settings": settings,
    "update-fields": fields_of_an_update,
    "sends": what_methods_send,
    "front-door": front_door,
    "commands": commands,
}
