"""Records of methods and settings, read from the code."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
import typing
from dataclasses import MISSING, dataclass, fields

from pydantic.fields import FieldInfo

from omnifm.model import Capacity
from omnifm.plugins import names, plugin


@dataclass(frozen=True)
class Setting:
    """One key of a section of experiment.json."""

    name: str
    kind: str
    default: object
    has_default: bool
    text: str
    shared: bool = False
    """Whether all baselines have it."""


@dataclass(frozen=True)
class MethodRecord:
    """What there is to say about a method."""

    name: str
    summary: str
    about: str
    paper: str
    settings: list[Setting]
    sends: frozenset[str]
    says: frozenset[str]
    seeds: bool
    travels: str


def settings_of(cls: type) -> list[Setting]:
    hints, texts = typing.get_type_hints(cls, include_extras=True), {}
    for base in reversed(cls.__mro__[:-1]):
        texts |= docstrings(base)
    found = []
    for field in fields(cls):
        default = field.default
        if isinstance(default, FieldInfo):
            default = default.get_default(call_default_factory=True)
        if field.default_factory is not MISSING:
            default = field.default_factory()
        shared = field.name in {f.name for f in fields(Capacity)} and issubclass(cls, Capacity)
        found.append(
            Setting(
                field.name,
                kind_of(hints[field.name]),
                default,
                default is not MISSING,
                texts.get(field.name, ""),
                shared,
            )
        )
    return found


def docstrings(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    return {
        a.target.id: " ".join(b.value.value.split())
        for a, b in itertools.pairwise(body)
        if isinstance(a, ast.AnnAssign) and isinstance(b, ast.Expr) and isinstance(b.value, ast.Constant)
    }


def kind_of(hint: object) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return kind_of(args[0])
    if origin is typing.Literal:
        return " or ".join(f"`{a}`" for a in args)
    if args and type(None) in args:
        return " or ".join(kind_of(a) for a in args if a is not type(None)) + " or null"
    words = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    if hint in words:
        return words[hint]
    if origin in (list, tuple):
        return "list of " + " or ".join(dict.fromkeys(kind_of(a) for a in args if a is not Ellipsis))
    return "object" if origin is dict else str(getattr(hint, "__name__", hint))


def methods() -> list[MethodRecord]:
    found = []
    for name in names("methods"):
        kind = plugin("methods", name)
        doc = inspect.cleandoc(inspect.getmodule(kind).__doc__)
        first = " ".join(doc.split("\n\n")[0].split())
        paper = re.search(r"\(([^()]*?), arXiv ([\d.]+)[^()]*\)", first)
        source = f"[{paper[1]}](https://arxiv.org/abs/{paper[2]})" if paper else ""
        summary = re.sub(r"\s*\([^()]*arXiv[^()]*\)", "", first)
        found.append(
            MethodRecord(
                name,
                summary,
                " ".join(inspect.getdoc(kind).split()),
                source,
                settings_of(kind.Settings),
                kind.sends,
                kind.says,
                kind.seeds,
                "",
            )
        )
    return found
