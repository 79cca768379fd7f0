"""The folder of one run: `results/` (summary, report), `state/` (models), and `run.json`, which says what ran.

A finished run is never overwritten.  An interrupted one goes on where its folder is named again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from omnifm.config import Experiment
from omnifm.state import write_atomic


@dataclass(frozen=True)
class RunFolder:
    """Where one run lies."""

    path: Path

    @property
    def results(self) -> Path:
        """Folder of summary.json and report.html."""
        return self.path / "results"

    @property
    def state(self) -> Path:
        """Folder with the server's checkpoint and one folder per site."""
        return self.path / "state"


def new_folder(name: str, parent: Path) -> Path:
    """A path below `parent` at which nothing lies yet: `name`, else `name-2`, `name-3` and so on."""
    paths = (parent / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(path for path in paths if not path.exists())


def open_run(path: Path, experiment: Experiment, sites: Sequence[str], data: str) -> RunFolder:
    """Make the folder of a run, or open that of the same run, which was interrupted.

    Args:
        data: name of the data, for `run.json`.

    Raises:
        ValueError: the folder holds a finished run, another run, or other files.
    """
    record = json.loads(json.dumps({"experiment": asdict(experiment), "sites": sorted(sites), "data": data}))
    file = path / "run.json"
    if file.is_file():
        _require_same(json.loads(file.read_text()), record)
        _require_unfinished(path / "results" / "summary.json")
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError("out must be a new or empty folder, or that of an interrupted run; it holds other files")
    path.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(record, indent=1).encode())
    return RunFolder(path)


def _require_same(old: Mapping[str, object], new: Mapping[str, object]) -> None:
    if keys := sorted(_differences(old, new)):
        raise ValueError(
            f"out holds a run with other settings: {', '.join(keys)}. Name another folder, or the same settings"
        )


def _differences(old: Mapping[str, object], new: Mapping[str, object], prefix: str = "") -> list[str]:
    """Dotted keys that differ."""
    found = []
    for key in {*old, *new}:
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += _differences(one, other, f"{prefix}{key}.")
        elif one != other:
            found.append(f"{prefix}{key}".removeprefix("experiment."))
    return found


def _require_unfinished(summary: Path) -> None:
    if summary.is_file() and json.loads(summary.read_text())["status"] != "FAILED":
        raise ValueError("out holds a finished run, which is never overwritten. Name another folder")
