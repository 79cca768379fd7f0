"""Which test cases are drawn, in what order and size, and what their captions say."""

import io

import numpy as np
import pytest
from monai.data import Dataset
from PIL import Image

from omnifm.site.pictures import as_tensors, chosen, draw_cases
from omnifm.tasks.segmentation import Model, Segmentation, Settings


class Task(Segmentation):
    """Draws a case as a square of its own grey value."""

    def __init__(self, side=48):
        super().__init__(Settings(), Model())
        self.side = side

    def picture(self, forward, case):
        return np.full((self.side, 3 * self.side, 3), case, np.uint8)


def unused(batch):
    raise AssertionError("the task draws without it")


def rows(*dice):
    return [{"dice": value} for value in dice]


@pytest.mark.parametrize(
    ("dice", "positions"),
    [((), []), ((0.5,), [0]), ((0.9, 0.2), [1, 0]), ((0.5, 0.1, 0.9, 0.3, 0.7, 0.6), [1, 3, 5, 2])],
)
def test_the_worst_two_the_middle_and_the_best(dice, positions):
    assert [position for position, _ in chosen(Task(), rows(*dice))] == positions


def test_captions_say_rank_and_score():
    words = [words for _, words in chosen(Task(), rows(0.9, 0.25, None))]
    assert words == [
        "test case 1 of 3, the worst: Dice 0.250",
        "test case 2 of 3: Dice 0.900",
        "test case 3 of 3: Dice undefined",
    ]


def test_a_row_may_say_its_position():
    answers = [{"dice": 0.5, "position": 1.0}, {"dice": 0.4, "position": 0.0}]
    assert [position for position, _ in chosen(Task(), answers)] == [0, 1]


def test_small_pictures_are_enlarged_by_whole_pixels(tmp_path):
    (tmp_path / "prediction-7.png").write_bytes(b"of an earlier run")
    drawn = draw_cases(Task(), unused, Dataset([10, 20]), rows(0.9, 0.2), tmp_path)
    sizes = [Image.open(io.BytesIO(png)).size for png in drawn.values()]
    assert sizes == [(3 * 48 * 6, 48 * 6 + 48)] * 2
    assert [Image.open(tmp_path / f"prediction-{n}.png").getpixel((0, 99)) for n in (1, 2)] == [(20,) * 3, (10,) * 3]
    assert len(list(tmp_path.iterdir())) == 2
    assert as_tensors(drawn)["test case 1 of 2, the worst: Dice 0.200"].numpy().tobytes() == next(iter(drawn.values()))


def test_large_pictures_keep_their_size(tmp_path):
    (png,) = draw_cases(Task(300), unused, Dataset([10]), rows(0.9), tmp_path).values()
    assert Image.open(io.BytesIO(png)).size == (900, 350)


def test_every_panel_has_a_title_above_it(tmp_path):
    """image | reference | prediction: a strip above the picture, with letters in each third and none between them."""
    (png,) = draw_cases(Task(300), unused, Dataset([10]), rows(0.9), tmp_path).values()
    strip = np.asarray(Image.open(io.BytesIO(png)).convert("L"))[:50]
    thirds = np.split(strip.max(axis=0), 3)
    assert all(third[60:240].max() == 255 for third in thirds)
    assert not any(third[[*range(60), *range(240, 300)]].any() for third in thirds)


def test_a_task_that_draws_one_picture_has_no_strip(tmp_path):
    task = Task(300)
    task.panels = ()
    (png,) = draw_cases(task, unused, Dataset([10]), rows(0.9), tmp_path).values()
    assert Image.open(io.BytesIO(png)).size == (900, 300)
