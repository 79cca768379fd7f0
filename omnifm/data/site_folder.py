"""Writing a site's folder so that it is either complete or not there at all.  Only its owner can read it."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

FICLONE = 0x40049409
"""Linux's ioctl that lets a new file share the blocks of another one, until one of the two is written to."""


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`.  It is renamed to `folder` if the block succeeds, and deleted if it fails.

    Two processes may make the same folder at once: each fills its own, and the first to finish keeps it.  Only the
    owner can read the result: folders have mode 700 and files 600.  A file that is a hard link keeps its mode, because
    that is also the mode of its original.

    Raises:
        FileExistsError: the folder is already there and not empty (also when the other process was faster).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        yield work
        _make_private(work)
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


def place(source: Path, target: Path, *, link: bool = False) -> None:
    """Make `target` a file of its own with the content of `source`, so that whoever edits it changes no original.

    The copy takes no space where the disk can share blocks between files (Btrfs, XFS).

    Args:
        source: an existing file.
        target: a path that does not exist yet.
        link: make a hard link instead, where the disk allows one.  Then both names are one file, and whoever edits the
            target also changes the original.

    Raises:
        OSError: the file cannot be read or written, for example because the disk is full.
    """
    if link:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another disk, or one without links
            pass
    with source.open("rb") as old, target.open("xb") as new:
        target.chmod(0o600)
        try:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
        except OSError:
            shutil.copyfileobj(old, new, 2**20)


def _make_private(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o700)
        elif path.stat().st_nlink == 1:
            path.chmod(0o600)
