"""The report of a run: one self-contained HTML page, drawn from summary.json alone."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from omnifm.records import Summary
from omnifm.report.render import render
from omnifm.report.run_page import run_page
from omnifm.state import write_atomic

SCHEMA = 1
OPTIONAL = (
    "data_changes",
    "data",
    "settings",
    "finished",
    "backbone_hash",
    "higher_is_better",
    "reference",
    "absent",
    "capped",
)
KEYS = tuple(key for key in Summary.__annotations__ if key not in ("schema", *OPTIONAL))
"""Keys that every summary.json of schema 1 holds."""


def report(path: Path) -> Path:
    """Draw the report of a finished run again, with the pictures of the earlier report.

    Args:
        path: a run directory (its `results/summary.json` or `summary.json` is read) or a summary file.

    Returns:
        Path of the `report.html` written beside the summary.

    Raises:
        ValueError: there is no summary, or it is not JSON of schema 1.
    """
    found = [p for p in (path / "results" / "summary.json", path / "summary.json", path) if p.is_file()]
    if not found:
        raise ValueError("path must be a summary.json or a run directory that holds one; it is neither")
    page = found[0].parent / "report.html"
    try:
        write_report(_read(found[0]), page, _kept_pictures(page))
    except (KeyError, TypeError, AttributeError) as error:
        wrong = f"{type(error).__name__} {str(error)!r:.80}"
        raise ValueError(f"summary must follow schema {SCHEMA}; got {wrong}") from None
    return page


def write_report(summary: Summary, path: Path, pictures: Mapping[str, bytes] = {}) -> None:
    """Write one self-contained HTML page atomically.

    Args:
        summary: what summary.json holds, schema 1.
        path: the page.
        pictures: PNG files by caption.  Only pictures of synthetic cases may be given: those of patients never
            leave their site.
    """
    write_atomic(path, render("run.html.j2", run_page(summary, pictures)))


def _read(path: Path) -> Summary:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("summary must be JSON; got something else") from None
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA:
        got = summary.get("schema") if isinstance(summary, dict) else type(summary).__name__
        raise ValueError(f"summary must have schema {SCHEMA}; got {str(got)!r:.40}")
    if absent := [key for key in KEYS if key not in summary]:
        raise ValueError(f"summary must hold every key of schema {SCHEMA}; it lacks {', '.join(absent)}")
    return cast("Summary", summary)


def _kept_pictures(page: Path) -> dict[str, bytes]:
    """Return the pictures of an earlier report: the server stores them nowhere else."""
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    cases = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([\w+/]*=*)"><figcaption>', text)
    return {html.unescape(caption): base64.b64decode(data) for caption, data in cases}
