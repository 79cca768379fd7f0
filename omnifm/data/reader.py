"""The reading child process, seen from the parent: a hostile file costs one refusal, not the machine.

Decoders are native code fed with whatever a disk holds.  They run in one child process per parent, started on first
use and again after a death, under a limit of memory and time, without the right to write files, and mute: what a
library prints about a header stays in there.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from omnifm.data.refusal import RefusedImage

SECONDS = 10.0
"""Processor time for one image, plus a second per MiB that it takes on disk; past it the child ends itself."""
CLOCK_S = 100.0
"""On the clock an image has this long at least, for a busy machine or a slow disk; then, too, the child ends itself."""
GRACE_S = 5.0
"""The parent kills a child that cannot end itself after this much longer."""
COMMAND = (sys.executable, "-P", "-m", "omnifm.data.reader_process")
"""-P: a file in the working directory must never pass for a library."""
BROKEN = "the reading process must start; it did not: `python -m omnifm.data.reader_process` shows why"
LENGTH = struct.Struct("<Q")
Reply = tuple[dict[str, Any], Shaped[np.ndarray, "..."]]


class Reader:
    """One child process that reads for the threads of this process, one image at a time; a fork gets its own.

    Attributes:
        command: starts the child.
    """

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self.command = command
        self.lock = threading.Lock()
        self.child: subprocess.Popen[bytes] | None = None
        os.register_at_fork(after_in_child=self._forget)

    def ask(self, path: Path, seconds: float | None = None, **request: Any) -> Reply:
        """Let the child read `path`.

        Args:
            path: file or folder.
            seconds: limit of processor time; by default from the size on disk.
            request: what to do, as `reader_process.answer` takes it.

        Returns:
            the facts of the reply and its array.

        Raises:
            RefusedImage: the file's fault, the child's death included.
            ValueError: the child cannot be started, which is no file's fault.
        """
        seconds = SECONDS + _size_on_disk(path) / 2**20 if seconds is None else seconds
        clock_s = max(CLOCK_S, seconds)
        with self.lock:
            child = self._started()
            try:
                _send(child, {**request, "path": str(path), "seconds": seconds, "clock_s": clock_s})
                facts, array = _receive(child, time.monotonic() + clock_s + GRACE_S)
            except (EOFError, BrokenPipeError, TimeoutError) as error:
                raise self._refusal_of_dead_child(child, clock_s, silent=isinstance(error, TimeoutError)) from None
            except MemoryError:
                self.close()
                raise RefusedImage("too_large", "image must fit in memory; there is too little left") from None
            except BaseException:  # an interrupt half-way: what is left in the pipe answers no later question
                self.close()
                raise
        if "reason" in facts:
            raise RefusedImage(facts["reason"], facts["message"])
        return facts, array

    def close(self) -> None:
        """End the child, if there is one."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()
        self._let_go()

    def _forget(self) -> None:
        # In a fork: the child is the parent's, and another thread may have held the lock.
        self.lock = threading.Lock()
        self._let_go()

    def _let_go(self) -> None:
        if self.child is not None:
            for pipe in (self.child.stdin, self.child.stdout):
                if pipe is not None:
                    pipe.close()
        self.child = None

    def _started(self) -> subprocess.Popen[bytes]:
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

    def _refusal_of_dead_child(self, child: subprocess.Popen[bytes], clock_s: float, *, silent: bool) -> RefusedImage:
        """What the child's death says about the file; `silent`: it outstayed its time."""
        self.close()
        code = child.returncode
        if silent or code == -signal.SIGALRM:
            rule = f"image must be read within {clock_s:.0f} s"
            return RefusedImage("too_slow", f"{rule}; its disk or this machine took longer")
        if code == -signal.SIGPROF:
            return RefusedImage("too_slow", "image must decode within its limit of processor time; it did not")
        if code == -signal.SIGKILL:
            return RefusedImage("too_large", "image must fit in memory; the system ended its decoder")
        return RefusedImage("corrupt", f"image must decode; the decoder crashed with code {code}")


READER = Reader()
atexit.register(READER.close)


def _send(child: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
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
    """Bytes of a file or of the files in a folder; 0 where it cannot be told."""
    try:
        file = path if path.exists() else path.with_name(path.name.rpartition("#")[0] or path.name)
        return sum(part.stat().st_size for part in file.iterdir()) if file.is_dir() else file.stat().st_size
    except (OSError, ValueError):
        return 0
