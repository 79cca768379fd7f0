"""The child process that reads images: `python -m omnifm.data.reader_process`, started by `reader.py`.

It reads requests from standard input and replies on standard output until its parent process ends.
"""

import json
import logging
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypedDict

import numpy as np

from omnifm.data import decode, dicom, dicom_index, dicom_mosaic, header_notes
from omnifm.data.reader import LENGTH
from omnifm.data.refusal import RefusedImage, refusing
from omnifm.data.volume import BurnedIn, Volume

SLACK_BYTES = 256 * 2**20
"""Memory for the interpreter and a decoder, in addition to the budget of one image."""


class Request(TypedDict, total=False):
    """What the parent asks for; the keys after `clock_s` depend on `what`."""

    what: str
    """`image`, `series`, `mosaic`, `mask`, `notes` or `header`."""
    path: str
    max_bytes: int
    """Memory budget for the image."""
    seconds: float
    """Limit of processor time."""
    clock_s: float
    """Limit of time by the clock."""
    burned_in_text: BurnedIn
    """For `image` and `series`, as in `volume.read_volume`."""
    choice: str
    """For `series` and `mosaic`, as in `dicom.read_changed`."""
    tilt: str
    """For `series`, as in `dicom.read_changed`."""
    shape: Sequence[int]
    """For `mask`: size, affine and frame of reference of its image, and the declared labels."""
    affine: Sequence[Sequence[float]]
    frame: str
    labels: Mapping[str, str] | None
    salt: str
    """For `header`: the arguments of `dicom_index.describe`; the salt in hexadecimal digits."""
    modality: str
    description: str
    exclude: str


Answer = tuple[Mapping[str, object], np.ndarray]
"""Facts for the parent, and an array (empty if there is none)."""
EMPTY = np.empty(0, np.uint8)


def answer(request: Request) -> Answer:
    """Carry out a request."""
    path = Path(request["path"])
    match request["what"]:
        case "header":
            salt = bytes.fromhex(request["salt"])
            wanted = (request["modality"], request["description"], request["exclude"])
            return dicom_index.describe(path, salt, *wanted), EMPTY
        case "notes":
            return header_notes.notes(path), EMPTY
        case "image":
            return _described(decode.read_image(path, int(request["max_bytes"]), request["burned_in_text"]))
        case "series":
            with refusing():
                volume, changes = dicom.read_changed(
                    path, int(request["max_bytes"]), request["burned_in_text"], request["choice"], request["tilt"]
                )
            return _described(volume.with_air(), changes)
        case "mosaic":
            with refusing():
                volume = dicom_mosaic.read_one(path, int(request["max_bytes"]), request["choice"])
            return _described(volume, ["mosaic, unpacked by dcm2niix"])
        case _:
            return {}, _mask(request)


def _described(volume: Volume, changes: Sequence[str] = ()) -> Answer:
    facts = {"modality": volume.modality, "vendor": volume.vendor, "frame": volume.frame}
    return {**facts, "affine": volume.affine.tolist(), "changes": list(changes)}, volume.array


def _mask(request: Request) -> np.ndarray:
    # Only the grid of the image is known here, so its voxels are zeros that take no memory.
    zeros = np.broadcast_to(np.float32(0), tuple(request["shape"]))
    image = Volume(zeros, np.array(request["affine"]), "", "", request["frame"])
    labels = None if request["labels"] is None else {int(value): name for value, name in request["labels"].items()}
    return decode.read_mask(Path(request["path"]), image, labels, int(request["max_bytes"]))


def bounded(request: Request, do: Callable[[Request], Answer]) -> Answer:
    """Run `do` under the request's limits of memory and time.

    Any exception becomes a refusal, also a panic of a decoder that is written in Rust.
    """
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = in_use + int(request["max_bytes"]) + SLACK_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
    signal.setitimer(signal.ITIMER_PROF, float(request["seconds"]))  # when time is up, the signal ends the process
    signal.setitimer(signal.ITIMER_REAL, float(request["clock_s"]))  # also if the parent no longer exists
    try:
        facts, array = do(request)
        return facts, np.ascontiguousarray(array)
    except RefusedImage as refusal:
        return {"reason": refusal.reason, "message": str(refusal)}, EMPTY
    except MemoryError:
        return {"reason": "too_large", "message": "image must fit in memory; its decoder ran out of it"}, EMPTY
    except BaseException as error:  # noqa: BLE001  # pyo3's PanicException is no Exception
        message = f"image must decode; the decoder raised {type(error).__name__}"
        return {"reason": "corrupt", "message": message}, EMPTY
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _reply(out: BinaryIO, facts: Mapping[str, object], array: np.ndarray) -> None:
    head = json.dumps({**facts, "dtype": array.dtype.str, "shape": array.shape}).encode()
    out.write(LENGTH.pack(len(head)) + head)
    out.write(array.reshape(-1).view(np.uint8).data)
    out.flush()


def _mute() -> BinaryIO:
    """Return the pipe to the parent, and discard everything that libraries print."""
    out = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    return out


def main(do: Callable[[Request], Answer] = answer) -> None:
    """Answer requests with `do` until the parent closes the pipe."""
    out = _mute()
    requests = sys.stdin.buffer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold a patient's image
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a decoder must not write files
    _reply(out, {}, EMPTY)
    while length := requests.read(LENGTH.size):
        request = json.loads(requests.read(LENGTH.unpack(length)[0]))
        _reply(out, *bounded(request, do))


if __name__ == "__main__":
    main()
