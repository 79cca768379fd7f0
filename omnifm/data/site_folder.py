"""Writing a site's folder: all of it or nothing."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A working folder beside `folder` that takes its name when the block ends well, and vanishes otherwise.

    Two processes may make the same folder at once: each works on its own, the first to finish wins.

    Raises:
        FileExistsError: the folder is already there and not empty (also when the other process won).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        yield work
        work.chmod(0o755)
        try:
            work.rename(folder)
        except OSError as error:
            if folder.exists():
                raise FileExistsError("folder exists") from None
            raise error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_datalist(folder: Path, content: dict[str, Any]) -> None:
    """Write `dataset.json` into a site's folder, whole or not at all."""
    temporary = folder / ".dataset.json"
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, folder / "dataset.json")


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name where the disk allows it, else copy it."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
