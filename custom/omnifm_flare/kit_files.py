"""Read the JSON files of a startup kit."""

from __future__ import annotations

import json
from pathlib import Path


def read(folder: Path, name: str) -> dict[str, object]:
    """Read a JSON file of a kit, or its `.default` if the site has not written its own, as FLARE does.

    Raises:
        ValueError: the file is missing or is not a JSON object.
    """
    file = folder / name if (folder / name).is_file() else folder / f"{name}.default"
    if not file.is_file():
        raise ValueError(f"the kit must hold {folder.name}/{name}; the file is missing")
    try:
        content = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be JSON; got {error.msg} in line {error.lineno}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name} must be a JSON object; got {type(content).__name__}")
    return content


def objects(value: object) -> list[dict[str, object]]:
    """The JSON objects in a list; an empty list if the value is no list."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
