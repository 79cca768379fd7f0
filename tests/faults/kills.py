"""Kill a process again and again while it writes checkpoints: `python -m tests.faults.kills --kills 200`.

The killed children are forks of one process that has imported everything, so that a kill takes milliseconds.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import torch

from omnifm.state import History


def main() -> None:
    """Print what was found; exit code 0 if the newest or the one before could be read after every kill."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--kib", type=int, default=512, help="size of a checkpoint")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="omnifm-kills-") as folder:
        unreadable, torn = run(Path(folder), asked.kills, {"w": torch.zeros(asked.kib * 256)})
    print(f"{asked.kills} kills, {torn} inside a write, {unreadable} without a readable checkpoint")
    parser.exit(int(unreadable > 0))


def run(folder: Path, kills: int, tensors: dict[str, torch.Tensor]) -> tuple[int, int]:
    """(kills after which nothing could be read, kills that tore a write)."""
    history, rng, unreadable, torn = History(folder, "server", keep=2), random.Random(0), 0, 0
    history.save(0, tensors, {})
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            number = history.rounds()[-1]
            while True:
                number += 1
                history.save(number, tensors, {"round": number})
        time.sleep(rng.uniform(0.005, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        torn += any(folder.glob(".server.*"))
        unreadable += history.load() is None
    return unreadable, torn


if __name__ == "__main__":
    main()
