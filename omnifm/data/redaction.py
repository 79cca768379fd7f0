"""What a process says aloud: words that may name a patient are taken out of logs, warnings and last words.

Our own messages name none, by rule; a library's may quote a header or a path.  So of a library that we do not know only
its name is logged, and of an error that is not ours only its type and where in the code it was raised.
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
"""Packages, and the program itself, that keep their words, but for the site's own paths."""
DEAF = {"torch", "monai", "numpy", "transformers", "peft"}
"""Libraries that read none of a site's files: they keep their words, but for quotations and paths."""
PRIVATE: set[str] = set()
"""Folders whose paths no message may hold."""
WARNING = re.compile(
    r".*?/site-packages/(?P<package>\w+)[^:\n]*:\d+: (?P<kind>\w+): (?P<text>.*?)\s*(\n.*)?", re.DOTALL
)
QUOTED = re.compile(r"(['\"`]).*?\1|(?<!\w)/[^\s:,;)]+", re.DOTALL)


class Redactor(logging.Filter):
    """Rewrites a record before its handler sees it; what cannot be rewritten loses its words."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, redacted once."""
        if not getattr(record, "redacted", False):
            try:
                message, error = _redacted(record.name, record.getMessage()), record.exc_info
                record.exc_text = last_words(error[1]) if error and error[1] else None
            except Exception:  # noqa: BLE001 - a message that breaks its filter must not pass it
                message, record.exc_text = "redacted", None
            record.msg, record.args, record.exc_info, record.redacted = message, None, None, True
        return True


def guard() -> None:
    """For an entry point of ours: redact logs, warnings and whatever ends the process."""
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda caught: _uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)
    install()


def install(*private: Path | str) -> None:
    """Redact what the root logger's handlers write; call it again for later handlers and more folders.

    Args:
        private: folders of the site, whose paths are taken out of every message.
    """
    for folder in private:
        PRIVATE.update(name for name in (str(folder), str(Path(folder).resolve())) if len(Path(name).parts) > 1)
    for handler in (*logging.getLogger().handlers, logging.lastResort):
        if handler is not None and not any(isinstance(known, Redactor) for known in handler.filters):
            handler.addFilter(Redactor())


def words_of(error: BaseException) -> str | None:
    """What our own refusal says; None for any other error, whose words may hold anything."""
    frames = list(traceback.walk_tb(error.__traceback__))
    raised_in = str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""
    return str(error) if isinstance(error, ValueError) and raised_in.split(".")[0] == "omnifm" else None


def kind_of(error: BaseException) -> str:
    """Type of an error, and the system's words for its number, as `OSError (No space left on device)`; no others."""
    number = error.errno if isinstance(error, OSError) else None
    return type(error).__name__ + (f" ({os.strerror(number)})" if number else "")


def last_words(error: BaseException) -> str:
    """A traceback of files, lines and functions; the error's words only if they are ours."""
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
    if package in DEAF:
        return f"{kind} {QUOTED.sub('<...>', message)}".strip()
    return f"redacted: {kind or 'a message'} from {package}"


def _without_paths(message: str) -> str:
    # To the end of the line: names of files may hold spaces and quotes.
    for folder in PRIVATE:
        message = re.sub(re.escape(folder) + r"[^\n]*", "<path>", message)
    return message


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    text = kind.__name__ if error is None or issubclass(kind, KeyboardInterrupt) else last_words(error)
    print(text, file=sys.stderr)
