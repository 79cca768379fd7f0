"""State files: versioned, with a checksum, written atomically, readable by their owner only.

A state is named tensors and a JSON record.  Its file holds one line `OMNIFM-STATE 1 <sha256>`, then the safetensors
bytes that the checksum covers.  A file with one changed bit is refused; it is never read as something else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
from torch import Tensor

from omnifm.records import Json

MAGIC = b"OMNIFM-STATE 1 "
HEADER = len(MAGIC) + 64 + 1
"""Length of the first line in bytes."""
LOCK_POLL_S = 0.1
"""Seconds between two attempts to lock a folder."""
Tensors = dict[str, Tensor]
logger = logging.getLogger("omnifm.state")


class StateError(ValueError):
    """A state file is missing, damaged or of another version."""


def encode(tensors: Mapping[str, Tensor], record: Mapping[str, object]) -> bytes:
    """Return the bytes of a state file.

    >>> from torch import tensor
    >>> decode(encode({"a": tensor([1, 2])}, {"round": 3}))
    ({'a': tensor([1, 2])}, {'round': 3})

    Args:
        tensors: by name; no two of them share memory.
        record: anything that JSON can hold.
    """
    body = safetensors.torch.save(dict(tensors), {"record": json.dumps(record)})
    return MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def decode(data: bytes) -> tuple[Tensors, Json]:
    """Return the tensors and the record of a state file's bytes.

    Raises:
        StateError: the bytes are not those that `encode` returned.
    """
    if not data.startswith(MAGIC) or data[HEADER - 1 : HEADER] != b"\n":
        raise StateError("state must begin with 'OMNIFM-STATE 1'; got another format, version or a damaged header")
    body = data[HEADER:]
    if hashlib.sha256(body).hexdigest().encode() != data[len(MAGIC) : HEADER - 1]:
        raise StateError("state must match its SHA-256; got other bytes (damaged or cut short)")
    length = int.from_bytes(body[:8], "little")
    record: Json = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["record"])
    return safetensors.torch.load(body), record


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file, or leave the old one unchanged: temporary file, fsync, rename, fsync of the folder.

    Args:
        path: the file; its folder is made if it does not exist, for the owner only.

    Raises:
        OSError: it could not be written, for example because the disk is full.  The old file is unchanged, and the
            temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def locked(folder: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Lock a state folder, so that no other process uses it.  The lock ends with this process, even if it is killed.

    Args:
        folder: made if it does not exist; an empty file `lock` remains in it.
        wait_s: seconds to wait for a process that holds the lock and may be about to end, >= 0.

    Raises:
        StateError: another process still holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    deadline = time.monotonic() + wait_s
    with os.fdopen(os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise StateError("state folder must belong to one run at a time; another one uses it") from None
                time.sleep(LOCK_POLL_S)
        yield


class SavedState(NamedTuple):
    """A state as it was saved after a round."""

    round: int
    tensors: Tensors
    record: Json


class History:
    """The states after the last few rounds, one file each: `<folder>/<name>.<round>.state`.

    Several are kept for two reasons.  If the newest file is damaged, the one before is used.  If the server stopped
    after a site had finished a round, the resumed run repeats that round (or up to three rounds with too few replies),
    and needs the site's state from before it.

    Args:
        folder: where the files are.
        name: how their names begin.
        keep: number of states kept, >= 1.
    """

    def __init__(self, folder: Path, name: str, keep: int = 5) -> None:
        self.folder = folder
        self.name = name
        self.keep = keep

    def save(self, round_number: int, tensors: Mapping[str, Tensor], record: Mapping[str, object]) -> None:
        """Write the state after a round; then remove those of later rounds and all but the last `keep` others."""
        for unfinished in self.folder.glob(f".{self.name}.*"):  # left by a process that was killed while writing
            unfinished.unlink(missing_ok=True)
        write_atomic(self._path(round_number), encode(tensors, record))
        older = [number for number in self.rounds() if number <= round_number]
        for number in self.rounds():
            if number not in older[-self.keep :]:
                self._path(number).unlink(missing_ok=True)

    def load(self, before: int | None = None) -> SavedState | None:
        """Return the newest readable state, or None if there is none.

        Args:
            before: only states of rounds below this number; None is every round.
        """
        for round_number in reversed(self.rounds()):
            if before is not None and round_number >= before:
                continue
            try:
                return SavedState(round_number, *decode(self._path(round_number).read_bytes()))
            except (StateError, OSError) as error:
                logger.warning(
                    "state %r of round %d is unusable (%s); falling back to the one before",
                    self.name,
                    round_number,
                    type(error).__name__,
                )
        return None

    def rounds(self) -> list[int]:
        """The rounds whose state is on disk, in ascending order."""
        found = (path.name.split(".")[-2] for path in self.folder.glob(f"{self.name}.*.state"))
        return sorted(int(number) for number in found if number.isdigit())

    def clear(self) -> None:
        """Remove every state of this name."""
        for number in self.rounds():
            self._path(number).unlink(missing_ok=True)

    def _path(self, round_number: int) -> Path:
        return self.folder / f"{self.name}.{round_number}.state"
