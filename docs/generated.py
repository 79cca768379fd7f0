"""The parts of the documentation that are made from the code.  `hooks.py` puts them into the pages."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields

import typer

import omnifm
from omnifm import describe
from omnifm.cli import app
from omnifm.data.refusal import REASONS
from omnifm.plugins import names, plugin
from omnifm.shipped import jobs as shipped_jobs
from omnifm.update import Update


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
    for method in describe.methods():
        name = f"[`{method.name}`](#{method.name})"
        rows.append([name, method.summary, paper(method), method.travels, method.when])
    return table(["name", "what it does", "paper", "what travels", "when to choose it"], rows)


def paper(method: describe.MethodRecord) -> str:
    """Authors and year, with a link where the paper is at arXiv."""
    return f"[{method.paper}](https://arxiv.org/abs/{method.arxiv})" if method.arxiv else method.paper


def shared_settings() -> str:
    """The settings that all baselines have."""
    return table_of_settings(setting for setting in describe.settings("fedavg") if setting.shared)


def settings_of_methods() -> str:
    """A section per method: what it does, and its settings."""
    parts = []
    for method in describe.methods():
        shared = ", ".join(f"`{setting.name}`" for setting in method.settings if setting.shared)
        own = [setting for setting in method.settings if not setting.shared]
        source = f", {paper(method)}" if method.paper else ""
        parts += [f"### {method.name}", f"**{method.title}**{source}.", paragraphs(without_sections(method.about))]
        parts.append(table_of_settings(own))
        if shared:
            parts.append(f"It also has {shared}, the [settings of all baselines](#settings-of-all-baselines).")
    return "\n\n".join(parts)


def without_sections(docstring: str) -> str:
    """A docstring up to its `Args:` or `Raises:`."""
    return re.split(r"\n+(?:Raises|Args):", docstring)[0]


def settings() -> str:
    """All settings that do not belong to a method."""
    parts = ["## train: rounds, optimisation, who takes part", table_of_settings(describe.settings("train"))]
    parts += ["## data", table_of_settings(describe.settings("data"))]
    parts += ["## method", "See [Methods](methods.md#every-method-and-its-settings)."]
    parts += ["## task and model", "`task.name` chooses the task.  Each task has its own keys in `task` and `model`."]
    for name in names("tasks"):
        keys = " and ".join(f"`{key}`" for key in plugin("tasks", name).required)
        parts += [f"### {name}", f"Every item of `dataset.json` must have {keys}."]
        found = describe.settings(name)
        for section in ("task", "model"):
            parts += [f"Keys of `{section}`:", table_of_settings(s for s in found if s.section == section)]
    parts += ["## The rest", table_of_settings(describe.top_level())]
    parts += ["## A site's own settings", "`local/omnifm_site.json` in a startup kit.  It is never sent anywhere."]
    return "\n\n".join([*parts, table_of_settings(describe.settings("site"))])


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
    rows = [[f"`{m.name}`", code(m.sends), code(m.says), "yes" if m.seeds else "no"] for m in describe.methods()]
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


def table_of_settings(settings: Iterable[describe.Setting]) -> str:
    """Settings as a table; a sentence if there are none."""
    rows = [[f"`{s.name}`", s.kind, "required" if s.default is None else f"`{s.default}`", s.text] for s in settings]
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
