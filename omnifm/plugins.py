"""Tasks and methods are files: the name in a configuration is the file's name, and adding one edits no list."""

from __future__ import annotations

import importlib
import json
import pkgutil
from typing import Any, Literal, cast

from omnifm.config import Experiment, parse
from omnifm.method import Method
from omnifm.nearest import did_you_mean
from omnifm.task import Task

Kind = Literal["methods", "tasks"]


def names(kind: Kind) -> list[str]:
    """Names of the methods or tasks that exist, sorted.  A file whose name starts with an underscore is a helper."""
    package = importlib.import_module(f"omnifm.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def plugin(kind: Kind, name: str) -> type[Any]:
    """The Method or Task class in `omnifm/<kind>/<name>.py`.

    Raises:
        ValueError: there is no such file.
    """
    if name not in names(kind):
        near = did_you_mean(name, names(kind))
        raise ValueError(f"{kind.removesuffix('s')} must be one of {', '.join(names(kind))}; got {name!r}{near}")
    module = importlib.import_module(f"omnifm.{kind}.{name}")
    base = Method if kind == "methods" else Task
    classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    own = [c for c in classes if issubclass(c, base)]
    assert len(own) == 1, f"{module.__name__} must define exactly one {base.__name__}"
    return own[0]


def load_method(experiment: Experiment) -> Method:
    """Build the experiment's method from its section; raises ValueError naming a wrong key or name."""
    section = dict(experiment.method)
    kind = plugin("methods", section.pop("name"))
    return cast(Method, kind(parse(kind.Settings, json.dumps(section), "experiment.json: method")))


def load_task(experiment: Experiment) -> Task:
    """Build the experiment's task from its task and model sections; raises ValueError naming a wrong key."""
    section = dict(experiment.task)
    kind = plugin("tasks", section.pop("name"))
    settings = parse(kind.Settings, json.dumps(section), "experiment.json: task")
    model = parse(kind.Model, json.dumps(experiment.model), "experiment.json: model")
    return cast(Task, kind(settings, model))
