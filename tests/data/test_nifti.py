import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from omnifm.data.refusal import RefusedImage
from omnifm.data.volume import read_volume

ARRAY = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
AFFINE = np.array([[2, 0, 0, -5], [0, -3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1.0]])


def blob(array: np.ndarray = ARRAY, kind=nibabel.Nifti1Image, **fields: object) -> bytes:
    """A NIfTI file as bytes, header fields overwritten without nibabel's own checks."""
    image = kind(array, AFFINE)
    raw = bytearray(image.to_bytes())
    header = type(image.header)(bytes(raw[: image.header.template_dtype.itemsize]), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[: len(header.binaryblock)] = header.binaryblock
    return bytes(raw)


def write(folder: Path, content: bytes, *, zipped: bool = False) -> Path:
    path = folder / ("a.nii.gz" if zipped else "a.nii")
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


def refused(reason: str, match: str | None = None):
    return pytest.raises(RefusedImage, match=match, check=lambda error: error.reason == reason)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i2", "<i2", ">i2", "i4", "f4", "f8"])
def test_every_real_type_equals_its_numbers(tmp_path, dtype, kind, zipped):
    volume = read_volume(write(tmp_path, blob(ARRAY.astype(dtype), kind), zipped=zipped))
    np.testing.assert_array_equal(volume.array, ARRAY)
    np.testing.assert_allclose(volume.affine, AFFINE)
    assert volume.array.dtype == np.float32


def test_big_endian_header(tmp_path):
    image = nibabel.Nifti1Image(ARRAY, AFFINE, nibabel.Nifti1Header(endianness=">"))
    np.testing.assert_array_equal(read_volume(write(tmp_path, image.to_bytes())).array, ARRAY)


def test_slope_and_intercept_golden(tmp_path):
    volume = read_volume(write(tmp_path, blob(scl_slope=0.5, scl_inter=-1000.0)))
    np.testing.assert_array_equal(volume.array, ARRAY * 0.5 - 1000)


def test_slope_zero_means_not_scaled(tmp_path):
    volume = read_volume(write(tmp_path, blob(scl_slope=0.0, scl_inter=7.0)))
    np.testing.assert_array_equal(volume.array, ARRAY)


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_units_become_mm(tmp_path, unit, factor):
    image = nibabel.Nifti1Image(ARRAY, np.diag([0.05, 0.05, 0.05, 1]))
    image.header["xyzt_units"] = unit
    if unit == 3:
        image.set_sform(np.diag([50, 50, 50, 1.0]), 1)
    spacing = read_volume(write(tmp_path, image.to_bytes())).spacing_mm
    assert spacing == pytest.approx([(50 if unit == 3 else 0.05) * factor] * 3)


def test_sform_comes_before_qform_and_qform_before_nothing(tmp_path):
    image = nibabel.Nifti1Image(ARRAY, AFFINE)
    image.set_qform(np.diag([9.0, 9, 9, 1]), 1)
    np.testing.assert_allclose(read_volume(write(tmp_path, image.to_bytes())).affine, AFFINE)
    image.set_sform(None, 0)
    assert read_volume(write(tmp_path, image.to_bytes())).spacing_mm == pytest.approx((9, 9, 9))


def test_flat_dimensions(tmp_path):
    assert read_volume(write(tmp_path, blob(ARRAY[:, :, 0]))).array.shape == (2, 3, 1)
    assert read_volume(write(tmp_path, blob(ARRAY[..., None]))).array.shape == (2, 3, 4)


def test_rgb24(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (2, 3, 4, 3)).astype("u1")
    structured = np.ascontiguousarray(colours).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    volume = read_volume(write(tmp_path, blob(structured)))
    np.testing.assert_array_equal(volume.array, colours)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dim": [3, -2, 3, 4, 1, 1, 1, 1]}, "bad_geometry"),
        ({"dim": [3, 0, 3, 4, 1, 1, 1, 1]}, "bad_geometry"),
        ({"dim": [9, 2, 3, 4, 1, 1, 1, 1]}, "bad_geometry"),
        ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "too_large"),
        ({"dim": [3, 2, 3, 5, 1, 1, 1, 1]}, "truncated"),
        ({"dim": [3, 2, 3, 3, 1, 1, 1, 1]}, "truncated"),
        ({"dim": [4, 2, 3, 2, 2, 1, 1, 1]}, "several_volumes"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "bad_geometry"),
        ({"srow_x": [0, 0, 0, 0]}, "bad_geometry"),
        ({"srow_x": [0, -3, 0, 0], "srow_y": [0, -3, 0, 0]}, "bad_geometry"),
        ({"srow_x": [1e6, 0, 0, 0]}, "bad_geometry"),
        ({"sform_code": 0, "qform_code": 0}, "bad_geometry"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 5.0}, "bad_geometry"),
        ({"xyzt_units": 5}, "bad_geometry"),
        ({"scl_slope": np.inf}, "non_finite"),
        ({"scl_slope": 1.0, "scl_inter": np.nan}, "non_finite"),
        ({"datatype": 999}, "unsupported_format"),
        ({"datatype": 32, "bitpix": 64}, "unsupported_format"),
        ({"datatype": 16}, "corrupt"),
        ({"vox_offset": np.nan}, "corrupt"),
        ({"vox_offset": 1e30}, "corrupt"),
        ({"vox_offset": 0}, "corrupt"),
        ({"magic": b"ni1"}, "not_an_image"),
        ({"sizeof_hdr": 7}, "not_an_image"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_refuses_a_header_that_lies(tmp_path, fields, reason, zipped):
    with refused(reason):
        read_volume(write(tmp_path, blob(**fields), zipped=zipped))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_refuses_what_is_not_finite_as_float32(tmp_path, value):
    array = ARRAY.astype(np.float64)
    array[1, 1, 1] = value
    with refused("non_finite"):
        read_volume(write(tmp_path, blob(array)))


@pytest.mark.parametrize("length", [0, 3, 100, 347, 351, 352, 399])
def test_refuses_a_cut_file(tmp_path, length):
    with refused("truncated"):
        read_volume(write(tmp_path, blob()[:length]))


def test_refuses_a_cut_or_spoilt_gzip(tmp_path):
    path = write(tmp_path, blob(), zipped=True)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with refused("truncated"):
        read_volume(path)
    path.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])  # the checksum
    with refused("corrupt"):
        read_volume(path)


def test_the_budget_counts_before_reading(tmp_path):
    path = write(tmp_path, blob())
    read_volume(path, max_bytes=24 * 6)  # 24 voxels of 2 bytes, and 4 more as float32
    with refused("too_large", "must fit in 0 MiB"):
        read_volume(path, max_bytes=24 * 6 - 1)


def test_mutants_give_finite_volumes_or_refusals(tmp_path):
    random = np.random.default_rng(0)
    whole = blob(random.normal(size=(2, 3, 4)).astype(np.float32))
    outcomes = set()
    for _ in range(400):
        mutant = bytearray(whole)
        for _ in range(random.integers(1, 5)):
            mutant[random.integers(0, 352)] = random.integers(0, 256)
        try:
            volume = read_volume(write(tmp_path, bytes(mutant)))
            assert np.isfinite(volume.array).all()
            assert np.isfinite(volume.in_ras().affine).all()
            outcomes.add("read")
        except RefusedImage as refusal:
            outcomes.add(refusal.reason)
    assert {"read", "truncated", "bad_geometry"} <= outcomes
