"""What there is to choose from: methods and settings as records, read from the code, so that they cannot drift from it.

`omnifm methods` and `omnifm settings` print them, and the documentation makes its tables from them.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields

from pydantic.fields import FieldInfo

from omnifm.config import Data, Experiment, SiteConfig, Train
from omnifm.model import Capacity
from omnifm.nearest import did_you_mean
from omnifm.plugins import names, plugin

FIRST_LINE = re.compile(r"(?P<title>[^:]+): (?P<summary>.+?) \((?P<paper>[^()]*arXiv [\d.]+[^()]*|no paper|ours)\)")
"""How the docstring of a method's file begins: `FedAvg: one line (authors and year, arXiv number).`"""
SECTIONS = {"train": Train, "data": Data, "site": SiteConfig}
"""The sections whose keys do not depend on a task or a method."""


@dataclass(frozen=True)
class Setting:
    """One key of experiment.json, or of a site's omnifm_site.json.

    Attributes:
        section: the object that holds the key, for example `train`; empty for keys that stand in no object.
        kind: what its value is, in words, with its range.
        default: value where the key is left out, as JSON; None for a key that is required.
        text: what it does.
        shared: whether all baselines have it.
    """

    section: str
    name: str
    kind: str
    default: str | None
    text: str
    shared: bool = False

    @property
    def key(self) -> str:
        """The dotted key, as `--set` takes it."""
        return f"{self.section}.{self.name}" if self.section else self.name


@dataclass(frozen=True)
class MethodRecord:
    """What there is to say about a method.

    Attributes:
        name: as it stands in `method.name`.
        title: as the paper writes it.
        summary: one line.
        about: what it does, and how it differs from the paper.
        paper: authors and year; `no paper` or `ours` where there is none.
        arxiv: number of the paper at arXiv; empty where there is none.
        travels: what sites and server send each other, in words.
        sends, says: names of the tensors and facts that it adds to what a site sends.
        seeds: whether sites reply before round 1.
        when: when to choose it.
        settings: its keys.
    """

    name: str
    title: str
    summary: str
    about: str
    paper: str
    arxiv: str
    travels: str
    sends: frozenset[str]
    says: frozenset[str]
    seeds: bool
    when: str
    settings: tuple[Setting, ...]


def methods() -> list[MethodRecord]:
    """Every method, sorted by name."""
    return [method(name) for name in names("methods")]


def method(name: str) -> MethodRecord:
    """One method.

    >>> method("fedprox").arxiv
    '1812.06127'

    Raises:
        ValueError: there is no such method.
    """
    kind = plugin("methods", name)
    text = inspect.getdoc(inspect.getmodule(kind)) or name
    found = FIRST_LINE.match(text)
    first = found.groupdict() if found else {"title": name, "summary": text.splitlines()[0], "paper": ""}
    number = re.search(r"arXiv ([\d.]+)", first["paper"])
    return MethodRecord(
        name=name,
        title=first["title"],
        summary=first["summary"],
        about=inspect.getdoc(kind) or "",
        paper=re.sub(r",? *arXiv .*", "", first["paper"]),
        arxiv=number[1] if number else "",
        travels=kind.travels,
        sends=kind.sends,
        says=kind.says,
        seeds=kind.seeds,
        when=vars(kind).get("when", ""),  # a parent's sentence is about the parent
        settings=tuple(settings_of(kind.Settings, "method")),
    )


def sections() -> list[str]:
    """What `settings` takes."""
    return [*SECTIONS, *names("tasks"), *names("methods")]


def settings(section: str) -> list[Setting]:
    """The keys of a section, of a task (its sections `task` and `model`), or of a method.

    >>> [setting.key for setting in settings("data")]
    ['data.name', 'data.cache_gib']

    Args:
        section: one of `sections()`, or `model`, which gives the keys of every task's section `model`.

    Raises:
        ValueError: it is none of these.
    """
    if section in SECTIONS:
        return settings_of(SECTIONS[section], "" if section == "site" else section)
    if section in names("tasks"):
        kind = plugin("tasks", section)
        return [*settings_of(kind.Settings, "task"), *settings_of(kind.Model, "model")]
    if section in names("methods"):
        return settings_of(plugin("methods", section).Settings, "method")
    known = sections()
    raise ValueError(f"section must be one of {', '.join(known)}; got {section!r:.80}{did_you_mean(section, known)}")


def top_level() -> list[Setting]:
    """The keys of experiment.json that are no objects."""
    return [setting for setting in settings_of(Experiment, "") if setting.name in ("job", "seed", "reference")]


def settings_of(kind: type, section: str) -> list[Setting]:
    """The fields of a dataclass as settings of a section."""
    hints, texts = typing.get_type_hints(kind, include_extras=True), _docstrings(kind)
    shared = {field.name for field in fields(Capacity)} if issubclass(kind, Capacity) else set()
    return [
        Setting(
            section, field.name, kind_of(hints[field.name]), default, texts.get(field.name, ""), field.name in shared
        )
        for field, default in ((field, _default(field)) for field in fields(kind))
    ]


def _default(field: typing.Any) -> str | None:
    value = field.default
    if isinstance(value, FieldInfo):
        value = value.get_default(call_default_factory=True)
    if field.default_factory is not MISSING:
        value = field.default_factory()
    return None if value is MISSING or repr(value) == "PydanticUndefined" else json.dumps(value)


def _docstrings(kind: type) -> dict[str, str]:
    """The text below each field, also of the fields that are inherited."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        texts |= dict(_texts(base))
    return texts


def _texts(kind: type) -> Iterator[tuple[str, str]]:
    statement = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(statement, ast.ClassDef)
    for field, text in itertools.pairwise(statement.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            yield field.target.id, " ".join(str(ast.literal_eval(text.value)).split())


def kind_of(hint: object) -> str:
    """A type in words, with its range.

    >>> from omnifm.config import Count, Positive
    >>> kind_of(Count), kind_of(Positive | None)
    ('whole number, >= 1', 'number, > 0, or null')
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return ", ".join([kind_of(parts[0]), *_ranges(parts[1:])])
    if origin is typing.Literal:
        return " or ".join(json.dumps(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        words = [kind_of(part) for part in parts if part is not type(None)] + ["null"] * (type(None) in parts)
        return (", or " if any("," in word for word in words) else " or ").join(words)
    if origin in (list, tuple):
        return f"list of {' or '.join(dict.fromkeys(kind_of(part) for part in parts if part is not Ellipsis))}"
    known = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    return known.get(typing.cast(type, hint), "object")


def _ranges(notes: tuple[object, ...]) -> Iterator[str]:
    for note in notes:
        for rule in getattr(note, "metadata", ()):
            for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
                if hasattr(rule, attribute):
                    yield f"{sign} {getattr(rule, attribute)}"
