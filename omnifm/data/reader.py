"""Images are read in a child process, so that a harmful or damaged file costs one refusal and nothing else.

Decoders are native code, and a file can hold anything.  Each process therefore has one child process that decodes for
it.  The child has limits of memory and time, may not write files, and shows nothing of what a library prints about a
header.  It is started when the first image is read, and again after it has crashed.
"""

import atexit
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from omnifm.data.refusal import RefusedImage
from omnifm.records import Json

SECONDS = 10.0
"""Processor time for one image, plus one second for each MiB on disk.  The child ends itself after that."""
CLOCK_S = 100.0
"""Shortest limit of elapsed time for one image: longer than `SECONDS`, because a machine can be busy or a disk slow."""
GRACE_S = 5.0
"""The parent ends a child that does not end itself this much later than its limit."""
COMMAND = (sys.executable, "-P", "-m", "omnifm.data.reader_process")
"""-P: without it, Python would import a file of the working directory in place of a library."""
BROKEN = "the reading process must start; it did not: `python -m omnifm.data.reader_process` shows why"
LENGTH = struct.Struct("<Q")
Reply = tuple[Json, Shaped[np.ndarray, "..."]]
"""The facts of an image and its array."""


class Read(NamedTuple):
    """One image that was read.

    Attributes:
        path: file or folder.
        request: what the child was asked to do.
        facts: of the image, as in `Reply`.
        array: the voxels.
    """

    path: Path
    request: Mapping[str, object]
    facts: Json
    array: Shaped[np.ndarray, "..."]


class Recordings(threading.local):
    """The lists that `Reader.recording` fills; every thread has its own."""

    def __init__(self) -> None:
        self.active: list[list[Read]] = []


class Reader:
    """Reads one image at a time for all threads of this process; a forked process starts a child of its own.

    Attributes:
        command: starts the child.
        child: the running child process, or None.
    """

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self.command = command
        self.lock = threading.Lock()
        self.child: subprocess.Popen[bytes] | None = None
        self.recordings = Recordings()
        os.register_at_fork(after_in_child=self._after_fork)

    def ask(self, path: Path, seconds: float | None = None, **request: object) -> Reply:
        """Let the child process read `path`.

        Args:
            path: file or folder.
            seconds: limit of processor time; None computes it from the size on disk.
            request: what to do, as `reader_process.answer` takes it.

        Returns:
            the facts of the image and its array.

        Raises:
            RefusedImage: the image cannot be read; also if the child process crashed.
            ValueError: the child process cannot be started.
        """
        seconds = SECONDS + _size_on_disk(path) / 2**20 if seconds is None else seconds
        clock_s = max(CLOCK_S, seconds)
        with self.lock:
            child = self._running_child()
            try:
                _send(child, {**request, "path": str(path), "seconds": seconds, "clock_s": clock_s})
                facts, array = _receive(child, time.monotonic() + clock_s + GRACE_S)
            except (EOFError, BrokenPipeError, TimeoutError) as error:
                is_silent = isinstance(error, TimeoutError)
                raise self._refusal_after_crash(child, clock_s, is_silent=is_silent) from None
            except MemoryError:
                self.close()
                raise RefusedImage("too_large", "image must fit in memory; there is too little left") from None
            except BaseException:
                # An interrupt leaves the rest of a reply in the pipe.  The next request must not receive it.
                self.close()
                raise
        if "reason" in facts:
            raise RefusedImage(facts["reason"], facts["message"])
        for reads in self.recordings.active:
            reads.append(Read(path, request, facts, array))
        return facts, array

    @contextmanager
    def recording(self) -> Iterator[list[Read]]:
        """Yield a list to which everything that this thread reads inside the `with` block is added.

        A refused image is not added.
        """
        reads: list[Read] = []
        self.recordings.active.append(reads)
        try:
            yield reads
        finally:
            self.recordings.active.pop()

    def close(self) -> None:
        """End the child process, if there is one."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()
        self._close_pipes()

    def _after_fork(self) -> None:
        # In a forked process: the child belongs to the parent, and another thread may have held the lock.
        self.lock = threading.Lock()
        self._close_pipes()

    def _close_pipes(self) -> None:
        if self.child is not None:
            for pipe in (self.child.stdin, self.child.stdout):
                if pipe is not None:
                    pipe.close()
        self.child = None

    def _running_child(self) -> subprocess.Popen[bytes]:
        if self.child is not None and self.child.poll() is None:
            return self.child
        self.close()
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.child = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, **threads},
            start_new_session=True,
        )
        try:
            _receive(self.child, time.monotonic() + 120)
        except (EOFError, TimeoutError):
            self.close()
            raise ValueError(BROKEN) from None
        return self.child

    def _refusal_after_crash(self, child: subprocess.Popen[bytes], clock_s: float, *, is_silent: bool) -> RefusedImage:
        """Return the reason for which the child ended; `is_silent` means that it did not answer in time."""
        self.close()
        code = child.returncode
        if is_silent or code == -signal.SIGALRM:
            rule = f"image must be read within {clock_s:.0f} s"
            return RefusedImage("too_slow", f"{rule}; its disk or this machine took longer")
        if code == -signal.SIGPROF:
            return RefusedImage("too_slow", "image must decode within its limit of processor time; it did not")
        if code == -signal.SIGKILL:
            return RefusedImage("too_large", "image must fit in memory; the system ended its decoder")
        return RefusedImage("corrupt", f"image must decode; the decoder crashed with code {code}")


READER = Reader()
atexit.register(READER.close)


def _send(child: subprocess.Popen[bytes], message: Mapping[str, object]) -> None:
    assert child.stdin is not None
    data = json.dumps(message).encode()
    child.stdin.write(LENGTH.pack(len(data)) + data)
    child.stdin.flush()


def _receive(child: subprocess.Popen[bytes], deadline: float) -> Reply:
    (length,) = LENGTH.unpack(bytes(_read(child, LENGTH.size, deadline)))
    facts = json.loads(bytes(_read(child, length, deadline)))
    dtype, shape = np.dtype(facts.pop("dtype", "u1")), facts.pop("shape", [0])
    count = int(np.prod(shape, dtype=object)) * dtype.itemsize
    return facts, np.frombuffer(_read(child, count, deadline), dtype).reshape(shape)


def _read(child: subprocess.Popen[bytes], count: int, deadline: float) -> bytearray:
    assert child.stdout is not None
    data, fd, done = bytearray(count), child.stdout.fileno(), 0
    view = memoryview(data)
    while done < count:
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        got = os.readv(fd, [view[done:]])
        if not got:
            raise EOFError
        done += got
    return data


def _size_on_disk(path: Path) -> int:
    """Return the bytes of a file or of the files in a folder; 0 if they are not known."""
    try:
        file = path if path.exists() else path.with_name(path.name.rpartition("#")[0] or path.name)
        return sum(part.stat().st_size for part in file.iterdir()) if file.is_dir() else file.stat().st_size
    except (OSError, ValueError):
        return 0
