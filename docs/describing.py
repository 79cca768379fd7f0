"""Records of settings and methods, read from the code."""

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

import torch
from pydantic.fields import FieldInfo

from omnifm.model import Capacity
from omnifm.plugins import names, plugin

KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "null"}
SHARED = frozenset(field.name for field in fields(Capacity))
"""Settings that all baselines have."""


@dataclass(frozen=True)
class Setting:
    """One key of a section of experiment.json, or of a site's own file."""

    name: str
    kind: str
    """What a value may be, in words."""
    default: str
    """As JSON, or "required"."""
    text: str
    """The docstring below the field."""


@dataclass(frozen=True)
class MethodRecord:
    """What there is to say about a method."""

    name: str
    summary: str
    about: str
    paper: str
    """A link to arXiv, or empty."""
    own: list[Setting]
    """Its settings, without those that all baselines share."""
    has_shared: bool
    """Whether it has the settings that all baselines share."""
    sends: frozenset[str]
    says: frozenset[str]
    seeds: bool
    travels: str
    """Which part of the model is shared, in words."""


def settings_of(cls: type) -> Iterator[Setting]:
    """The settings of a strict dataclass, in order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        texts |= docstrings_below_fields(base)
    for field in fields(cls):
        yield Setting(field.name, kind_of(hints[field.name]), default_of(field), texts.get(field.name, ""))


def docstrings_below_fields(cls: type) -> dict[str, str]:
    """Field -> the text that stands below it."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def default_of(field: object) -> str:
    """A field's default as JSON, or "required"."""
    default = field.default if field.default_factory is MISSING else field.default_factory()
    if isinstance(default, FieldInfo):
        default = default.get_default(call_default_factory=True)
    return "required" if default is MISSING else f"`{json.dumps(default)}`"


def kind_of(hint: object) -> str:
    """What a value of this type may be, in words.

    >>> kind_of(int | None), kind_of(typing.Literal["a", "b"])
    ('whole number or null', '`a` or `b`')
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return kind_of(args[0])
    if origin is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind_of(part) for part in args)
    if origin in (list, tuple):
        return "list of " + " or ".join(dict.fromkeys(kind_of(part) for part in args if part is not Ellipsis))
    return KINDS.get(hint, "object")


def methods() -> list[MethodRecord]:
    """All methods, sorted by name."""
    return [_method(name, plugin("methods", name)) for name in names("methods")]


def _method(name: str, kind: type) -> MethodRecord:
    first = " ".join(inspect.getdoc(inspect.getmodule(kind)).split("\n\n")[0].split())
    paper = re.search(r"\(([^()]*?), arXiv ([\d.]+)[^()]*\)", first)
    about = re.split(r"\n+(?:Raises|Args):", inspect.getdoc(kind))[0]
    settings = list(settings_of(kind.Settings))
    has_shared = issubclass(kind.Settings, Capacity)
    return MethodRecord(
        name,
        summary=re.sub(r"\s*\([^()]*arXiv[^()]*\)", "", first).partition(": ")[2],
        about=" ".join(about.split()),
        paper=f"[{paper[1]}](https://arxiv.org/abs/{paper[2]})" if paper else "",
        own=[setting for setting in settings if not (has_shared and setting.name in SHARED)],
        has_shared=has_shared,
        sends=kind.sends,
        says=kind.says,
        seeds=kind.seeds,
        travels=_travels(kind),
    )


def _travels(kind: type) -> str:
    """Which part of a small ResNet with batch normalisation the method shares by default, in words."""
    task = plugin("tasks", "classification")
    built = task(task.Settings(), task.Model(channels=(8, 8, 8, 8)))
    built.configure({"dims": 2, "channels": 1, "labels": {"0": "a", "1": "b"}, "size": [32, 32]})
    torch.manual_seed(0)
    try:
        method = kind(kind.Settings())
        model = method.build(built)
        shared = set(method.partition(model).shared)
    except ValueError:  # the method is made for LoRA, and this network has none
        return "trained matrices of LoRA"
    if not shared:
        return "nothing"
    kept = {name for name, _ in model.named_parameters() if name not in shared}
    head = {id(value) for module in model.backbone.head() for value in module.parameters()}
    body = {name for name, value in model.named_parameters() if value.ndim == 4 and name.startswith("backbone.")}
    norms = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    if body & kept:
        return "the lowest layers"
    stays = ["the head"] if all(name in kept for name, value in model.named_parameters() if id(value) in head) else []
    if any(name.startswith("prompts.") for name in kept):
        stays.append("the suffix and the attention that reads it")
    if norms <= kept:
        stays.append("normalisation layers")
    elif not any(name.endswith("running_mean") for name in shared):
        stays.append("statistics of normalisation layers")
    return f"all but {', '.join(stays)}" if stays else "all weights"
