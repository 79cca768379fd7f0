"""Files that survive anything: versioned, checksummed, written atomically, readable by their owner only.

A state is named tensors and a JSON record.  Its file is one line `OMNIFM-STATE 1 <sha256>` and the safetensors
bytes that the checksum covers; a flipped bit anywhere makes it unreadable, never silently different.
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
from typing import Any

import safetensors.torch
from torch import Tensor

MAGIC = b"OMNIFM-STATE 1 "
HEADER = len(MAGIC) + 64 + 1
LOCK_POLL_S = 0.1
Tensors = dict[str, Tensor]
logger = logging.getLogger("omnifm.state")


class StateError(ValueError):
    """A state file is missing, damaged or of another version."""


def encode(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> bytes:
    """Serialize tensors and record into one checksummed block."""
    body = safetensors.torch.save(dict(tensors), {"record": json.dumps(record)})
    return MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def decode(data: bytes) -> tuple[Tensors, dict[str, Any]]:
    """Invert `encode`; raises StateError where a single bit differs."""
    if not data.startswith(MAGIC) or data[HEADER - 1 : HEADER] != b"\n":
        raise StateError("state must begin with 'OMNIFM-STATE 1'; got another format, version or a damaged header")
    body = data[HEADER:]
    if hashlib.sha256(body).hexdigest().encode() != data[len(MAGIC) : HEADER - 1]:
        raise StateError("state must match its SHA-256; got other bytes (damaged or cut short)")
    length = int.from_bytes(body[:8], "little")
    record = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["record"])
    return safetensors.torch.load(body), record


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` or leave it as it was: temporary file, fsync, rename, fsync of the folder.

    Raises:
        OSError: it could not be written, as on a full disk; the file is as it was and nothing else is left.
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
    """Keep every other process out of a state folder; the lock ends with this process, however that ends.

    Args:
        folder: made if absent; its file `lock` stays there, empty.
        wait_s: seconds to wait for another process, which may be ending.

    Raises:
        StateError: another process still holds it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    end = time.monotonic() + wait_s
    with os.fdopen(os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise StateError("state folder must belong to one run at a time; another one uses it") from None
                time.sleep(LOCK_POLL_S)
        yield


class History:
    """The last few states of one thing, by round: `<folder>/<name>.<round>.state`.

    Keeping several lets a damaged newest one fall back to the one before, and lets a resumed run ask for the
    state *before* a round that a site had already finished when the server died, or before up to three rounds that had
    no quorum and are done again.
    """

    def __init__(self, folder: Path, name: str, keep: int = 5) -> None:
        self.folder, self.name, self.keep = folder, name, keep

    def save(self, round_number: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write the state of a round, then drop what is older than the last `keep` rounds, and anything newer."""
        for torn in self.folder.glob(f".{self.name}.*"):  # a process killed while writing left it
            torn.unlink(missing_ok=True)
        write_atomic(self._path(round_number), encode(tensors, record))
        older = [number for number in self.rounds() if number <= round_number]
        for number in self.rounds():
            if number not in older[-self.keep :]:
                self._path(number).unlink(missing_ok=True)

    def load(self, before: int | None = None) -> tuple[int, Tensors, dict[str, Any]] | None:
        """Return (round, tensors, record) of the newest readable state with round < `before`; None if there is none."""
        for round_number in reversed(self.rounds()):
            if before is not None and round_number >= before:
                continue
            try:
                return round_number, *decode(self._path(round_number).read_bytes())
            except (StateError, OSError) as error:
                logger.warning(
                    "state %r of round %d is unusable (%s); falling back to the one before",
                    self.name,
                    round_number,
                    type(error).__name__,
                )
        return None

    def rounds(self) -> list[int]:
        """Rounds on disk, ascending."""
        found = (path.name.split(".")[-2] for path in self.folder.glob(f"{self.name}.*.state"))
        return sorted(int(number) for number in found if number.isdigit())

    def clear(self) -> None:
        """Forget every state of this name."""
        for number in self.rounds():
            self._path(number).unlink(missing_ok=True)

    def _path(self, round_number: int) -> Path:
        return self.folder / f"{self.name}.{round_number}.state"
