"""Splits and runs that go on with changed data: cases 10 and 22."""

from pathlib import Path

import pytest

from tests.cases.runner import needs_cases, output_of, section

pytestmark = [needs_cases, pytest.mark.slow]


def test_a_case_that_is_added_moves_nobody(tmp_path: Path) -> None:
    lines = output_of("22", tmp_path, name="split_moves").splitlines()
    assert lines == [f"{number} cases; moved: []" for number in range(7, 31)]


def test_one_patient_for_all_is_said_by_prepare_and_by_check(tmp_path: Path) -> None:
    same = section(output_of("10", tmp_path), "same")
    assert "all 10 cases are of one patient, so that all of them are in 'training'" in same
    assert "look at: all 10 cases name one and the same patient" in same
