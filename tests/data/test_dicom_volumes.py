"""One volume of several in a series: listed without a choice, and equal to its own slices with one."""

import re
from pathlib import Path

import numpy as np
import pytest

from omnifm.data import dicom
from omnifm.data.dicom_volumes import check_choice
from omnifm.data.volume import MAX_BYTES, Volume
from tests.data.test_dicom import PIXELS, image, refused, write
from tests.data.test_dicom_geometry import enhanced


def chosen(path: Path, choice: str) -> Volume:
    return dicom.read_changed(path, MAX_BYTES, "none", choice)[0]


def write_all(folder: Path, volumes: list[dict[str, object]], places: int = 3) -> Path:
    """Slices of several volumes at the same places; the pixels of volume k are PIXELS + 100 k + place."""
    number = 0
    for k, changes in enumerate(volumes):
        for place in range(places):
            number += 1
            ds = image(PIXELS + 100 * k + place, ImagePositionPatient=[0, 0, 4 * place], InstanceNumber=number)
            for keyword, value in changes.items():
                setattr(ds, keyword, value)
            write(folder / f"{(7 * number) % 100:03d}.dcm", ds)
    return folder


B_VALUES = [{"DiffusionBValue": 0.0}, {"DiffusionBValue": 500.0}, {"DiffusionBValue": 1000.0}]
ECHOES = [{"EchoTime": "2.46", "EchoNumbers": 1}, {"EchoTime": "4.92", "EchoNumbers": 2}]
TIMES = [{"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}, {"TemporalPositionIdentifier": 3}]
DIRECTIONS = [{"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}, {"DiffusionBValue": 1000.0}]


class TestChoice:
    @pytest.mark.parametrize(
        ("volumes", "listed", "choices"),
        [
            (B_VALUES, "3 volumes: b=0, b=500, b=1000", {"first": 0, "b=0": 0, "b=500": 1, "b=1000": 2}),
            (ECHOES, "2 volumes: echo=1, echo=2", {"first": 0, "echo=1": 0, "echo=2": 1}),
            ([{"EchoTime": "2.46"}, {"EchoTime": "4.92"}], "2 volumes: echo=1, echo=2", {"echo=2": 1}),
            (TIMES, "3 volumes: time=1, time=2, time=3", {"first": 0, "time=3": 2}),
            ([{}, {}], "2 volumes: time=1, time=2", {"time=2": 1}),
            (DIRECTIONS, "3 volumes: b=0 time=1, b=1000 time=1, b=1000 time=2", {"b=0": 0, "b=1000 time=2": 2}),
        ],
    )
    def test_chooses_the_slices_of_one_volume(self, tmp_path, volumes, listed, choices):
        folder = write_all(tmp_path / "s", volumes)
        with refused("several_volumes", re.escape(f"this series holds {listed}. Choose one with --volume")):
            chosen(folder, "")
        for choice, k in choices.items():
            expected = np.stack([(PIXELS + 100 * k + place).T for place in range(3)], axis=-1)
            np.testing.assert_array_equal(chosen(folder, choice).array, expected)

    def test_refuses_a_choice_that_fits_none_or_more_than_one(self, tmp_path):
        folder = write_all(tmp_path / "s", DIRECTIONS)
        for choice, number in {"b=1000": 2, "b=700": 0, "echo=1": 0}.items():
            with refused("several_volumes", f"{choice} must choose one volume; it fits {number}"):
                chosen(folder, choice)

    def test_a_series_of_one_volume_is_the_first(self, tmp_path):
        folder = write_all(tmp_path / "s", B_VALUES[2:])
        assert chosen(folder, "first").array.shape == chosen(folder, "b=1000").array.shape == (4, 3, 3)
        with refused("several_volumes", "this series is one"):
            chosen(folder, "b=500")

    def test_frames_of_one_file_are_chosen_too(self, tmp_path):
        path = write(tmp_path / "a.dcm", enhanced([0, 4, 0, 4], [1, 1, 2, 2], slope=lambda frame: 1.0 + frame))
        expected = np.stack([((PIXELS + f) * (1.0 + f) + 10).T for f in (3, 2)], axis=-1)
        np.testing.assert_array_equal(chosen(path, "time=2").array, expected)

    @pytest.mark.parametrize("choice", ["b=", "b=-1", "te=2", "second", "b=1;rm", "first b=0"])
    def test_refuses_what_is_no_choice(self, choice):
        with pytest.raises(ValueError, match="volume must be first, b=NUMBER"):
            check_choice(choice)


class TestRefusals:
    def test_a_volume_that_lacks_a_slice(self, tmp_path):
        folder = write_all(tmp_path / "s", TIMES)
        next(folder.iterdir()).unlink()
        with refused("several_volumes", "8 slices at 3 places, 2 to 3 at each: some are missing"):
            chosen(folder, "first")

    def test_two_losses_that_even_out(self, tmp_path):
        """Each place holds two slices, but of b = 0 and 500, of b = 0 and 1000, of b = 500 and 1000."""
        folder = write_all(tmp_path / "s", B_VALUES)
        for number in (7, 5, 3):  # volume 2 at place 0, volume 1 at place 1, volume 0 at place 2
            (folder / f"{(7 * number) % 100:03d}.dcm").unlink()
        for choice in ("", "first"):
            with refused("several_volumes", "slices of each volume of a series must agree in b value"):
                chosen(folder, choice)

    def test_two_kinds_of_image_are_not_two_times(self, tmp_path):
        kinds = [{"ImageType": ["ORIGINAL", "PRIMARY", kind]} for kind in "MP"]
        with refused("several_volumes", "must agree in ImageType"):
            chosen(write_all(tmp_path / "s", kinds), "first")

    def test_slices_in_no_order(self, tmp_path):
        folder = write_all(tmp_path / "s", [{"InstanceNumber": None}, {"InstanceNumber": None}])
        with refused("several_volumes", "must differ in echo, b value, time or number"):
            chosen(folder, "first")

    def test_one_place_over_time_is_no_volume(self, tmp_path):
        with refused("several_volumes", "it is one slice over time"):
            chosen(write_all(tmp_path / "s", TIMES, places=1), "first")
