"""Finished runs, kept in `<out>/cells`: none is run twice while its experiment and its data stay the same.

So a benchmark that was cut off goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omnifm import simulation
from omnifm.config import Experiment
from omnifm.state import write_atomic

logger = logging.getLogger("omnifm")


class Incomplete(ValueError):
    """A run did not end COMPLETE: it diverged, or a site could not take part."""


def cell(experiment: Experiment, data: Path, sites: Sequence[str], out: Path, device: str = "cpu") -> dict[str, Any]:
    """The summary of one run.

    Raises:
        Incomplete: the run was not complete; it is not kept.
        ValueError: as `kept`.
    """

    def run() -> dict[str, Any]:
        summary = simulation.run(experiment, data, sites, device=device)
        if summary["status"] != "COMPLETE":
            raise Incomplete(
                f"{experiment.method}: the run must be complete; got {summary['status']}, {summary['reason']}"
            )
        return summary

    return kept(out, key_of(experiment, data, sites), data, sites, run)


def key_of(experiment: Experiment, data: Path, sites: Sequence[str]) -> str:
    """What tells one run of `cell` from another."""
    return f"{experiment.hash()} {experiment.seed} {data.name} {list(sites)}"


def kept(out: Path, key: str, data: Path, sites: Sequence[str], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returned for this key and these data, here or in an earlier process.

    Raises:
        ValueError: a dataset.json changed while `make` ran, which may have read both; nothing is kept.
    """
    found = finished(out, key, data, sites)
    if found is None:
        read = data_hash(data, sites)
        found = make() | {"data_hash": read}
        if data_hash(data, sites) != read:
            raise ValueError("data must stay as they are while they are read; a dataset.json changed during a run")
        write_atomic(_path(out, key), json.dumps(found).encode())
    return found


def finished(out: Path, key: str, data: Path, sites: Sequence[str]) -> dict[str, Any] | None:
    """What is kept under this key; None where nothing is, it is damaged, or it was made from other data."""
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
    """Of the sites' dataset.json, which name all cases and splits; an image changed under its name is not noticed."""
    digest = hashlib.sha256()
    for site in sites:
        digest.update(hashlib.sha256((data / site / "dataset.json").read_bytes()).digest())
    return digest.hexdigest()[:16]


def _path(out: Path, key: str) -> Path:
    return out / "cells" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
