"""Series as hospitals have them: split by the scanner, with a scout among the slices, over time, tilted, mosaics."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage, generate_uid

from omnifm.data.dicom_mosaic import program
from omnifm.data.importers.dicom import prepare
from omnifm.data.volume import AIR_HU, Volume, read_volume
from omnifm.quality.inspection import check_site
from tests.data.importers.test_dicom import edit, items_of, series

needs_dcm2niix = pytest.mark.skipif(importlib.util.find_spec("dcm2niix") is None, reason="dcm2niix is not installed")


def volumes(site: Path) -> list[Volume]:
    return [read_volume(item["image"]) for item in items_of(site)]


class TestSingleSlices:
    """Some Canon scanners give every slice a series of its own."""

    def split(self, root: Path, patient: str, **elements: object) -> None:
        for file in series(root, patient):
            edit(file, SeriesInstanceUID=generate_uid(), **elements)

    def test_of_one_series_number_are_one_volume(self, tmp_path):
        for patient in ("anna", "berta"):
            self.split(tmp_path / "src", patient, SeriesNumber=10000)
        prepare(tmp_path / "src", tmp_path / "dst")
        assert [volume.array.shape for volume in volumes(tmp_path / "dst/site-1")] == [(6, 5, 4)] * 2

    def test_that_are_no_stack_are_left_out_with_the_reason(self, tmp_path):
        self.split(tmp_path / "src", "anna", SeriesNumber=10000)
        edit(tmp_path / "src/anna/anna_T1post_3.dcm", ImagePositionPatient=[0, 0, 9.5])
        with pytest.raises(ValueError, match=r"1 irregular_spacing: .*4 series of one slice each, .* were joined"):
            prepare(tmp_path / "src", tmp_path / "dst")

    def test_without_a_number_are_left_out_not_counted_as_cases(self, tmp_path):
        self.split(tmp_path / "src", "anna")
        series(tmp_path / "src", "berta")
        prepare(tmp_path / "src", tmp_path / "dst")
        assert len(volumes(tmp_path / "dst/site-1")) == 1
        assert "without a series number: they may be one volume" in (tmp_path / "dst/left-out.txt").read_text()

    def test_of_other_planes_stay_cases_of_their_own(self, tmp_path):
        for number, turned in enumerate(([1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1])):
            (file,) = series(tmp_path / "src", "anna", num=1, said=f"plane {number}")
            edit(file, StudyInstanceUID="1.2.3", SeriesNumber=number + 1, ImageOrientationPatient=turned)
        prepare(tmp_path / "src", tmp_path / "dst")
        assert len(volumes(tmp_path / "dst/site-1")) == 3


class TestOtherImages:
    def test_a_scout_and_a_screenshot_are_left_out_and_named(self, tmp_path, capsys):
        files = series(tmp_path / "src", "anna", kind=CTImageStorage)
        scout, shot = dcmread(files[0]), dcmread(files[0])
        scout.ImageType, scout.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], [0, 1, 0, 0, 0, -1]
        shot.SOPClassUID = shot.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        del shot.ImagePositionPatient, shot.ImageOrientationPatient, shot.RescaleSlope, shot.RescaleIntercept
        for name, ds in {"scout": scout, "dose": shot}.items():
            ds.SOPInstanceUID = generate_uid()
            ds.save_as(tmp_path / f"src/anna/{name}.dcm")
        prepare(tmp_path / "src", tmp_path / "dst")
        assert [volume.array.shape for volume in volumes(tmp_path / "dst/site-1")] == [(6, 5, 4)]
        said = capsys.readouterr().out
        assert "1 of 1 matching series prepared; left out: 2 not_a_slice\n" in said
        assert f"  not_a_slice: {tmp_path}/src/anna/dose.dcm\n" in said
        assert f"  not_a_slice: {tmp_path}/src/anna/scout.dcm\n" in said

    def test_a_slice_without_a_place_is_no_screenshot(self, tmp_path):
        """It may be a damaged slice: the series is not read without it."""
        files = series(tmp_path / "src", "anna")
        damaged = dcmread(files[-1])
        del damaged.ImagePositionPatient
        damaged.save_as(files[-1])
        with pytest.raises(ValueError, match="1 bad_geometry: "):
            prepare(tmp_path / "src", tmp_path / "dst")

    def test_a_series_of_scouts_is_still_a_localizer(self, tmp_path):
        for file in series(tmp_path / "src", "anna"):
            edit(file, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        with pytest.raises(ValueError, match="1 localizer: "):
            prepare(tmp_path / "src", tmp_path / "dst")


def over_time(root: Path, patient: str) -> None:
    """Two volumes of four slices at the same places."""
    for number, file in enumerate(series(root, patient, num=8)):
        edit(file, ImagePositionPatient=[0, 0, 2.0 * (number % 4)], DiffusionBValue=1000.0 * (number // 4))


class TestOneOfSeveral:
    def test_without_a_choice_the_refusal_lists_them(self, tmp_path):
        over_time(tmp_path / "src", "anna")
        with pytest.raises(ValueError, match=r"this series holds 2 volumes: b=0, b=1000. Choose one with --volume"):
            prepare(tmp_path / "src", tmp_path / "dst")

    def test_a_choice_becomes_nifti_and_is_noted(self, tmp_path):
        over_time(tmp_path / "src", "anna")
        prepare(tmp_path / "src", tmp_path / "dst", volume="b=1000")
        (item,) = items_of(tmp_path / "dst/site-1")
        assert item["prepared"] == "volume b=1000 of 2"
        assert item["image"].name.endswith(".nii.gz")
        volume = read_volume(item["image"])
        np.testing.assert_array_equal(volume.array[0, 0], [10 * number + 4 for number in range(4, 8)])
        assert volume.spacing_mm == pytest.approx((1, 1.5, 2))
        assert list((tmp_path / "dst/site-1/images").iterdir()) == [item["image"]]
        (line,) = (tmp_path / "dst/names.txt").read_text().splitlines()
        assert line.startswith(f"site-1/images/{item['image'].name}\t{tmp_path}/src/anna/")

    def test_a_plain_series_stays_as_it_is(self, tmp_path):
        series(tmp_path / "src", "anna")
        prepare(tmp_path / "src", tmp_path / "dst", volume="first", tilt="shear")
        (item,) = items_of(tmp_path / "dst/site-1")
        assert item["image"].is_dir()
        assert "prepared" not in item

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"volume": "second"}, "volume must be first, b=NUMBER"),
            ({"tilt": "turn"}, "tilt must be shear"),
            ({"convert": "all"}, "convert must be mosaic"),
        ],
    )
    def test_options(self, tmp_path, options, message):
        series(tmp_path / "src", "anna")
        with pytest.raises(ValueError, match=message):
            prepare(tmp_path / "src", tmp_path / "dst", **options)


class TestTilt:
    def test_the_shear_puts_every_slice_back(self, tmp_path):
        """A tilt of 2 pixels (3 mm) down the rows for every 2 mm: whole pixels, so that nothing is interpolated."""
        for number, file in enumerate(series(tmp_path / "src", "anna", kind=CTImageStorage)):
            edit(file, ImagePositionPatient=[0, 3.0 * number, 2.0 * number])
        with pytest.raises(ValueError, match=r"1 gantry_tilt: .*tilted by 56.3 degrees: `omnifm prepare dicom --tilt"):
            prepare(tmp_path / "src", tmp_path / "dst")
        for number, file in enumerate(sorted((tmp_path / "src/anna").iterdir())):
            edit(file, ImagePositionPatient=[0, 1.5 * number, 2.0 * number])
        prepare(tmp_path / "src", tmp_path / "dst", tilt="shear")
        (item,) = items_of(tmp_path / "dst/site-1")
        assert item["prepared"] == "gantry tilt of 36.9 degrees, removed by a linear shear"
        said = check_site(tmp_path / "dst/site-1")[0]["warnings"]
        assert any(warning.startswith("1 case(s) of a tilted gantry were sheared") for warning in said)
        volume = read_volume(item["image"])
        assert volume.array.shape == (6, 5 + 3, 4)
        np.testing.assert_allclose(volume.affine, [[-1, 0, 0, 0], [0, -1.5, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
        for z in range(4):
            assert (volume.array[:, z : z + 5, z] == 10 * z + 4).all()
            assert (volume.array[:, z + 5 :, z] == AIR_HU).all()

    @needs_dcm2niix
    def test_a_real_series_equals_dcm2niix(self, shared_data, tmp_path):
        source = shared_data / "dicom/series/ct_gantrytilt_d2n"
        prepare(source, tmp_path / "dst", tilt="shear")
        (item,) = items_of(tmp_path / "dst/site-1")
        subprocess.run(
            [program(), "-z", "n", "-b", "n", "-f", "v", "-o", tmp_path, source], capture_output=True, check=True
        )
        theirs = nibabel.as_closest_canonical(nibabel.load(tmp_path / "v_Tilt_1.nii"))
        ours = read_volume(item["image"]).in_ras()
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)
        inside = (ours.array > AIR_HU) & (theirs.get_fdata() > AIR_HU)
        assert np.percentile(np.abs(ours.array - theirs.get_fdata())[inside], 99) < 0.6  # theirs are whole numbers


@needs_dcm2niix
class TestMosaics:
    def test_are_unpacked_only_where_it_is_wanted(self, shared_data, tmp_path):
        source = shared_data / "dicom/series/mr_siemens_mosaic"
        with pytest.raises(ValueError, match=r"1 mosaic: .*--convert mosaic"):
            prepare(source, tmp_path / "dst")
        with pytest.raises(ValueError, match=r"this series holds 2 volumes: time=1 to 2. Choose one with --volume"):
            prepare(source, tmp_path / "dst", convert="mosaic")
        prepare(source, tmp_path / "dst", convert="mosaic", volume="first")
        (item,) = items_of(tmp_path / "dst/site-1")
        volume = read_volume(item["image"])
        assert item["prepared"] == "mosaic, unpacked by dcm2niix"
        assert volume.array.shape == (72, 72, 5)
        mosaic = dcmread(min(source.glob("*.dcm"), key=lambda file: dcmread(file).InstanceNumber)).pixel_array
        columns = mosaic.shape[1] // 72
        tiles = [mosaic[72 * (z // columns) :, 72 * (z % columns) :][:72, :72] for z in range(5)]
        np.testing.assert_array_equal(volume.array, np.stack([tile[::-1].T for tile in tiles], axis=-1))

    def test_a_doubtful_conversion_is_refused(self, shared_data, tmp_path):
        """One of the two files is cut: dcm2niix says so, or makes another file."""
        for file in (shared_data / "dicom/series/mr_siemens_mosaic").glob("*.dcm"):
            (tmp_path / "src").mkdir(exist_ok=True)
            (tmp_path / "src" / file.name).write_bytes(file.read_bytes())
        largest = max((tmp_path / "src").iterdir(), key=lambda file: file.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-5000])
        with pytest.raises(ValueError, match="none can be used"):
            prepare(tmp_path / "src", tmp_path / "dst", convert="mosaic", volume="first")


def test_a_prepared_site_is_read_as_any_other(tmp_path):
    over_time(tmp_path / "src", "anna")
    prepare(tmp_path / "src", tmp_path / "dst", volume="first")
    (item,) = items_of(tmp_path / "dst/site-1")
    assert item["modality"] == "MR"
    assert read_volume(item["image"]).array.shape == (6, 5, 4)
