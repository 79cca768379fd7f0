"""Writing a site's folder so that it is either complete or not there at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`.  It is renamed to `folder` if the block succeeds, and deleted if it fails.

    Two processes may make the same folder at once: each fills its own, and the first to finish keeps it.

    Raises:
        FileExistsError: the folder is already there and not empty (also when the other process was faster).
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


def write_datalist(folder: Path, content: Mapping[str, object]) -> None:
    """Write `dataset.json` into a site's folder; an interruption leaves the old file or the new one, never a part."""
    temporary = folder / ".dataset.json"
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, folder / "dataset.json")


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to the file, or a copy where the disk allows no link."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
