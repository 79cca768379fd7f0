"""Importers: one file per public data set (or per folder layout), found by the file's name.

Each file has a function `prepare(source, destination, *, seed=0, ...)` that writes `destination/<site>/dataset.json`.
`omnifm prepare NAME` runs it: the module's first line and the "Args" of the docstring become the text of `--help`, and
the signature becomes the arguments and options.  Only the first line of each entry under "Args" is shown.

Files that start with an underscore are shared helpers: `_source` reads the data set's own files and counts what is
left out, `_sites` distributes the cases over sites and writes them, `_splits` remembers who is in which split, and
`_questions` does all of this for questions about images.
"""

import importlib
import pkgutil
from types import ModuleType


def names() -> tuple[str, ...]:
    """The names of all importers, in alphabetical order.

    >>> "medmnist" in names()
    True
    """
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def load(name: str) -> ModuleType:
    """Import one importer; the caller then calls its `prepare`.

    Raises:
        ValueError: there is no importer of this name.
    """
    if name not in names():
        raise ValueError(f"importer must be one of {', '.join(names())}; got {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
