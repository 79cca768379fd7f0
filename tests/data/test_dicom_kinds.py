"""What makes one whole volume: slices of one kind, and as many and as far apart as their headers declare."""

import numpy as np
import pytest
from pydicom import uid

from omnifm.data.dicom_kinds import all_equal
from tests.data.test_dicom import read, refused, series, write, write_series
from tests.data.test_dicom_geometry import enhanced, item

CT = {"Modality": "CT", "SOPClassUID": uid.CTImageStorage, "RescaleSlope": 1, "RescaleIntercept": -1024}


def half(first: object, second: object):
    """Two slices say one thing and two another; each pair alone would be a volume."""
    return lambda z: first if z < 2 else second


class TestOneKind:
    @pytest.mark.parametrize(
        "changes",
        [
            {"ImageType": half(["ORIGINAL", "PRIMARY", "M", "ND"], ["ORIGINAL", "PRIMARY", "M", "NORM"])},
            {"ImageType": half(["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY", "AXIAL"])},
            {"ConvolutionKernel": half("B30f", "B70f"), **CT},
            {"KVP": half(80, 140), **CT},
            {"SliceThickness": half(1.25, 5), **CT},
            {"EchoTime": half("2.46", "4.92")},
            {"EchoTime": half("2.46", None)},
            {"EchoNumbers": half(1, 2)},
            {"FlipAngle": half(5, 26)},
            {"DiffusionBValue": half(0.0, 1000.0)},
            {"SequenceName": half("*ep_b0", "*ep_b1000t")},
            {"PatientPosition": half("HFS", "FFS")},
        ],
    )
    def test_slices_of_two_kinds_are_no_stack(self, tmp_path, changes):
        with refused("several_volumes", "must agree in"):
            read(write_series(tmp_path / "s", **changes))

    @pytest.mark.parametrize(
        ("creator", "element", "values", "vr"),
        [
            ((0x0043, 0x0010, "GEMS_PARM_01"), (0x0043, 0x1039), ([1000000000, 8, 0, 0], [1000001000, 8, 0, 0]), "IS"),
            ((0x0019, 0x0010, "SIEMENS MR HEADER"), (0x0019, 0x100C), (0, 1000), "IS"),
            ((0x2001, 0x0010, "Philips Imaging DD 001"), (0x2001, 0x1003), (0.0, 1000.0), "FL"),
        ],
    )
    @pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
    def test_a_vendors_own_b_value_counts(self, tmp_path, creator, element, values, vr, syntax):
        if vr == "FL" and syntax == uid.ImplicitVRLittleEndian:
            pytest.skip("without a type the four bytes are no number")
        for z, ds in enumerate(series()):
            ds.add_new(creator[:2], "LO", creator[2])
            ds.add_new(element, vr, values[z // 2])
            write(tmp_path / f"s/{z}.dcm", ds, syntax)
        with refused("several_volumes", "agree in b value"):
            read(tmp_path / "s")

    def test_frames_of_two_kinds_or_dimensions_are_no_stack(self, tmp_path):
        kinds = enhanced([0, 4, 8, 12])
        for frame, group in enumerate(kinds.PerFrameFunctionalGroupsSequence):
            group.MRImageFrameTypeSequence = [item(FrameType=["ORIGINAL", "PRIMARY", "MP"[frame // 2], "NONE"])]
        with refused("several_volumes", "agree in FrameType"):
            read(write(tmp_path / "kinds.dcm", kinds))
        phases = enhanced([0, 4, 8, 12])
        phases.DimensionIndexSequence = [item(DimensionIndexPointer=tag) for tag in (0x00209057, 0x00189344)]
        for frame, group in enumerate(phases.PerFrameFunctionalGroupsSequence):
            group.FrameContentSequence[0].DimensionIndexValues = [frame + 1, 1]
        assert read(write(tmp_path / "one.dcm", phases)).array.shape == (4, 3, 4)
        phases.PerFrameFunctionalGroupsSequence[3].FrameContentSequence[0].DimensionIndexValues = [4, 2]
        with refused("several_volumes", "agree in DimensionIndexValues"):
            read(write(tmp_path / "two.dcm", phases))


class TestNumbers:
    @pytest.mark.parametrize(
        ("values", "equal"),
        [
            (["2.46", "2.460", "2.4600001"], True),
            (["900", "900.0"], True),
            (["1E1", "10", "10.0"], True),
            (["2.46", "2.458"], True),
            (["2.46000003814697", "2.46"], True),
            (["2.46", "2.47"], False),
            (["5", "5.4"], False),
            (["0", "0.4"], False),
            (["1", "2"], False),
            (["1", ""], False),
            (["1/2", "1.0/2.0"], True),
            (["1/2", "1"], False),
            (["nan", "nan"], False),
        ],
    )
    def test_are_equal_if_one_is_the_other_rounded(self, values, equal):
        assert all_equal(values) == equal

    @pytest.mark.parametrize("keyword", ["EchoTime", "InversionTime", "SliceThickness", "FlipAngle"])
    def test_spellings_of_one_number_are_one_volume(self, tmp_path, keyword):
        spelled = {keyword: lambda z: ["2.46", "2.460", "2.4600001", "2.46"][z]}
        assert read(write_series(tmp_path / "s", **spelled)).array.shape == (4, 3, 4)

    def test_a_decimal_comma_is_named(self, tmp_path):
        path = write_series(tmp_path / "s", PixelSpacing=["0.75", "0.75"]) / "0.dcm"
        path.write_bytes(path.read_bytes().replace(b"0.75\\0.75", b"0,75\\0,75"))
        with refused("corrupt", "PixelSpacing must be written with a decimal point, like 0.75; it has a decimal comma"):
            read(tmp_path / "s")


class TestRoundedPositions:
    @pytest.mark.parametrize("step", [0.625, 1.25, 0.75, 2.33])
    @pytest.mark.parametrize("direction", [(0, 0, 1), (0, 0.6, 0.8)])
    def test_positions_rounded_to_a_tenth_are_read(self, tmp_path, step, direction):
        def at(z: int) -> list[float]:
            return [round(step * z * part, 1) for part in direction]

        turned = [1, 0, 0, 0, direction[2], -direction[1]]
        folder = write_series(tmp_path / "s", 40, ImagePositionPatient=at, ImageOrientationPatient=turned)
        assert read(folder).spacing_mm[2] == pytest.approx(step, abs=2e-3)

    def test_a_missing_slice_is_seen_all_the_same(self, tmp_path):
        folder = write_series(
            tmp_path / "s", 12, ImagePositionPatient=lambda z: [0, 0, round(0.625 * (z + (z > 8)), 1)]
        )
        with refused("irregular_spacing"):
            read(folder)


class TestDeclared:
    @pytest.mark.parametrize(
        "changes",
        [
            {"ImagesInAcquisition": 5},
            {"ImagesInAcquisition": 8, "AcquisitionNumber": 1},
            {"Modality": "PT", "SOPClassUID": uid.PositronEmissionTomographyImageStorage, "NumberOfSlices": 5},
            {"SpacingBetweenSlices": 2},
            {"SpacingBetweenSlices": "1.333"},
        ],
    )
    def test_fewer_images_than_declared_are_no_volume(self, tmp_path, changes):
        with refused("missing_slices", "export the whole series again"):
            read(write_series(tmp_path / "s", **changes))

    @pytest.mark.parametrize("declared", [3, 8, "4.5"])
    def test_another_distance_than_declared(self, tmp_path, declared):
        with refused("bad_geometry", "SpacingBetweenSlices must agree"):
            read(write_series(tmp_path / "s", SpacingBetweenSlices=declared, SliceThickness=4))

    @pytest.mark.parametrize(
        "changes",
        [
            {"ImagesInAcquisition": 4},
            {"ImagesInAcquisition": 2},  # GE writes the number of one volume of several
            {"ImagesInAcquisition": 4, "AcquisitionNumber": lambda z: z},  # ... or that of the series
            {"ImagesInAcquisition": 8, "ImageType": ["DERIVED", "PRIMARY"]},  # left from the source
            {"SpacingBetweenSlices": "4.0"},
            {"SpacingBetweenSlices": -4},
            {"SpacingBetweenSlices": 0},
            {"SpacingBetweenSlices": "1.5", "SliceThickness": "2.5"},  # the space between two slices
        ],
    )
    def test_what_scanners_write_for_a_whole_series_is_read(self, tmp_path, changes):
        assert read(write_series(tmp_path / "s", **changes)).array.shape == (4, 3, 4)

    def test_a_part_of_several_multi_frame_files_is_missing(self, tmp_path):
        for name, places in {"a": [0, 4], "b": [8, 12]}.items():
            ds = enhanced(places)
            ds.ConcatenationUID, ds.InConcatenationTotalNumber = "1.2.3", 2
            write(tmp_path / f"s/{name}.dcm", ds)
        assert read(tmp_path / "s").array.shape == (4, 3, 4)
        with refused("missing_slices", "InConcatenationTotalNumber is 2, and it holds 1"):
            read(tmp_path / "s/a.dcm")


def test_one_slice_alone_may_be_an_image(tmp_path):
    """A list may name one file of a series: that file is asked for, not the series."""
    write_series(tmp_path / "s", ImagesInAcquisition=40)
    assert read(tmp_path / "s/0.dcm").array.shape == (4, 3, 1)
    assert np.isfinite(read(tmp_path / "s/0.dcm").array).all()
