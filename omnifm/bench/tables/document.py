"""Write a table as JSON, Markdown and one HTML page, and read its JSON again."""

from __future__ import annotations

import json
from pathlib import Path

from omnifm.bench.tables import markdown as tables_text
from omnifm.bench.tables import page as tables_page
from omnifm.bench.tables.records import Column, Document
from omnifm.report.numbers import counted
from omnifm.state import write_atomic


def write(out: Path, document: Document) -> None:
    """Write `<out>/<table>.json`, `.md` and `.html`."""
    path = out / document["table"]
    write_atomic(path.with_name(f"{path.name}.json"), json.dumps(document, indent=1).encode())
    write_atomic(path.with_name(f"{path.name}.md"), tables_text.markdown(document).encode())
    page = tables_page.page(document["title"], document["caption"], document["columns"])
    write_atomic(path.with_name(f"{path.name}.html"), page)


def columns_of(file: Path, scale: str) -> dict[str, Column]:
    """The columns that an earlier run wrote at the same scale; empty if the file is absent or of another scale.

    Raises:
        ValueError: the file is not a table.
    """
    try:
        content = json.loads(file.read_text()) if file.exists() else {}
        return dict(content.get("columns", {})) if content.get("scale") == scale else {}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{file.name} in out must be a table of `bench tables`; it holds something else") from None


def reading(num_seeds: int, rival: str | None) -> list[str]:
    """How to read a table, one paragraph per line.

    Args:
        rival: the row that all others are compared with; None where nothing is compared.
    """
    if rival is None:
        interval = ""
    elif num_seeds > 1:
        interval = f"; [ ] is Student's 95 % interval of the paired difference to {rival}"
    else:
        interval = f"; the difference to {rival} has no interval"
    spread = "; ± is the standard deviation over seeds" if num_seeds > 1 else ""
    return [
        f"{counted(num_seeds, 'seed')}; every row has the same splits, initial backbone and number of local steps.  "
        "Scores are of the test split, at the checkpoint with the best validation score of each site"
        f"{spread}{interval}.",
        "Cost is the total of all training rounds of the first seed.  It leaves out the seed stage and the last "
        "evaluation, in which every site trains once more before it is scored.  Local steps are the planned ones: a "
        "method's own second pass over a batch is not counted.",
    ]
