"""The reading child process itself: `python -m omnifm.data.reader_process`, see `reader.py`.

Reads requests from standard input and answers on standard output until its parent is gone.
"""

import json
import logging
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from omnifm.data import decode, dicom_index
from omnifm.data.reader import LENGTH
from omnifm.data.refusal import RefusedImage
from omnifm.data.volume import Volume

SLACK_BYTES = 256 * 2**20
"""Over the budget of one image: what the interpreter and a decoder need beside the pixels."""


def answer(request: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """Do what a request asks: `what` is "image", "mask" or "header", the rest are that function's arguments."""
    path, max_bytes = Path(request["path"]), int(request["max_bytes"])
    if request["what"] == "header":
        wanted = (request["modality"], request["description"], request["exclude"])
        return dicom_index.describe(path, bytes.fromhex(request["salt"]), *wanted), np.empty(0, np.uint8)
    if request["what"] == "image":
        volume = decode.read_image(path, max_bytes, request["burned_in_text"])
        facts = {"modality": volume.modality, "vendor": volume.vendor, "frame": volume.frame}
        return {**facts, "affine": volume.affine.tolist()}, volume.array
    grid = Volume(
        np.broadcast_to(np.float32(0), request["shape"]), np.array(request["affine"]), "", "", request["frame"]
    )
    labels = None if request["labels"] is None else {int(value): name for value, name in request["labels"].items()}
    return {}, decode.read_mask(path, grid, labels, max_bytes)


def bounded(request: dict[str, Any], do: Callable[[dict[str, Any]], Any]) -> tuple[dict[str, Any], np.ndarray]:
    """What `do` answers under the request's limits; whatever is thrown becomes a refusal, Rust's panics included."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = in_use + int(request["max_bytes"]) + SLACK_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
    signal.setitimer(signal.ITIMER_PROF, float(request["seconds"]))  # the default action of both ends the process
    signal.setitimer(signal.ITIMER_REAL, float(request["clock_s"]))  # also where the parent is gone
    try:
        facts, array = do(request)
        return facts, np.ascontiguousarray(array)
    except RefusedImage as refusal:
        return {"reason": refusal.reason, "message": str(refusal)}, np.empty(0, np.uint8)
    except MemoryError:
        return {"reason": "too_large", "message": "image must fit in memory; its decoder ran out of it"}, np.empty(
            0, np.uint8
        )
    except BaseException as error:  # noqa: BLE001  # pyo3's PanicException is no Exception
        message = f"image must decode; the decoder raised {type(error).__name__}"
        return {"reason": "corrupt", "message": message}, np.empty(0, np.uint8)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _reply(out: BinaryIO, facts: dict[str, Any], array: np.ndarray) -> None:
    head = json.dumps({**facts, "dtype": array.dtype.str, "shape": array.shape}).encode()
    out.write(LENGTH.pack(len(head)) + head)
    out.write(array.reshape(-1).view(np.uint8).data)
    out.flush()


def _mute() -> BinaryIO:
    """Keep the pipe to the parent for ourselves: what libraries print goes nowhere."""
    out = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    return out


def main(do: Callable[[dict[str, Any]], Any] = answer) -> None:
    """Answer until end of file: what `do` makes of each request."""
    out, requests = _mute(), sys.stdin.buffer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold a patient's image
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # nothing a header says can make a file
    _reply(out, {}, np.empty(0, np.uint8))
    while length := requests.read(LENGTH.size):
        request = json.loads(requests.read(LENGTH.unpack(length)[0]))
        _reply(out, *bounded(request, do))


if __name__ == "__main__":
    main()
