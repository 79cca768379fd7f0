"""Situations of ../shared/cases about DICOM volumes, each with the right behaviour."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from tests.cases.runner import needs_cases, output_of

pytestmark = [needs_cases, pytest.mark.slow]


def run(case: str, folder: Path) -> list[str]:
    """The lines that a case prints."""
    return output_of(case, folder, seconds=600).splitlines()


def outcomes(lines: list[str]) -> dict[str, str]:
    """Name of each attempt -> what came of it: the reason of a refusal, or the line after the arrow."""
    found, reason = {}, ""
    for line in lines:
        if match := re.match(r"(?:REFUSED (\w+):|EXCEPTION (\w+))", line):
            reason = match[1] or "exception"
        elif " -> " in line:
            name, _, result = line.partition(" -> ")
            found[name] = reason if result == "None" else result
            reason = ""
    return found


def test_07_a_series_per_slice_is_one_case_per_patient(tmp_path):
    lines = run("07", tmp_path)
    assert "4 of 4 matching series prepared; left out: nothing" in lines
    (splits,) = [ast.literal_eval(line) for line in lines if line.startswith("{'training'")]
    assert sum(splits.values()) == 4


def test_11_numbers_are_compared_as_numbers(tmp_path):
    found = outcomes(run("11", tmp_path))
    whole, mixed = "(40, 32, 6)", "several_volumes"
    assert found == {
        "TE 2.46 / 2.460": whole,
        "TE 2.46 / 2.4600001": whole,
        "TI 900 / 900.0": whole,
        "b-value 0 / 0.0 (FD)": whole,
        "TE absent in one slice": mixed,
        "TE really differs": mixed,
        "ImageType value 3: M / M_FFE? (OTHER / M)": mixed,
        "FrameOfReference padded with blank": whole,
        "Echo numbers 1 / absent": mixed,
    }


def test_12_frames_of_two_kinds_are_no_volume(tmp_path):
    found = outcomes(run("12", tmp_path))
    assert found["mag_and_phase_at_different_places"] == found["mag_then_phase"] == "several_volumes"
    assert found["three_planes"] == "mixed_orientation"
    assert found["fewer_descriptions_than_frames"] == "corrupt"
    assert found["no_pixel_measures"] == "bad_geometry"
    values = [100.0, 200.0, 300.0, 400.0, 500.0, 600.0]
    assert {found[name] for name in ("plain", "reverse", "interleaved")} == {
        f"((20, 16, 6), (1.0, 1.5, 3.0), {values})"
    }
    assert found["per_frame_slope"].endswith("[100.0, 400.0, 900.0, 1600.0, 2500.0, 3600.0])")


def test_15_a_part_of_a_series_is_no_series(tmp_path):
    found = outcomes(run("15", tmp_path))
    assert found.pop("all") == "((16, 16, 40), (1.0, 1.0, 2.0))"
    for step in (0.625, 1.25):
        spacing = re.fullmatch(r"\(1\.0, 1\.0, ([\d.]+)\)", found.pop(f"{step:g} mm rounded to 0.1"))
        assert spacing is not None
        assert float(spacing[1]) == pytest.approx(step, abs=1e-3)
    assert set(found.values()) == {"missing_slices"}


def test_23_a_scout_or_screenshot_costs_no_series(tmp_path):
    text = "\n".join(run("23", tmp_path))
    parts = dict(part.split("\n", 1) for part in text.split("--- ")[1:])
    for name in ("localizer_under_same_uid", "screenshot_under_same_uid"):
        assert "3 of 3 matching series prepared; left out: 3 not_a_slice" in parts[name]
        file = "scout.dcm" if name.startswith("localizer") else "dose.dcm"
        assert len(re.findall(rf"  not_a_slice: .*/p\d/ct/{file}", parts[name])) == 3
    for name in ("latin1_said_rightly", "utf8_said_but_latin1", "nothing_said", "clutter", "suffix_CT"):
        assert "3 of 3 matching series prepared" in parts[name]
    assert "2 of 3 matching series prepared; left out: 1 beside_unreadable, 1 not_an_image" in parts["zero_byte_slice"]
    assert "-> exit code 2" in parts["no_preamble"]


def test_28_padding_does_not_change_the_contrast(tmp_path):
    padded, air = [line for line in run("28", tmp_path) if "difference" in line]
    assert padded == air
    assert padded.endswith("difference fat-muscle 0.314")


def test_31_words_say_what_happened(tmp_path):
    lines = run("31", tmp_path)
    (comma,) = [line for line in lines if "decimal comma" in line and "REFUSED" in line]
    assert "PixelSpacing must be written with a decimal point, like 0.75; it has a decimal comma" in comma
    assert any("8 slices of a SPECT reconstruction" in line and "convert it to NIfTI" in line for line in lines)


@pytest.mark.skipif(importlib.util.find_spec("dcm2niix") is None, reason="dcm2niix is not installed")
def test_33_real_series_equal_dcm2niix(tmp_path):
    """Where a CT holds padding, dcm2niix keeps the marker of -3024 HU, and the image in RAS holds air."""
    lines = [line for line in run("33", tmp_path) if " read " in line]
    padded = [line.split()[0] for line in lines if re.search(r"DIFFER \(-1\d\d\d\.0, [\d.]+, -3024\.0, ", line)]
    assert padded == ["ct_3slice_for_seg", "ct_with_rtstruct"]
    other = [line.split()[0] for line in lines if "DIFFER" in line and line.split()[0] not in padded]
    assert other == ["IM-0001-0170-0001.dcm", "vlut_04.dcm"]  # another unit of Philips; a picture without a place
    assert sum("voxels equal" in line for line in lines) == 20
    assert Path(tmp_path / "omnifm-cases").is_dir()
