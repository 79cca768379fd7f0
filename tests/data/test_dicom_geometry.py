"""Where slices lie: each against the arithmetic of its own header, and every way of not being one volume."""

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tests.data.test_dicom import PIXELS, image, picture, read, refused, series, write, write_series

TURN = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
ROW, COLUMN = TURN[:, 0], TURN[:, 1]
NORMAL = np.cross(ROW, COLUMN)
ORIGIN = np.array([10.0, -20.0, 30.0])


def oblique(z: int) -> list[float]:
    return [round(mm, 6) for mm in (ORIGIN + 4 * z * NORMAL).tolist()]


TURNED = {"ImageOrientationPatient": [round(part, 6) for part in [*ROW, *COLUMN]], "ImagePositionPatient": oblique}


class TestPlace:
    def test_every_voxel_lies_where_its_header_says(self, tmp_path):
        """DICOM PS3.3 C.7.6.2.1.1: P = S + i * column spacing * row direction + j * row spacing * column direction."""
        volume = read(write_series(tmp_path / "s", **TURNED))
        for x, y, z in [(0, 0, 0), (3, 0, 1), (1, 2, 3)]:
            lps = ORIGIN + 4 * z * NORMAL + x * 3 * ROW + y * 2 * COLUMN
            np.testing.assert_allclose(volume.affine @ [x, y, z, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-4)
            assert volume.array[x, y, z] == PIXELS[y, x] + z

    def test_order_is_by_position_never_by_number_or_name(self, tmp_path):
        straight = read(write_series(tmp_path / "a", **TURNED))
        slices = series(**TURNED)
        for name, index in enumerate([2, 0, 3, 1]):
            slices[index].InstanceNumber = 10 - index
            write(tmp_path / f"b/{name}.dcm", slices[index])
        shuffled = read(tmp_path / "b")
        np.testing.assert_array_equal(shuffled.array, straight.array)
        np.testing.assert_array_equal(shuffled.affine, straight.affine)

    def test_rounded_positions_are_regular(self, tmp_path):
        volume = read(write_series(tmp_path / "s", num=9, ImagePositionPatient=lambda z: [0, 0, round(0.625 * z, 2)]))
        assert volume.spacing_mm == pytest.approx((3, 2, 0.625), abs=1e-3)

    def test_a_small_tilt_is_kept_in_the_affine(self, tmp_path):
        shift = 4 * np.tan(np.radians(0.3))
        volume = read(write_series(tmp_path / "s", ImagePositionPatient=lambda z: [0, round(shift * z, 4), 4 * z]))
        np.testing.assert_allclose(volume.affine[:3, 2], [0, -shift, 4], atol=1e-4)

    @pytest.mark.parametrize(
        ("thickness", "between", "expected"), [(5, None, 5), (5, 6, 6), (None, None, 1), (650, None, 1), (0, None, 1)]
    )
    def test_a_single_slice_is_as_thick_as_its_header_says(self, tmp_path, thickness, between, expected):
        changes = {} if between is None else {"SpacingBetweenSlices": between}
        path = write(tmp_path / "a.dcm", image(SliceThickness=thickness, **changes))
        assert read(path).spacing_mm == (3, 2, expected)

    @pytest.mark.parametrize(
        ("changes", "diagonal"),
        [
            ({}, (1, 1)),
            ({"PixelSpacing": [0.2, 0.3]}, (0.3, 0.2)),
            ({"ImagerPixelSpacing": [0.2, 0.3]}, (0.3, 0.2)),
            ({"PixelSpacing": [0.5, 0.5], "ImagerPixelSpacing": [0.2, 0.3]}, (0.5, 0.5)),
        ],
    )
    def test_a_picture_lies_as_a_png_does(self, tmp_path, changes, diagonal):
        volume = read(write(tmp_path / "a.dcm", picture(**changes)))
        np.testing.assert_allclose(volume.affine, np.diag([*diagonal, 1, 1]))
        np.testing.assert_array_equal(volume.array[:, :, 0].T, PIXELS)


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"ImageOrientationPatient": lambda z: [1, 0, 0, 0, *((1, 0) if z else (0, 1))]}, "mixed_orientation"),
            ({"ImagePositionPatient": lambda z: [0, 0, [0, 4, 9, 12][z]]}, "irregular_spacing"),
            ({"ImagePositionPatient": lambda z: [0, 2 if z == 1 else 0, 4 * z]}, "irregular_spacing"),
            ({"ImagePositionPatient": lambda z: [0, 0, [0, 4, 8, 16][z]]}, "missing_slices"),
            ({"ImagePositionPatient": lambda z: [0, 0, [0, 4, 16, 20][z]]}, "missing_slices"),
            ({"ImagePositionPatient": lambda z: [0, 0, [0, 4, 8, 8][z]]}, "duplicate_slices"),
            ({"SOPInstanceUID": "1.2.3", "ImagePositionPatient": lambda z: [0, 0, z // 2]}, "duplicate_slices"),
            ({"ImagePositionPatient": lambda z: [0, 0, z // 2]}, "several_volumes"),
            ({"ImagePositionPatient": [0, 0, 0]}, "several_volumes"),
            ({"ImagePositionPatient": lambda z: [0, z, 4 * z]}, "gantry_tilt"),
            ({"SeriesInstanceUID": lambda z: f"1.2.{z}"}, "several_volumes"),
            ({"FrameOfReferenceUID": lambda z: f"1.2.{z}"}, "several_volumes"),
            ({"EchoTime": lambda z: 10 + z % 2}, "several_volumes"),
            ({"EchoNumbers": lambda z: 1 + z % 2}, "several_volumes"),
            ({"InversionTime": lambda z: 10 + z % 2}, "several_volumes"),
            ({"TemporalPositionIdentifier": lambda z: 1 + z % 2}, "several_volumes"),
            ({"DiffusionBValue": lambda z: 1000.0 * (z % 2)}, "several_volumes"),
            ({"ImageType": lambda z: ["ORIGINAL", "PRIMARY", "MP"[z % 2]]}, "several_volumes"),
            ({"PixelSpacing": lambda z: [2, 3 + 0.1 * z]}, "bad_geometry"),
            ({"PixelSpacing": None}, "bad_geometry"),
            ({"PixelSpacing": [0, 3]}, "bad_geometry"),
            ({"PixelSpacing": [2, 3, 4]}, "corrupt"),
            ({"ImagePositionPatient": lambda z: [0, 0, 200 * z]}, "bad_geometry"),
            ({"ImageOrientationPatient": [1, 0, 0, 0.6, 0.8, 0]}, "bad_geometry"),
            ({"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]}, "bad_geometry"),
            ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "bad_geometry"),
            ({"ImagePositionPatient": None}, "bad_geometry"),
        ],
    )
    def test_refuses_what_is_not_one_regular_volume(self, tmp_path, changes, reason):
        folder = write_series(tmp_path / "s", **changes)
        with refused(reason):
            read(folder)

    def test_refuses_slices_of_another_size(self, tmp_path):
        write_series(tmp_path / "s")
        write(tmp_path / "s/x.dcm", image(np.zeros((5, 4), np.uint16), ImagePositionPatient=[0, 0, 16]))
        with refused("bad_geometry", "one size; got 2"):
            read(tmp_path / "s")

    def test_refuses_one_slice_without_a_place_among_others(self, tmp_path):
        write_series(tmp_path / "s")
        write(tmp_path / "s/x.dcm", image(ImagePositionPatient=None))
        with refused("bad_geometry", "some have none"):
            read(tmp_path / "s")

    def test_refuses_infinite_positions(self, tmp_path):
        path = write(tmp_path / "a.dcm", image(ImagePositionPatient=[0, 0, "1e400"]))
        with refused("non_finite"):
            read(path)

    @pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
    def test_a_section_without_a_place_is_no_picture(self, tmp_path, modality):
        with refused("bad_geometry", "must say where they lie"):
            read(write(tmp_path / "a.dcm", picture(Modality=modality, SOPClassUID=uid.MRImageStorage)))

    def test_refuses_a_folder_of_pictures(self, tmp_path):
        for name in "ab":
            write(tmp_path / f"s/{name}.dcm", picture())
        with refused("several_volumes", "got 2 without a place"):
            read(tmp_path / "s")

    def test_refuses_oblong_pixels_of_unknown_size(self, tmp_path):
        with refused("bad_geometry", "square or of known size"):
            read(write(tmp_path / "a.dcm", picture(PixelAspectRatio=[2, 1])))


def item(**elements: object) -> Dataset:
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def enhanced(places: list[float], times: list[int] | None = None, slope: object = lambda frame: 1.0) -> Dataset:
    """A multi-frame MR: orientation and spacing shared, position, time and slope per frame."""
    nowhere = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"))
    stack = np.stack([PIXELS + frame for frame in range(len(places))])
    ds = image(SOPClassUID=uid.EnhancedMRImageStorage, NumberOfFrames=len(places), PixelData=stack.tobytes(), **nowhere)
    ds.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])],
            PixelMeasuresSequence=[item(PixelSpacing=[2, 3], SliceThickness=4)],
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[place, 0, 0])],
            FrameContentSequence=[item(TemporalPositionIndex=1 if times is None else times[frame], StackID="1")],
            PixelValueTransformationSequence=[item(RescaleSlope=slope(frame), RescaleIntercept=10, RescaleType="US")],
        )
        for frame, place in enumerate(places)
    ]
    return ds


class TestMultiFrame:
    def test_frames_are_sorted_by_place_and_scaled_one_by_one(self, tmp_path):
        """Normal of (0 1 0) x (0 0 -1) is (-1 0 0) in LPS: the frame at the largest x comes first."""
        path = write(tmp_path / "a.dcm", enhanced([0, 8, 4], slope=lambda frame: 1.0 + frame))
        volume = read(path)
        expected = [(PIXELS + frame) * (1.0 + frame) + 10 for frame in (1, 2, 0)]
        np.testing.assert_array_equal(volume.array, np.stack(expected).transpose(2, 1, 0))
        affine = [[0, 0, 4, -8], [-3, 0, 0, 0], [0, -2, 0, 0], [0, 0, 0, 1]]
        np.testing.assert_allclose(volume.affine, affine, atol=1e-9)

    def test_compressed_frames_in_any_order(self, tmp_path):
        ds = enhanced([0, 8, 4])
        plain = read(write(tmp_path / "a.dcm", ds))
        ds.compress(uid.RLELossless)
        np.testing.assert_array_equal(read(write(tmp_path / "b.dcm", ds, uid.RLELossless)).array, plain.array)

    @pytest.mark.parametrize(
        ("places", "times", "reason"),
        [
            ([0, 4, 0, 4], [1, 1, 2, 2], "several_volumes"),
            ([0, 4, 0, 4], None, "several_volumes"),
            ([0, 4, 12], None, "missing_slices"),
        ],
    )
    def test_refuses_frames_that_are_not_one_volume(self, tmp_path, places, times, reason):
        with refused(reason):
            read(write(tmp_path / "a.dcm", enhanced(places, times)))

    def test_refuses_more_frames_than_descriptions(self, tmp_path):
        ds = enhanced([0, 4, 8])
        ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:2]
        with refused("corrupt", "got 3, 2"):
            read(write(tmp_path / "a.dcm", ds))

    def test_one_series_may_come_in_several_multi_frame_files(self, tmp_path):
        for name, places in {"a": [0, 4], "b": [8, 12]}.items():
            write(tmp_path / f"s/{name}.dcm", enhanced(places))
        assert read(tmp_path / "s").array.shape == (4, 3, 4)

    def test_what_a_frame_says_itself_comes_first(self, tmp_path):
        ds = enhanced([0, 4], slope=lambda frame: 2.0)
        for_all = item(RescaleSlope=99, RescaleIntercept=99)
        ds.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [for_all]
        np.testing.assert_array_equal(read(write(tmp_path / "a.dcm", ds)).array[..., 1].T, PIXELS * 2 + 10)
        for group in ds.PerFrameFunctionalGroupsSequence:
            del group.PixelValueTransformationSequence
        np.testing.assert_array_equal(read(write(tmp_path / "b.dcm", ds)).array[..., 1].T, PIXELS * 99 + 99)

    @pytest.mark.parametrize("frames", [0, -1])
    def test_refuses_an_impossible_number_of_frames(self, tmp_path, frames):
        with refused("corrupt", "NumberOfFrames"):
            read(write(tmp_path / "a.dcm", image(NumberOfFrames=frames, SOPInstanceUID=generate_uid())))
