"""Marker values: whatever their form, what a task sees is as if the scanner had stored air."""

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from omnifm.data.volume import AIR_HU
from tests.data.test_dicom import image, picture, read, write, write_series

BODY = np.array([[20, 30, 40, 50], [25, 35, 45, 55], [60, 70, 80, 90]])


def padded(dtype: str, marker: int, declared: int, vr: str, **changes: object) -> Dataset:
    """A section whose first pixel holds the marker, and whose header declares a marker."""
    pixels = BODY.astype(dtype)
    pixels[0, 0] = np.array(marker).astype(dtype)
    ds = image(pixels, **changes)
    ds.add_new("PixelPaddingValue", vr, declared)
    return ds


CT = {"Modality": "CT", "SOPClassUID": uid.CTImageStorage, "RescaleSlope": 1, "RescaleIntercept": -1024}


def seen(volume: object) -> np.ndarray:
    """Rows and columns of the first slice as a task sees them (the axes of this section are turned for RAS)."""
    return volume.in_ras().array[::-1, ::-1, 0].T


class TestPadding:
    @pytest.mark.parametrize(
        ("dtype", "marker", "declared", "vr"),
        [
            ("i2", -2000, -2000, "SS"),
            ("i2", -2000, 63536, "US"),
            ("u2", 63536, 63536, "US"),
            ("u2", 63536, -2000, "SS"),
            ("u2", 0, 0, "US"),
            ("u2", 5, 5, "US"),
            ("i2", 32767, 32767, "SS"),
        ],
    )
    def test_a_marker_in_any_form_is_air_in_ct(self, tmp_path, dtype, marker, declared, vr):
        for name, syntax in {"explicit": uid.ExplicitVRLittleEndian, "implicit": uid.ImplicitVRLittleEndian}.items():
            path = write(tmp_path / f"{name}.dcm", padded(dtype, marker, declared, vr, **CT), syntax)
            expected = BODY - 1024.0
            expected[0, 0] = AIR_HU
            np.testing.assert_array_equal(seen(read(path)), expected)

    def test_a_range_of_markers(self, tmp_path):
        """From the value to the limit, whichever of the two is larger."""
        for value, limit in [(30, 40), (40, 30)]:
            ds = padded("u2", 20, value, "US", **CT)
            ds.add_new("PixelPaddingRangeLimit", "US", limit)
            found = seen(read(write(tmp_path / f"{value}.dcm", ds)))
            np.testing.assert_array_equal(found == AIR_HU, (BODY >= 30) & (BODY <= 40))

    def test_every_slice_has_its_own_marker_and_slope(self, tmp_path):
        slices = {**CT, "RescaleSlope": lambda z: 1 + z, "PixelPaddingValue": lambda z: z}
        array = read(write_series(tmp_path / "s", **slices)).array
        np.testing.assert_array_equal(array[0, 0], [AIR_HU] * 4)  # stored as 0, 1, 2, 3
        np.testing.assert_array_equal(array[1, 0], [(1 + z) * (1 + z) - 1024 for z in range(4)])

    @pytest.mark.parametrize("marker", [-32768, 32767])
    def test_in_mr_a_marker_is_no_signal(self, tmp_path, marker):
        volume = read(write(tmp_path / "a.dcm", padded("i2", marker, marker, "SS")))
        assert volume.array[0, 0, 0] == 0
        assert volume.array.max() == 90

    def test_in_an_x_ray_it_is_the_smallest_value_after_mirroring(self, tmp_path):
        pixels = BODY.astype(np.uint16)
        pixels[0, 0] = 0  # white in MONOCHROME1
        ds = picture(pixels, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
        ds.add_new("PixelPaddingValue", "US", 0)
        volume = read(write(tmp_path / "a.dcm", ds))
        assert volume.array[0, 0, 0] == volume.array.min() == 4095 - 90

    def test_float_pixels_have_a_marker_of_their_own(self, tmp_path):
        pixels = BODY.astype(np.float32)
        pixels[0, 0] = -1e9
        ds = image(pixels, PixelData=None, BitsStored=None, HighBit=None, PixelRepresentation=None)
        ds.FloatPixelData, ds.FloatPixelPaddingValue = pixels.tobytes(), -1e9
        assert read(write(tmp_path / "a.dcm", ds)).array[0, 0, 0] == 0

    @pytest.mark.parametrize("stored", [-2000, -1, -500])
    def test_below_the_smallest_hounsfield_unit_is_air_though_nothing_is_declared(self, tmp_path, stored):
        pixels = BODY.astype(np.int16)
        pixels[0, 0] = stored
        assert seen(read(write(tmp_path / "a.dcm", image(pixels, **CT))))[0, 0] == AIR_HU
        assert read(write(tmp_path / "b.dcm", image(pixels))).in_ras().array.min() == stored  # MR has no such limit
