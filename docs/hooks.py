"""What mkdocs does besides Markdown: tables made from the code, and notebooks as pages.

A comment such as `<!-- generate: methods -->` in a page is replaced by what `generated.PARTS["methods"]` returns, so
that a table cannot differ from the code.  A notebook `tutorials/x.ipynb` becomes the page `tutorials/x.md`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import generated  # mkdocs puts the folder of this file on the path

MARKER = re.compile(r"<!-- generate: ([a-z-]+) -->")


def on_files(files: Files, config: Any) -> Files:
    """Add one page per notebook."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text = notebook_page(Path(str(file.abs_src_path)))
        files.append(File.generated(config, file.src_uri.removesuffix(".ipynb") + ".md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the generated parts into a page; a name that no function makes is an error."""
    return MARKER.sub(lambda found: generated.PARTS[found[1]](), markdown)


def notebook_page(notebook: Path) -> str:
    """A notebook as Markdown: its texts, and its code cells without output.

    Raises:
        ValueError: a cell holds output; notebooks are committed without it.
    """
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        if cell["outputs"] or cell["execution_count"] is not None:
            raise ValueError(f"{notebook.name}: cells must hold no output; clear it before you commit")
        parts.append(code_block(text))
    title, *rest = parts
    note = f"[Download this page as a notebook]({notebook.name}) and run it; it takes a few minutes on two cores."
    return "\n\n".join([title, note, *rest]) + "\n"


def code_block(cell: str) -> str:
    """A code cell as a fenced block.  The first line of `%%bash` and `%%writefile FILE` becomes the block's kind.

    >>> print(code_block("%%bash\\nls"))
    ```bash
    ls
    ```
    """
    first, _, rest = cell.partition("\n")
    if first == "%%bash":
        return f"```bash\n{rest}\n```"
    if first.startswith("%%writefile "):
        return f'```python title="{first.split()[1]}"\n{rest}\n```'
    return f"```python\n{cell}\n```"
