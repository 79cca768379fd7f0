"""Every message of the commands on one page, for reading: `python -m tests.catalogue > messages.md`.

They are collected from the source: the text of every error that we raise, of every line that a command prints, and the
meaning and advice of every refusal.  `{...}` stands for a value.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

from omnifm.data.refusal import REASONS
from tests.conftest import ROOT

FOLDERS = ("omnifm", "custom/omnifm_flare", "provisioning")
SPEAKS = {
    "ValueError",
    "RefusedImage",
    "Doubt",
    "StateError",
    "RejectedUpdate",
    "TooManyRefused",
    "print",
    "warning",
    "append",
}
"""Names of errors and functions whose text people read."""


class Message(NamedTuple):
    """One text: where it is written, what says it, and what it says."""

    file: str
    line: int
    speaker: str
    text: str


def messages() -> Iterator[Message]:
    """All texts of the source, in the order of files and lines."""
    for file in sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        for node in sorted(_speaking(ast.parse(file.read_text())), key=lambda node: node.lineno):
            speaker, parts = _said_by(node)
            text = max(map(_text, parts), key=len, default="")
            if text.count(" ") > 1:
                yield Message(file.relative_to(ROOT).as_posix(), node.lineno, speaker, text)


def _speaking(tree: ast.Module) -> list[ast.Call | ast.Return | ast.Assign]:
    """Calls, return statements, and the module's own constants."""
    inside = [node for node in ast.walk(tree) if isinstance(node, ast.Call | ast.Return)]
    return [*inside, *(node for node in tree.body if isinstance(node, ast.Assign))]


def _said_by(node: ast.Call | ast.Return | ast.Assign) -> tuple[str, list[ast.expr]]:
    """What says a text, and where the text may be; nothing for a call of something that does not speak."""
    if isinstance(node, ast.Return):
        return "returned", [node.value] if node.value else []
    if isinstance(node, ast.Assign):
        return getattr(node.targets[0], "id", ""), [node.value]
    speaker = getattr(node.func, "id", getattr(node.func, "attr", ""))
    return speaker, node.args if speaker in SPEAKS else []


def _text(node: ast.expr) -> str:
    """The text of a string, with `{...}` for every value; "" for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{...}" for part in node.values)  # type: ignore[misc]
    return ""


def page() -> str:
    """The page in Markdown."""
    lines = ["# Refused images and left-out files", "", "| reason | meaning | what to do |", "|---|---|---|"]
    lines += [f"| `{name}` | {meaning} | {advice} |" for name, (meaning, advice) in REASONS.items()]
    lines += ["", "# Everything else, by file", ""]
    last = ""
    for message in messages():
        lines += ["", f"## {message.file}", ""] if message.file != last else []
        lines.append(f"- {message.speaker}, line {message.line}: {message.text}")
        last = message.file
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
