"""Run an `omnifm` command inside the test's own process, which has loaded torch and MONAI already."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest import mock

from omnifm.cli import main


class Done(NamedTuple):
    """What a command left, with the names of `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def omnifm(*args: object) -> Done:
    """Run `omnifm ARGS`; the hooks that `main` sets for its process are left out."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["omnifm", *map(str, args)]),
        mock.patch("omnifm.data.redaction.guard"),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())
