"""Takes text that may name a patient out of logs, warnings and the error that ends a process.

Our own messages never name a patient.  A library's message may quote a header or a path.  For a library that we do not
know, only its name is logged.  For an error that we did not raise, only its type and its place in the code are logged.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType

OURS = {"omnifm", "omnifm_flare", "nvflare", "__main__"}
"""Packages whose messages are kept, without the site's paths; `__main__` is the program that was started."""
READ_NO_FILES = {"torch", "monai", "numpy", "transformers", "peft"}
"""Libraries that read none of a site's files: their messages are kept, without quoted text and paths."""
PRIVATE: set[str] = set()
"""The site's folders: no message may hold a path in them."""
WARNING = re.compile(
    r".*?/site-packages/(?P<package>\w+)[^:\n]*:\d+: (?P<kind>\w+): (?P<text>.*?)\s*(\n.*)?", re.DOTALL
)
QUOTED = re.compile(r"(['\"`]).*?\1|(?<!\w)/[^\s:,;)]+", re.DOTALL)


class Redactor(logging.Filter):
    """Rewrites a log record before a handler writes it.  A record that cannot be rewritten becomes "redacted"."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record unless that is done already, and let it pass."""
        if not getattr(record, "redacted", False):
            try:
                message = _redacted(record.name, record.getMessage())
                error = record.exc_info[1] if record.exc_info else None
                record.exc_text = traceback_of(error) if error else None
            except Exception:  # noqa: BLE001 - a message that makes redaction fail must not be written
                message = "redacted"
                record.exc_text = None
            record.msg = message
            record.args = None
            record.exc_info = None
            record.redacted = True
        return True


def guard() -> None:
    """Redact logs, warnings and uncaught errors of this process; every entry point of ours calls it first."""
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda caught: _uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)
    install()


def install(*private: Path | str) -> None:
    """Redact what the root logger's handlers write.  Call it again after handlers were added, or for more folders.

    Args:
        private: folders of the site; paths in them are taken out of every message.
    """
    for folder in private:
        PRIVATE.update(name for name in (str(folder), str(Path(folder).resolve())) if len(Path(name).parts) > 1)
    for handler in (*logging.getLogger().handlers, logging.lastResort):
        if handler is not None and not any(isinstance(known, Redactor) for known in handler.filters):
            handler.addFilter(Redactor())


def words_of(error: BaseException) -> str | None:
    """The message of a `ValueError` that our code raised; None for any other error, whose message may hold anything."""
    frames = list(traceback.walk_tb(error.__traceback__))
    raised_in = str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""
    return str(error) if isinstance(error, ValueError) and raised_in.split(".")[0] == "omnifm" else None


def kind_of(error: BaseException) -> str:
    """Type of an error, and the operating system's text for its number, without the error's own message.

    >>> kind_of(FileNotFoundError(2, "No such file", "/data/smith.nii"))
    'FileNotFoundError (No such file or directory)'
    """
    number = error.errno if isinstance(error, OSError) else None
    return type(error).__name__ + (f" ({os.strerror(number)})" if number else "")


def traceback_of(error: BaseException) -> str:
    """A traceback of files, lines and functions; the error's message is in it only if our code raised it."""
    frames = [
        f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}'
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    words = words_of(error)
    last = type(error).__name__ if words is None else f"{type(error).__name__}: {words}"
    return _without_paths("\n".join([*frames, last]))


def _redacted(name: str, message: str) -> str:
    package, kind = name.partition(".")[0], ""
    if name == "py.warnings":
        found = WARNING.fullmatch(message)
        package, kind, message = found.group("package", "kind", "text") if found else ("unknown", "Warning", "")
    if package in OURS:
        return _without_paths(f"{kind} {message}".strip())
    if package in READ_NO_FILES:
        return f"{kind} {QUOTED.sub('<...>', message)}".strip()
    return f"redacted: {kind or 'a message'} from {package}"


def _without_paths(message: str) -> str:
    # Up to the end of the line, since names of files may hold spaces and quotes.
    for folder in PRIVATE:
        message = re.sub(re.escape(folder) + r"[^\n]*", "<path>", message)
    return message


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt):
        print(kind.__name__, file=sys.stderr)
    else:
        print(traceback_of(error), file=sys.stderr)
