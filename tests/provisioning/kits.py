"""Kits for tests, made with the command in provisioning/README.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

SERVER, HOSPITALS = "server.omnifm.example", ("hospital-a", "hospital-b", "hospital-c")


def nvflare(home: Path, *args: object) -> str:
    """Run `nvflare` from the project's root; return what it printed."""
    command = [str(Path(sys.executable).parent / "nvflare"), *map(str, args)]
    env = {**os.environ, "HOME": str(home), "PYTHONPATH": "."}
    done = subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def provision(folder: Path) -> Path:
    """Make the kits of provisioning/project.yml; return their folder."""
    nvflare(folder, "provision", "-p", "provisioning/project.yml", "-w", folder)
    return folder / "omnifm/prod_00"
