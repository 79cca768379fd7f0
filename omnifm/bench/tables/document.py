"""A table as a document: columns under their names, written as JSON, Markdown and one HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnifm.bench.tables import markdown as tables_text
from omnifm.bench.tables import page as tables_page
from omnifm.report.numbers import counted
from omnifm.state import write_atomic


def write(out: Path, document: Mapping[str, Any]) -> None:
    """Write `<out>/<table>.json`, `.md` and `.html`."""
    path = out / document["table"]
    write_atomic(path.with_name(f"{path.name}.json"), json.dumps(document, indent=1).encode())
    write_atomic(path.with_name(f"{path.name}.md"), tables_text.markdown(document).encode())
    page = tables_page.page(document["title"], document["caption"], document["columns"])
    write_atomic(path.with_name(f"{path.name}.html"), page)


def columns_of(file: Path, scale: str) -> dict[str, Any]:
    """The columns that were written before at the same scale; none where there is no such document.

    Raises:
        ValueError: the file is no table.
    """
    try:
        content = json.loads(file.read_text()) if file.exists() else {}
        return dict(content.get("columns", {})) if content.get("scale") == scale else {}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{file.name} in out must be a table of `bench tables`; it holds something else") from None


def reading(num_seeds: int, rival: str | None) -> list[str]:
    """How to read any of our tables, a paragraph a line; without a rival nothing is compared."""
    interval = (
        ""
        if rival is None
        else f", [ ] Student's 95 % interval of the paired difference to {rival}"
        if num_seeds > 1
        else f", the difference to {rival} has no interval"
    )
    spread = "; ± is the standard deviation of the seeds" if num_seeds > 1 else ""
    return [
        f"{counted(num_seeds, 'seed')}; the same splits, initial backbone and local steps for every row.  Scores are "
        f"of the test split, at the checkpoint that each site's validation picks{spread}{interval}.",
        "Cost is that of all training rounds of the first seed, without the seed stage and the last evaluation, before "
        "whose second score every site trains once more as in a round; local steps are those planned: a method's own "
        "second pass over a batch is not counted.",
    ]
