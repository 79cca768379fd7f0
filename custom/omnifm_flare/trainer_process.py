"""The child process that trains: `python -m omnifm_flare.trainer_process`.

It reads JSON lines on stdin and answers one JSON line each on its own copy of stdout; tensors travel as checksummed
files in a private folder.  Whatever kills it costs one reply, not the federation.  It ends when its parent does.
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
from typing import Any, TextIO

from omnifm.data import redaction

logger = logging.getLogger("omnifm.trainer")


def main() -> None:
    """Serve requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not end up among the answers
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin, requests), daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s - %(levelname)s - %(message)s", stream=sys.stderr)
    warnings.filterwarnings("ignore", category=FutureWarning)
    redaction.guard()
    serve(requests, answers)


def _listen(stdin: TextIO, requests: queue.Queue[str]) -> None:
    """Hand on lines; when the parent has died or closed the pipe, end at once, even in the middle of a step."""
    for line in stdin:
        requests.put(line)
    os._exit(0)


def serve(requests: queue.Queue[str], answers: TextIO) -> None:
    """The first line says who we are, each further one names a request file and a reply file."""
    # Imported here: the listener above must run first, and these take seconds.
    _import_monai()
    from omnifm.config import Experiment, SiteConfig
    from omnifm.plugins import load_task
    from omnifm.site.stages import Site
    from omnifm.state import decode, encode, write_atomic
    from omnifm.update import Payload

    who = json.loads(requests.get())
    experiment = Experiment.from_json(Path(who["experiment"]).read_text())
    config = SiteConfig(**who["config"])
    redaction.install(config.data_root, config.state_dir)
    load_task(experiment)  # its imports too, before the first request
    site: Site | None = None
    while True:
        request = json.loads(requests.get())
        answer: dict[str, Any] = {"ok": True}
        try:
            source = Path(request["request"])
            data = source.read_bytes()
            source.unlink()
            site = site or Site(experiment, who["site"], config)
            update = site.reply(Payload.unpack(*decode(data)))
            write_atomic(Path(request["reply"]), encode(*update.pack()))
        except Exception as error:  # noqa: BLE001 - whatever it is costs one reply, not the job
            answer = {"ok": False, "reason": reason_of(error)}
            logger.error("%s: %s", who["site"], answer["reason"])
            _keep(error, Path(config.state_dir) / experiment.job / "last-error.txt")
        print(json.dumps(answer), file=answers, flush=True)


def _import_monai() -> None:
    """Import MONAI without two optional parts of it that we do not use: half of its time, at every start."""
    for name in (hidden := [name for name in ("transformers", "matplotlib") if name not in sys.modules]):
        sys.modules[name] = None  # type: ignore[assignment]
    importlib.import_module("monai")
    for name in hidden:  # whoever wants them from here on gets them
        del sys.modules[name]


def reason_of(error: Exception) -> str:
    """What may be told to others: our own refusals name no patient; of anything else type and number."""
    if (words := redaction.words_of(error)) is not None:
        return f"refused: {words}"
    return f"failed: {redaction.kind_of(error)}"


def _keep(error: Exception, file: Path) -> None:
    """The whole story for the hospital's own staff; it may name files, so it stays in the site's state folder."""
    from omnifm.state import write_atomic

    try:
        write_atomic(file, "".join(traceback.format_exception(error)).encode())
    except OSError:
        logger.warning("the state folder cannot be written; the error's details are lost")


if __name__ == "__main__":
    main()
