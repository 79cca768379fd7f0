"""Finished runs in `<out>/cells`, so that an interrupted benchmark continues where it stopped.

A run is repeated only if its experiment or its data have changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from omnifm import simulation
from omnifm.config import Experiment
from omnifm.records import Json, Summary
from omnifm.state import write_atomic

logger = logging.getLogger("omnifm")


class Incomplete(ValueError):
    """A run did not end as COMPLETE: it diverged, or a site could not take part."""


def cell(
    experiment: Experiment,
    data: Path,
    sites: Sequence[str],
    out: Path,
    device: str = "cpu",
    watcher: simulation.Watcher | None = None,
) -> Summary:
    """The summary of one run, from `out` or run now; the watcher is told how a run goes.

    Raises:
        Incomplete: the run was not complete; it is not stored.
        ValueError: as `kept`.
    """

    def run() -> Mapping[str, object]:
        summary = simulation.run(experiment, data, sites, device=device, watcher=watcher)
        if summary["status"] != "COMPLETE":
            raise Incomplete(
                f"{experiment.method}: the run must be complete; got {summary['status']}, {summary['reason']}"
            )
        return dict(summary)

    return cast(Summary, kept(out, key_of(experiment, data, sites), data, sites, run))


def key_of(experiment: Experiment, data: Path, sites: Sequence[str]) -> str:
    """The key of a run of `cell`; runs with equal keys are the same run."""
    return f"{experiment.hash()} {experiment.seed} {data.name} {list(sites)}"


def kept(out: Path, key: str, data: Path, sites: Sequence[str], make: Callable[[], Mapping[str, object]]) -> Json:
    """The result of `make` for this key and these data, from an earlier process or made now.

    Raises:
        ValueError: a dataset.json changed while `make` ran, so that it may have read both versions; nothing is stored.
    """
    found = finished(out, key, data, sites)
    if found is None:
        read = data_hash(data, sites)
        found = {**make(), "data_hash": read}
        if data_hash(data, sites) != read:
            raise ValueError(
                "data must stay as they are while they are read; a dataset.json changed during a run. Run it again"
            )
        write_atomic(_path(out, key), json.dumps(found).encode())
    return found


def finished(out: Path, key: str, data: Path, sites: Sequence[str]) -> Json | None:
    """The stored result of this key; None if there is none, it is damaged, or it was made from other data."""
    path = _path(out, key)
    try:
        found = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        logger.warning("%s/%s is damaged and is made anew", path.parent.name, path.name)
        return None
    return found if found.get("data_hash") == data_hash(data, sites) else None


def data_hash(data: Path, sites: Sequence[str]) -> str:
    """Hash of the sites' dataset.json, which name all cases and splits; a changed image file is not noticed."""
    digest = hashlib.sha256()
    for site in sites:
        digest.update(hashlib.sha256((data / site / "dataset.json").read_bytes()).digest())
    return digest.hexdigest()[:16]


def _path(out: Path, key: str) -> Path:
    return out / "cells" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
