"""Pictures of a few test cases beside their predictions, the worst among them, for the site's own staff."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from monai.data import Dataset
from PIL import Image, ImageDraw, ImageFont

from omnifm.method import Tensors
from omnifm.report.metric_names import metric_name
from omnifm.state import write_atomic
from omnifm.task import Forward, Task

SHOWN = 256
"""Smallest side of a picture in pixels; a smaller one is enlarged by a whole number, so that its pixels stay seen."""


def draw_cases(
    task: Task, forward: Forward, cases: Dataset, rows: Sequence[Mapping[str, float | None]], folder: Path
) -> dict[str, bytes]:
    """Write `prediction-1.png`, `prediction-2.png`, ... into the site's state folder, the worst case first.

    Args:
        forward: the model's prediction of a batch.
        cases: prepared test cases.
        rows: their scores, from `task.scores`.
        folder: the job's folder in the site's state folder.

    Returns:
        PNG files by caption, which says the case's rank and score.  They show cases, so only a site on synthetic demo
        data may send them.
    """
    drawn: dict[str, bytes] = {}
    for file in folder.glob("prediction-*.png"):  # an earlier run may have drawn more
        file.unlink()
    for number, (position, words) in enumerate(chosen(task, rows), start=1):
        with torch.no_grad():
            pixels = task.picture(forward, cases[position])
        drawn[words] = _png(_titled(_enlarged(Image.fromarray(pixels)), task.panels))
        write_atomic(folder / f"prediction-{number}.png", drawn[words])
    return drawn


def chosen(task: Task, rows: Sequence[Mapping[str, float | None]]) -> list[tuple[int, str]]:
    """Position and caption of the cases that are drawn: the worst two, the middle one and the best, worst first.

    Cases whose score is undefined come last.
    """
    sign = 1 if next(iter(task.metrics.values())) else -1
    scored = [(task.case_score(row), int(row.get("position", index) or 0)) for index, row in enumerate(rows)]
    scored.sort(key=lambda one: math.inf if one[0][1] is None else sign * one[0][1])
    size = len(scored)
    return [
        (scored[rank][1], _caption(*scored[rank][0], rank, size))
        for rank in sorted({0, 1, size // 2, size - 1})
        if 0 <= rank < size
    ]


def as_tensors(pictures: Mapping[str, bytes]) -> Tensors:
    """PNG files as tensors (uint8, one dimension), as `Update` carries them."""
    return {words: torch.frombuffer(bytearray(png), dtype=torch.uint8) for words, png in pictures.items()}


def _caption(name: str, value: float | None, rank: int, size: int) -> str:
    place = {0: ", the worst", size - 1: ", the best"}.get(rank, "") if size > 1 and value is not None else ""
    score = "undefined" if value is None else f"{value:.3f}"
    return f"test case {rank + 1} of {size}{place}: {metric_name(name)} {score}"


def _enlarged(picture: Image.Image) -> Image.Image:
    factor = math.ceil(SHOWN / min(picture.size))
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)


def _titled(picture: Image.Image, titles: Sequence[str]) -> Image.Image:
    """The picture with a strip above it, which holds a title for each of its equally wide panels."""
    if not titles:
        return picture
    width = picture.width / len(titles)
    font_size = min(picture.height, width) / 12
    height = int(2 * font_size)
    titled = Image.new("RGB", (picture.width, picture.height + height))
    titled.paste(picture, (0, height))
    draw = ImageDraw.Draw(titled)
    for number, title in enumerate(titles):
        draw.text((width * (number + 0.5), height / 2), title, anchor="mm", font=ImageFont.load_default(font_size))
    return titled


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
