"""A PACS export becomes a site: series grouped whatever their folders, patients linked, nothing identifying kept."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import highdicom as hd
import nibabel
import numpy as np
import pytest
from highdicom.sr.coding import CodedConcept
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)
from typer.testing import CliRunner

from omnifm.cli import app
from omnifm.data.datalist import read_datalist
from omnifm.data.importers.dicom import prepare
from omnifm.data.volume import RefusedImage, read_label, read_volume


def series(
    root: Path, patient: str, *, num: int = 4, kind: str = MRImageStorage, said: str = "T1 post", scatter: bool = False
) -> list[Path]:
    """A series of 6 x 5 pixels, 2 mm apart, written under names that say too much."""
    series_uid, study_uid, frame_uid = generate_uid(), generate_uid(), generate_uid()
    files = []
    for number in range(num):
        data = Dataset()
        data.SOPClassUID, data.SOPInstanceUID = kind, generate_uid()
        data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = series_uid, study_uid, frame_uid
        data.PatientID, data.PatientName = patient, f"CANARY^{patient}"
        data.Modality = "CT" if kind == CTImageStorage else "MR"
        data.SeriesDescription = said
        data.Rows, data.Columns, data.PixelSpacing = 5, 6, [1.5, 1.0]
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2.0 * number]
        data.SliceThickness, data.InstanceNumber = 2, num - number
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.PixelData = np.full((5, 6), 10 * number + len(patient), np.uint16).tobytes()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        folder = root / (f"{patient}/part{number % 2}" if scatter else patient)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{patient}_{said.replace(' ', '')}_{number}.dcm"
        dcmwrite(file, data, enforce_file_format=True)
        files.append(file)
    return files


def write_seg(file: Path, images: list[Path], drawn: np.ndarray) -> None:
    """A binary SEG of one segment, "Lesion", on the images' grid."""
    code = CodedConcept("49755003", "SCT", "Morphologically abnormal structure")
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Lesion",
        segmented_property_category=code,
        segmented_property_type=code,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
    )
    sources = [dcmread(image) for image in images]
    for source in sources:  # what highdicom copies from the images
        source.StudyDate = source.StudyTime = source.AccessionNumber = source.StudyID = ""
        source.PatientBirthDate = source.PatientSex = source.ReferringPhysicianName = ""
    file.parent.mkdir(parents=True)
    hd.seg.Segmentation(
        source_images=sources,
        pixel_array=drawn,
        segmentation_type="BINARY",
        segment_descriptions=[segment],
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
    ).save_as(file)


def edit(file: Path, **elements: object) -> None:
    """Say something else in a file's header."""
    data = dcmread(file)
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    data.save_as(file)


def items_of(site: Path, required: tuple[str, ...] = ("image",)) -> list[dict]:
    return [item for split in read_datalist(site, required=required).splits().values() for item in split]


class TestGrouping:
    def test_a_series_scattered_over_folders_is_one_volume(self, tmp_path):
        for patient in ("anna", "berta", "carla"):
            series(tmp_path / "src", patient, scatter=True)
        prepare(tmp_path / "src", tmp_path / "dst")
        items = items_of(tmp_path / "dst/site-1")
        assert len(items) == 3
        assert all(read_volume(item["image"]).array.shape == (6, 5, 4) for item in items)

    def test_a_file_exported_twice_counts_once(self, tmp_path):
        files = series(tmp_path / "src", "anna")
        shutil.copy(files[0], tmp_path / "src/anna/again.dcm")
        prepare(tmp_path / "src", tmp_path / "dst")
        (item,) = items_of(tmp_path / "dst/site-1")
        assert read_volume(item["image"]).array.shape == (6, 5, 4)

    def test_slices_that_all_claim_one_instance_are_all_kept(self, tmp_path):
        """Some anonymisers write the same SOPInstanceUID everywhere."""
        for file in series(tmp_path / "src", "anna"):
            edit(file, SOPInstanceUID="1.2.3")
        prepare(tmp_path / "src", tmp_path / "dst")
        (item,) = items_of(tmp_path / "dst/site-1")
        assert read_volume(item["image"]).array.shape == (6, 5, 4)

    def test_an_instance_in_two_versions_is_the_readers_to_judge(self, tmp_path):
        files = series(tmp_path / "src", "anna")
        shutil.copy(files[0], tmp_path / "src/anna/again.dcm")
        edit(tmp_path / "src/anna/again.dcm", RescaleIntercept=100)
        with pytest.raises(ValueError, match=r"1 matched, and none can be used. 1 duplicate_slices: "):
            prepare(tmp_path / "src", tmp_path / "dst")

    def test_what_names_no_series_is_left_out(self, tmp_path):
        """Two patients, all UIDs blanked: their slices interleave without a gap."""
        for shift, patient in enumerate(("anna", "berta")):
            for number, file in enumerate(series(tmp_path / "src", patient)):
                place = [0, 0, 2.0 * (2 * number + shift)]
                edit(file, SeriesInstanceUID="", FrameOfReferenceUID="", ImagePositionPatient=place)
        with pytest.raises(ValueError, match=r"0 matched, and none can be used. 8 corrupt: "):
            prepare(tmp_path / "src", tmp_path / "dst")

    def test_a_series_of_two_patients_is_left_out(self, tmp_path):
        for file in series(tmp_path / "src", "anna")[2:]:
            edit(file, PatientID="berta")
        with pytest.raises(ValueError, match=r"1 matched, and none can be used. 1 corrupt: "):
            prepare(tmp_path / "src", tmp_path / "dst")

    def test_without_patients_several_studies_are_one_series(self, tmp_path):
        """Some anonymisers make up a study for each file."""
        for number, file in enumerate(series(tmp_path / "src", "anna")):
            edit(file, PatientID="", StudyInstanceUID=f"1.2.{number}")
        prepare(tmp_path / "src", tmp_path / "dst")
        (item,) = items_of(tmp_path / "dst/site-1")
        assert read_volume(item["image"]).array.shape == (6, 5, 4)

    def test_a_slice_described_otherwise_is_a_slice_all_the_same(self, tmp_path):
        edit(series(tmp_path / "src", "anna")[-1], SeriesDescription="")
        prepare(tmp_path / "src", tmp_path / "dst", description="t1")
        (item,) = items_of(tmp_path / "dst/site-1")
        assert read_volume(item["image"]).array.shape == (6, 5, 4)

    def test_a_slice_excluded_excludes_its_series(self, tmp_path):
        edit(series(tmp_path / "src", "anna")[-1], SeriesDescription="T1 derived")
        with pytest.raises(
            ValueError, match="no series matches; here are 1, of MR: change or leave out --modality, --desc"
        ):
            prepare(tmp_path / "src", tmp_path / "dst", exclude="derived")

    def test_modality_and_description_choose(self, tmp_path, capsys):
        series(tmp_path / "src", "anna")
        series(tmp_path / "src", "anna", said="T2 tse")
        series(tmp_path / "src", "berta", kind=CTImageStorage)
        prepare(tmp_path / "src", tmp_path / "dst", modality="MR", description="^t1", exclude="loc")
        assert "1 of 1 matching series prepared" in capsys.readouterr().out
        prepare(tmp_path / "src", tmp_path / "ct", modality="CT")
        assert [item["modality"] for item in items_of(tmp_path / "ct/site-1")] == ["CT"]


class TestPatients:
    def test_are_linked_by_a_salted_digest_that_lasts(self, tmp_path):
        for said in ("T1 a", "T1 b"):
            series(tmp_path / "src", "anna", said=said)
        series(tmp_path / "src", "berta")
        for site in ("site-1", "site-2"):
            prepare(tmp_path / "src", tmp_path / "dst", site=site)
        prepare(tmp_path / "src", tmp_path / "other")
        one, two, other = (
            [item["patient"] for item in items_of(tmp_path / folder)]
            for folder in ("dst/site-1", "dst/site-2", "other/site-1")
        )
        assert len(one) == 3
        assert len(set(one)) == 2
        assert sorted(one) == sorted(two)
        assert not set(one) & set(other)

    def test_an_issuer_in_some_objects_only_makes_no_second_patient(self, tmp_path):
        """One who counts as two may be trained on and tested on."""
        series(tmp_path / "src", "anna", said="T1 a")
        for file in series(tmp_path / "src", "anna", said="T1 b"):
            edit(file, IssuerOfPatientID="HOSPITAL")
        prepare(tmp_path / "src", tmp_path / "dst")
        patients = [item["patient"] for item in items_of(tmp_path / "dst/site-1")]
        assert len(patients) == 2
        assert len(set(patients)) == 1

    def test_a_series_without_an_id_is_its_studys_patients(self, tmp_path):
        files = {kind: series(tmp_path / "src", "anna", said=kind) for kind in ("T1 a", "T1 b", "T1 c")}
        for file in (*files["T1 a"], *files["T1 b"]):
            edit(file, StudyInstanceUID="1.2.3")
        for file in (*files["T1 b"], *files["T1 c"]):
            edit(file, PatientID="")
        prepare(tmp_path / "src", tmp_path / "dst")
        patients = [item["patient"] for item in items_of(tmp_path / "dst/site-1")]
        assert sorted(Counter(patients).values()) == [1, 2]

    def test_the_salt_is_the_owners_alone(self, tmp_path):
        series(tmp_path / "src", "anna")
        prepare(tmp_path / "src", tmp_path / "dst")
        assert (tmp_path / "dst/.omnifm-salt").stat().st_mode & 0o777 == 0o600

    def test_a_salt_that_cannot_be_written_leaves_none(self, tmp_path, monkeypatch):
        """Killed between making and filling it, an empty one would block all that follows."""
        series(tmp_path / "src", "anna")
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", lambda handle: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                prepare(tmp_path / "src", tmp_path / "dst")
        assert list((tmp_path / "dst").iterdir()) == []

    def test_an_empty_salt_is_made_anew(self, tmp_path):
        series(tmp_path / "src", "anna")
        (tmp_path / "dst").mkdir()
        (tmp_path / "dst/.omnifm-salt").touch(mode=0o644)
        prepare(tmp_path / "src", tmp_path / "dst")
        assert re.fullmatch("[0-9a-f]{64}", (tmp_path / "dst/.omnifm-salt").read_text())
        assert (tmp_path / "dst/.omnifm-salt").stat().st_mode & 0o777 == 0o600

    def test_a_copied_salt_gives_the_same_split_elsewhere(self, tmp_path):
        for number in range(8):
            series(tmp_path / "src", f"anna{number}", num=2)
        prepare(tmp_path / "src", tmp_path / "dst", seed=1)
        (tmp_path / "other").mkdir()
        shutil.copy(tmp_path / "dst/.omnifm-salt", tmp_path / "other")
        prepare(tmp_path / "src", tmp_path / "other", seed=1)
        one, two = (json.loads((tmp_path / f"{folder}/site-1/dataset.json").read_text()) for folder in ("dst", "other"))
        assert one == two

    def test_new_names_lead_back_to_the_export(self, tmp_path):
        series(tmp_path / "src", "anna")
        prepare(tmp_path / "src", tmp_path / "dst")
        (line,) = (tmp_path / "dst/names.txt").read_text().splitlines()
        (item,) = items_of(tmp_path / "dst/site-1")
        assert line == f"site-1/images/{item['image'].name}\t{tmp_path}/src/anna/anna_T1post_0.dcm (4 files)"

    def test_the_export_is_copied(self, tmp_path):
        """Whoever takes the names out of the copies leaves the originals alone."""
        files = series(tmp_path / "src", "anna")
        prepare(tmp_path / "src", tmp_path / "dst")
        for file in (tmp_path / "dst/site-1").rglob("*.dcm"):
            edit(file, PatientName="nobody")
        assert {str(dcmread(file).PatientName) for file in files} == {"CANARY^anna"}
        prepare(tmp_path / "src", tmp_path / "linked", link=True)
        assert {file.stat().st_nlink for file in (tmp_path / "linked").rglob("*.dcm")} == {2}

    def test_no_name_in_any_path_or_list(self, tmp_path):
        series(tmp_path / "src", "anna")
        prepare(tmp_path / "src", tmp_path / "dst")
        made = " ".join(str(f.relative_to(tmp_path)) for f in (tmp_path / "dst").rglob("*"))
        said = (tmp_path / "dst/site-1/dataset.json").read_text()
        assert not re.search("anna|CANARY|T1", made + said)


class TestMasks:
    def make(self, root: Path, patients: str = "abc") -> None:
        for patient in patients:
            series(root, patient)
            image = read_volume(root / patient)
            drawn = (image.array > image.array.mean()).astype(np.uint8)
            nibabel.save(nibabel.Nifti1Image(drawn, image.affine), root / "keep.nii.gz")
            shutil.move(root / "keep.nii.gz", root / patient / "mask.nii.gz")

    def test_a_nifti_beside_the_series(self, tmp_path):
        (tmp_path / "src").mkdir()
        self.make(tmp_path / "src")
        prepare(tmp_path / "src", tmp_path / "dst", labels="bright", mask="mask.nii.gz")
        items = items_of(tmp_path / "dst/site-1", ("image", "label"))
        assert len(items) == 3
        mask = read_label(items[0]["label"], read_volume(items[0]["image"]), {0: "background", 1: "bright"})
        assert mask.sum() == 6 * 5 * 2

    def test_a_series_without_one_is_left_out_and_counted(self, tmp_path, capsys):
        (tmp_path / "src").mkdir()
        self.make(tmp_path / "src")
        series(tmp_path / "src", "bare")
        prepare(tmp_path / "src", tmp_path / "dst", labels="bright", mask="mask.nii.gz")
        said, listed = capsys.readouterr().out, (tmp_path / "dst/left-out.txt").read_text()
        assert "3 of 4 matching series prepared; left out: 1 missing_label\n" in said
        assert "Run without `--labels` first, draw masks" in said
        assert f"  missing_label: {tmp_path}/src/bare/bare_T1post_0.dcm (4 files)" in said  # on the screen, by name
        assert f"  {tmp_path}/src/bare/bare_T1post_0.dcm (4 files)  (a series must have one NIfTI mask" in listed
        assert len(list((tmp_path / "dst/site-1/images").iterdir())) == 3

    def test_a_dicom_seg_that_names_its_series(self, tmp_path):
        """Wherever it lies in the tree: it is found by the series it refers to."""
        files = series(tmp_path / "src", "anna")
        series(tmp_path / "src", "berta")
        drawn = np.zeros((4, 5, 6), np.uint8)
        drawn[1:3, 2, 3:5] = 1
        write_seg(tmp_path / "src/other/seg.dcm", files, drawn)
        prepare(tmp_path / "src", tmp_path / "dst", labels="Lesion")
        (item,) = items_of(tmp_path / "dst/site-1", ("image", "label"))
        image = read_volume(item["image"])
        mask = read_label(item["label"], image, {0: "background", 1: "lesion"})
        np.testing.assert_array_equal(mask, drawn.transpose(2, 1, 0))

    def test_real_ct_whose_rtstruct_is_of_another_frame_is_left_out(self, shared_data, tmp_path):
        source = shared_data / "dicom/series/ct_with_rtstruct"
        with pytest.raises(ValueError, match=r"1 matched, and none can be used. 1 label_geometry: "):
            prepare(source, tmp_path / "dst", modality="CT", labels="ROI-1")


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def wiped(file: Path) -> None:
    file.write_bytes(bytes(512) + file.read_bytes()[512:])


def cut_before_rows(file: Path) -> None:
    """At an element's end: what is left parses, and is no image."""
    content = file.read_bytes()
    file.write_bytes(content[: content.index(b"\x28\x00\x10\x00")])


def linked(file: Path) -> None:
    file.rename(file.parent.parent / "elsewhere.dcm")
    file.symlink_to(file.parent.parent / "elsewhere.dcm")


class TestDamage:
    """The last slice of four is spoilt: three equally spaced ones look like a whole series."""

    @pytest.mark.parametrize(
        ("spoil", "said"),
        [
            (emptied, "1 beside_unreadable, 1 not_an_image"),
            (wiped, "1 beside_unreadable, 1 not_an_image"),
            (cut_before_rows, "1 truncated"),
            (linked, "1 beside_unreadable, 1 not_an_image"),
        ],
    )
    def test_a_series_loses_no_slice_unseen(self, tmp_path, capsys, spoil, said):
        spoil(series(tmp_path / "src/sub", "anna")[-1])
        series(tmp_path / "src", "berta")
        with pytest.raises(RefusedImage):  # the reader, asked for the folder itself, agrees
            read_volume(tmp_path / "src/sub/anna")
        prepare(tmp_path / "src", tmp_path / "dst")
        assert f"1 of 2 matching series prepared; left out: {said}\n" in capsys.readouterr().out
        (item,) = items_of(tmp_path / "dst/site-1")
        assert read_volume(item["image"]).array.shape == (6, 5, 4)

    def test_an_x_ray_beside_a_spoilt_file_is_whole_all_the_same(self, tmp_path, capsys):
        (good,) = series(tmp_path / "src", "anna", num=1)
        data = dcmread(good)
        data.Modality, data.SOPClassUID = "CR", ComputedRadiographyImageStorage
        del data.ImagePositionPatient, data.ImageOrientationPatient
        data.save_as(good)
        (tmp_path / "src/anna/spoilt.dcm").write_bytes(b"")
        prepare(tmp_path / "src", tmp_path / "dst")
        assert "1 of 1 matching series prepared; left out: 1 not_an_image\n" in capsys.readouterr().out

    def test_what_is_no_slice_by_its_name_or_kind_costs_nothing(self, tmp_path, capsys):
        files = series(tmp_path / "src", "anna")
        for name in ("notes.txt", "._hidden", "DICOMDIR", "thumbs.db"):
            (tmp_path / "src/anna" / name).write_bytes(b"no DICOM")
        report = dcmread(files[0])
        for keyword in ("Rows", "Columns", "PixelData"):
            delattr(report, keyword)
        report.SOPClassUID, report.SOPInstanceUID, report.Modality = BasicTextSRStorage, generate_uid(), "SR"
        report.save_as(tmp_path / "src/anna/report.dcm")
        shutil.copy(
            get_testdata_file("DICOMDIR"), tmp_path / "src/anna/DICOMDIR.old.1"
        )  # its kind is in the meta header
        prepare(tmp_path / "src", tmp_path / "dst")
        assert "1 of 1 matching series prepared; left out: nothing" in capsys.readouterr().out


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"site": "../x"}, "site must be 1 to 64 letters"),
            ({"modality": "m r!"}, "modality must be a DICOM code"),
            ({"description": "("}, "must be regular expressions"),
            ({"mask": "../m.nii"}, "mask must be the plain name of a NIfTI file"),
            ({"mask": "m.nii"}, "labels must name what the mask's values mean"),
            ({"modality": "MRT"}, "no series has modality MRT; here are MR: use --modality MR"),
        ],
    )
    def test_options(self, tmp_path, options, message):
        series(tmp_path / "src", "anna")
        with pytest.raises(ValueError, match=message):
            prepare(tmp_path / "src", tmp_path / "dst", **options)
        assert not (tmp_path / "dst/site-1").exists()

    def test_missing_source_and_existing_site(self, tmp_path):
        with pytest.raises(ValueError, match="source must be an existing folder"):
            prepare(tmp_path / "none", tmp_path / "dst")
        series(tmp_path / "src", "anna")
        prepare(tmp_path / "src", tmp_path / "dst")
        with pytest.raises(ValueError, match="must not hold 'site-1' yet"):
            prepare(tmp_path / "src", tmp_path / "dst")

    def test_a_damaged_salt(self, tmp_path):
        series(tmp_path / "src", "anna")
        (tmp_path / "dst").mkdir()
        (tmp_path / "dst/.omnifm-salt").write_text("x")
        with pytest.raises(ValueError, match="must hold 64 hexadecimal digits"):
            prepare(tmp_path / "src", tmp_path / "dst")

    def test_damaged_files_are_counted(self, tmp_path, capsys):
        files = series(tmp_path / "src", "anna") + series(tmp_path / "src", "berta")
        files[0].write_bytes(files[0].read_bytes()[:-30])
        (tmp_path / "src/notes.txt").write_text("not DICOM")
        prepare(tmp_path / "src", tmp_path / "dst")
        assert "1 of 2 matching series prepared; left out: 1 " in capsys.readouterr().out


def test_command(tmp_path):
    series(tmp_path / "src", "anna")
    result = CliRunner().invoke(
        app, ["prepare", "dicom", str(tmp_path / "src"), str(tmp_path / "dst"), "--site", "ours"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "dst/ours/dataset.json").read_text())["modality"] == {"0": "MR"}
