"""The child process that trains: `python -m omnifm_flare.trainer_process`.

It reads one JSON object per line from stdin and writes one per line to its own copy of stdout.  Tensors travel as files
with a checksum in a private folder.  If the process is killed, the site loses one reply and takes part in the next
round.  The process ends when its parent ends.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import queue
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from omnifm.data import redaction

if TYPE_CHECKING:
    from omnifm_flare.trainer import Answer

logger = logging.getLogger("omnifm.trainer")


def main() -> None:
    """Serve requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # a library's print must not get between the answers
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_requests, args=(sys.stdin, requests), daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s - %(levelname)s - %(message)s", stream=sys.stderr)
    warnings.filterwarnings("ignore", category=FutureWarning)
    redaction.guard()
    serve(requests, answers)


def _read_requests(stdin: TextIO, requests: queue.Queue[str]) -> None:
    """Put each line into the queue.  End the process when stdin ends, even during training: the parent has ended."""
    for line in stdin:
        requests.put(line)
    os._exit(0)


def serve(requests: queue.Queue[str], answers: TextIO) -> None:
    """Answer requests for ever.

    Args:
        requests: JSON lines.  The first one is a `trainer.Identity`, each further one a `trainer.Request`.
        answers: where one `trainer.Answer` per request is written.
    """
    # Imported here: `_read_requests` must already run, and these imports take seconds.
    _import_monai()
    from omnifm.config import Experiment, SiteConfig
    from omnifm.plugins import load_task
    from omnifm.site.stages import Site
    from omnifm.state import decode, encode, write_atomic
    from omnifm.update import Payload

    identity = json.loads(requests.get())
    experiment = Experiment.from_json(Path(identity["experiment"]).read_text())
    config = SiteConfig(**identity["config"])
    redaction.install(config.data_root, config.state_dir)
    load_task(experiment)  # it imports the task's libraries, so that the first request need not wait for them
    site: Site | None = None
    while True:
        request = json.loads(requests.get())
        answer: Answer = {"ok": True}
        try:
            source = Path(request["request"])
            data = source.read_bytes()
            source.unlink()
            site = site or Site(experiment, identity["site"], config)
            update = site.reply(Payload.unpack(*decode(data)))
            write_atomic(Path(request["reply"]), encode(*update.pack()))
        except Exception as error:  # noqa: BLE001 - any error costs one reply, not the job
            reason = reason_of(error)
            answer = {"ok": False, "reason": reason}
            logger.error("%s: %s", identity["site"], reason)
            _write_details(error, Path(config.state_dir) / experiment.job / "last-error.txt")
        print(json.dumps(answer), file=answers, flush=True)


def _import_monai() -> None:
    """Import MONAI without two optional libraries that we do not use through it: they double its import time."""
    hidden = [name for name in ("transformers", "matplotlib") if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    importlib.import_module("monai")
    for name in hidden:  # from here on they can be imported as usual
        del sys.modules[name]


def reason_of(error: Exception) -> str:
    """What the server may read about an error.

    The text of our own refusals names no patient.  Of any other error only its type and the system's error text.
    """
    words = redaction.words_of(error)
    return f"failed: {redaction.kind_of(error)}" if words is None else f"refused: {words}"


def _write_details(error: Exception, file: Path) -> None:
    """Write the full traceback for the hospital's own staff.  It may hold file names, so it never leaves the site."""
    from omnifm.state import write_atomic

    try:
        write_atomic(file, "".join(traceback.format_exception(error)).encode())
    except OSError:
        logger.warning("last-error.txt cannot be written to the state folder, so the error's details are lost")


if __name__ == "__main__":
    main()
