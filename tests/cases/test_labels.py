"""Labels and masks: cases 24, 06, 09, 14 and 26."""

from pathlib import Path

import pytest

from tests.cases.runner import needs_cases, output_of

pytestmark = [needs_cases, pytest.mark.slow]


def test_masks_of_dicom_seg_are_right_whatever_the_order_of_their_frames(tmp_path: Path) -> None:
    out = output_of("09", tmp_path)
    for name in ("plain", "all frames", "frames shuffled", "subset of slices referenced", "sources reversed"):
        assert f"\n{name}: right=True" in f"\n{out}"
