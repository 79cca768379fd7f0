"""Runs one script of `../shared/cases`, which makes its own input and runs the package on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT.parent / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="the scripts of ../shared/cases are not on this machine")


def output_of(case: str, folder: Path, seconds: float = 120, name: str = "try") -> str:
    """What a script of the case whose folder begins with `case` prints, also if it fails; its files go to `folder`."""
    [script] = [*CASES.glob(f"{case}-*/{name}.py"), *CASES.glob(f"{case}-*/{name}.sh")]
    program = sys.executable if script.suffix == ".py" else "bash"
    here = os.pathsep.join([str(ROOT), str(ROOT / "custom")])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": here, "PATH": path}
    done = subprocess.run([program, script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=seconds)
    return done.stdout + done.stderr


def section(output: str, name: str) -> str:
    """The part of an output that follows the line `--- name`, up to the next such line."""
    return output.split(f"--- {name}\n")[1].split("\n--- ")[0]
