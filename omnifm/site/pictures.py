"""Pictures of a few test cases beside their predictions, for the site's own staff."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from monai.data import Dataset
from PIL import Image

from omnifm.method import Tensors
from omnifm.state import write_atomic
from omnifm.task import Forward, Task

NUM_PICTURES = 3


def draw_cases(task: Task, forward: Forward, cases: Dataset, folder: Path) -> Tensors:
    """Write `prediction-1.png`, `prediction-2.png`, ... into the site's state folder.

    Args:
        forward: the model's prediction of a batch.
        cases: prepared test cases; the first three are drawn.

    Returns:
        The bytes of each PNG file (uint8, one dimension) by caption.  They show cases, so only a site on synthetic
        demo data may send them.
    """
    drawn: Tensors = {}
    for number, case in zip(range(1, NUM_PICTURES + 1), cases, strict=False):
        with torch.no_grad():
            pixels = task.picture(forward, case)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        write_atomic(folder / f"prediction-{number}.png", buffer.getvalue())
        drawn[f"test case {number}"] = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    return drawn
