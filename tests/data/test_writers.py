"""Files of predictions, read back by nibabel, Pillow, pydicom and highdicom, and by our own readers."""

import gzip
import stat
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from omnifm.data import seg_writer, writers
from omnifm.data.prediction import Answer, Classes, LabelMap, Picture, as_stored
from omnifm.data.refusal import RefusedImage
from omnifm.data.volume import Volume, read_label, read_volume
from tests.data.test_dicom import image, picture, write, write_series
from tests.data.test_dicom_geometry import enhanced

SHARED = Path(__file__).parents[3] / "shared" / "data" / "dicom"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real test data are not at ../shared/data")
NAMES = {0: "background", 1: "liver", 2: "tumour"}
MODEL = "0123456789abcdef" * 4


def turned(seed: int = 0) -> np.ndarray:
    """An affine whose axes are permuted, flipped and oblique, with three spacings."""
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3] = np.c_[turn @ np.diag([1, 2, 3]), [40, -50, 60]]
    return affine


def random_classes(shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


def patient(**changes: object) -> dict[str, object]:
    """What `image` lacks for a viewer: who and which study."""
    return {
        "StudyInstanceUID": "1.2.826.0.1.9",
        "PatientID": "p-7",
        "PatientName": "Doe^Jane",
        "PatientSex": "F",
        "PatientBirthDate": "19700101",
        "StudyDate": "20200101",
        **changes,
    }


def written(prediction, source: Path, folder: Path):
    return writers.write(prediction, source, folder, "test-3", MODEL, "0.1.0")


def seg_of(source: Path, folder: Path, values=None) -> tuple[Path, np.ndarray, Volume]:
    volume = read_volume(source)
    values = random_classes(volume.array.shape[:3]) if values is None else values
    said = written(LabelMap(values, volume.affine, NAMES), source, folder)
    assert said["files"] == ["test-3.dcm"], said
    return folder / "test-3.dcm", values, volume


def from_bytes(content: bytes) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(content))


class TestAsStored:
    @pytest.mark.parametrize("seed", range(6))
    def test_inverts_in_ras(self, seed):
        volume = Volume(np.random.default_rng(seed).normal(size=(3, 4, 5)), turned(seed))
        np.testing.assert_array_equal(as_stored(volume.in_ras().array, volume.affine), volume.array)

    def test_keeps_channels_last(self):
        volume = Volume(np.random.default_rng(0).normal(size=(3, 4, 5, 3)), turned(1))
        np.testing.assert_array_equal(as_stored(volume.in_ras().array, volume.affine), volume.array)


class TestNifti:
    @pytest.mark.parametrize("seed", range(3))
    def test_classes_on_exactly_the_inputs_grid(self, tmp_path, seed):
        source = tmp_path / "a.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), turned(seed)), source)
        volume, values = read_volume(source), random_classes((4, 5, 6))
        said = written(LabelMap(values, volume.affine, NAMES), source, tmp_path)
        back, given = nibabel.load(tmp_path / "test-3.nii.gz"), nibabel.load(source)
        assert back.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(back.affine, given.affine)
        np.testing.assert_array_equal(np.asarray(back.dataobj), values)
        np.testing.assert_array_equal(read_label(tmp_path / "test-3.nii.gz", volume, NAMES), values)
        assert said["voxels"] == {"liver": int((values == 1).sum()), "tumour": int((values == 2).sum())}
        assert said["millilitres"]["liver"] == pytest.approx(said["voxels"]["liver"] * 6 / 1000, abs=1e-3)

    def test_both_ways_of_orientation_agree(self):
        back = from_bytes(writers.nifti(random_classes((2, 3, 4)), turned()))
        assert (int(back.header["sform_code"]), int(back.header["qform_code"])) == (1, 1)
        np.testing.assert_allclose(back.get_qform(), back.get_sform(), atol=1e-4)

    def test_a_qform_that_cannot_hold_shear_is_silent(self):
        sheared = turned() @ np.array([[1, 0, 0.2, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        back = from_bytes(writers.nifti(random_classes((2, 3, 4)), sheared))
        assert int(back.header["qform_code"]) == 0
        np.testing.assert_allclose(back.affine, sheared, atol=1e-5)

    def test_equal_arrays_give_equal_bytes(self):
        assert writers.nifti(random_classes((2, 3, 4)), turned()) == writers.nifti(random_classes((2, 3, 4)), turned())

    def test_files_are_their_owners_alone(self, tmp_path):
        written(LabelMap(random_classes((2, 3, 4)), turned(), NAMES), tmp_path / "a.nii", tmp_path / "out")
        assert stat.S_IMODE((tmp_path / "out/test-3.nii.gz").stat().st_mode) == 0o600


class TestPictures:
    def test_classes_of_a_picture_and_their_colours(self, tmp_path):
        Image.fromarray(np.zeros((5, 4), np.uint8)).save(tmp_path / "a.png")
        values, shown = random_classes((4, 5, 1)), np.random.default_rng(1).integers(0, 255, (5, 4, 3)).astype(np.uint8)
        said = written(LabelMap(values, np.eye(4), NAMES, shown), tmp_path / "a.png", tmp_path)
        assert said["files"] == ["test-3.png", "test-3-shown.png"]
        assert "millilitres" not in said
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "test-3.png")), values[:, :, 0].T)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "test-3-shown.png")), shown)
        volume = read_volume(tmp_path / "a.png")
        np.testing.assert_array_equal(read_label(tmp_path / "test-3.png", volume, NAMES), values)

    def test_8_bit_grey_and_any_colour_are_png(self, tmp_path):
        Image.fromarray(np.zeros((5, 4), np.uint8)).save(tmp_path / "a.png")
        levels = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5, 1)
        said = written(Picture(levels, (0.0, 255.0), np.eye(4)), tmp_path / "a.png", tmp_path)
        assert said == {"files": ["test-3.png"], "window": [0.0, 255.0]}
        expected = np.round(255 * levels[:, :, 0]).T
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "test-3.png")), expected)
        colour = np.repeat(levels[..., None], 3, axis=3)
        said = written(Picture(colour, (-50.0, 70.0), np.eye(4)), tmp_path / "a.nii.gz", tmp_path)
        assert said == {"files": ["test-3.png"], "window": [-50.0, 70.0]}
        assert np.asarray(Image.open(tmp_path / "test-3.png")).shape == (5, 4, 3)

    def test_other_grey_is_nifti_in_the_sources_values(self, tmp_path):
        levels = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5, 1)
        assert written(Picture(levels, (-1000.0, 2000.0), turned()), tmp_path / "a.dcm", tmp_path)["files"] == [
            "test-3.nii.gz"
        ]
        back = nibabel.load(tmp_path / "test-3.nii.gz")
        np.testing.assert_allclose(back.get_fdata(), 3000.0 * levels - 1000, rtol=1e-6, atol=1e-4)
        np.testing.assert_allclose(back.affine, turned(), atol=1e-5)


class TestWords:
    def test_classes_and_answers_are_rows_of_the_index(self, tmp_path):
        said = written(Classes({"benign": 0.25, "malignant": 0.75}), tmp_path / "a.png", tmp_path)
        chances = {"benign": 0.25, "malignant": 0.75}
        assert said == {"files": [], "class": "malignant", "probabilities": chances, "low_confidence": False}
        unsure = written(Classes({"benign": 0.41, "malignant": 0.59}), tmp_path / "a.png", tmp_path)
        assert unsure["low_confidence"] is True
        said = written(Answer("Is it?", "no"), tmp_path / "a.png", tmp_path)
        assert said == {"files": [], "question": "Is it?", "answer": "no"}


def oblique(z: int) -> list[float]:
    """Positions 4 mm apart along the normal of ORIENTED, falling with the slice's number."""
    return [round(float(mm), 6) for mm in (10, -20, 30) - 4 * z * np.cross(ORIENTED[:3], ORIENTED[3:])]


ORIENTED = [0.0, 0.8, -0.6, 1.0, 0.0, 0.0]


class TestDicomSeg:
    @pytest.mark.parametrize("num", [1, 2, 5])
    def test_a_series_read_back_by_us_by_pydicom_and_by_highdicom(self, tmp_path, num):
        place = {"ImagePositionPatient": oblique, "ImageOrientationPatient": ORIENTED}
        source = write_series(tmp_path / "s", num, **patient(), **place)
        path, values, volume = seg_of(source, tmp_path)
        np.testing.assert_array_equal(read_label(path, volume, NAMES), values)
        self.check_frames(path, source, values, volume)
        self.check_highdicom(path, values, volume)

    @staticmethod
    def check_frames(path: Path, source: Path, values: np.ndarray, volume: Volume) -> None:
        """Every frame shows one class of the slice that it refers to, at that slice's place."""
        seg, seen = pydicom.dcmread(path), set()
        slices = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, sorted(source.iterdir()))}
        pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
        for frame, groups in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
            refers = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            position = groups.PlanePositionSequence[0].ImagePositionPatient
            assert position == slices[refers].ImagePositionPatient
            at = np.linalg.solve(volume.affine, [-position[0], -position[1], position[2], 1])
            np.testing.assert_allclose(at[:2], 0, atol=1e-4)
            np.testing.assert_array_equal(frame, number == values[:, :, round(at[2])].T)
            seen.add((number, refers))
        assert len(seen) == sum((values[:, :, z] == n).any() for z in range(values.shape[2]) for n in (1, 2))

    @staticmethod
    def check_highdicom(path: Path, values: np.ndarray, volume: Volume) -> None:
        theirs = highdicom.seg.segread(path).get_volume(combine_segments=True)
        mask = np.zeros(values.shape, int)
        found = np.argwhere(theirs.array)
        places = np.diag([-1, -1, 1, 1]) @ theirs.affine @ np.c_[found, np.ones(len(found))].T
        voxels = np.rint(np.linalg.solve(volume.affine, places)[:3]).astype(int)
        mask[tuple(voxels)] = theirs.array[tuple(found.T)]
        np.testing.assert_array_equal(mask, values)

    def test_a_multi_frame_source(self, tmp_path):
        ds = enhanced([0, 8, 4])
        for keyword, value in patient().items():
            setattr(ds, keyword, value)
        source = write(tmp_path / "a.dcm", ds)
        path, values, volume = seg_of(source, tmp_path)
        np.testing.assert_array_equal(read_label(path, volume, NAMES), values)
        seg = pydicom.dcmread(path)
        refers = [g.DerivationImageSequence[0].SourceImageSequence[0] for g in seg.PerFrameFunctionalGroupsSequence]
        assert {r.ReferencedSOPInstanceUID for r in refers} == {ds.SOPInstanceUID}

    def test_frames_that_say_their_orientation_one_by_one(self, tmp_path):
        """As Philips writes them; highdicom looks for it among what all share."""
        ds = enhanced([0, 8, 4])
        for keyword, value in patient().items():
            setattr(ds, keyword, value)
        shared = ds.SharedFunctionalGroupsSequence[0]
        for group in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            for frame in ds.PerFrameFunctionalGroupsSequence:
                setattr(frame, group, getattr(shared, group))
            delattr(shared, group)
        path, values, volume = seg_of(write(tmp_path / "a.dcm", ds), tmp_path)
        np.testing.assert_array_equal(read_label(path, volume, NAMES), values)

    def test_patient_study_segments_and_origin(self, tmp_path):
        name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
        source = write_series(tmp_path / "s", **patient(PatientName=name, SpecificCharacterSet=["", "ISO 2022 IR 87"]))
        values = np.zeros((4, 3, 4), np.uint8)
        values[1, 1, 2] = 1
        seg = pydicom.dcmread(seg_of(source, tmp_path, values)[0])
        first = pydicom.dcmread(source / "0.dcm")
        for keyword in (*patient(), "FrameOfReferenceUID"):
            assert seg[keyword].value == first[keyword].value, keyword
        assert str(seg.PatientName) == name
        assert seg.SeriesInstanceUID != first.SeriesInstanceUID
        assert [s.SegmentLabel for s in seg.SegmentSequence] == ["liver", "tumour"]  # the tumour is not there
        assert {s.SegmentAlgorithmType for s in seg.SegmentSequence} == {"AUTOMATIC"}
        assert "research use" in seg.SeriesDescription
        assert (seg.Manufacturer, seg.DeviceSerialNumber) == ("OmniFM-FLARE", MODEL[:16])
        assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing == [2, 3]

    @pytest.mark.parametrize("num", [1, 4])
    def test_nothing_found_is_a_seg_too(self, tmp_path, num):
        source = write_series(tmp_path / "s", num, **patient())
        path, values, volume = seg_of(source, tmp_path, np.zeros((4, 3, num), np.uint8))
        np.testing.assert_array_equal(read_label(path, volume, NAMES), values)

    def test_single_classes_on_far_planes(self, tmp_path):
        source = write_series(tmp_path / "s", 6, **patient(), SliceThickness=2)  # the slices leave gaps
        values = np.zeros((4, 3, 6), np.uint8)
        values[2, 1, [0, 5]] = 2
        path, values, volume = seg_of(source, tmp_path, values)
        np.testing.assert_array_equal(read_label(path, volume, NAMES), values)

    @pytest.mark.parametrize(
        "changes",
        [
            {"FrameOfReferenceUID": None},
            {"SliceThickness": None},
            {"PatientName": None, "PatientID": None, "StudyDate": None},
            {"PatientSex": "W"},
            {"SpecificCharacterSet": ""},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_what_scanners_and_anonymisers_leave_out(self, tmp_path, changes):
        source = write_series(tmp_path / "s", **patient(**changes))
        path, values, volume = seg_of(source, tmp_path)
        np.testing.assert_array_equal(read_label(path, volume, NAMES), values)

    def test_other_objects_in_the_folder_are_no_slices(self, tmp_path):
        source = write_series(tmp_path / "s", **patient())
        path, *_ = seg_of(source, tmp_path)
        path.rename(source / "seg.dcm")
        write(source / "dose.dcm", image(Modality="RTDOSE", SOPClassUID=pydicom.uid.RTDoseStorage, **patient()))
        (source / "notes.txt").write_text("x")
        path, values, volume = seg_of(source, tmp_path)
        np.testing.assert_array_equal(read_label(path, volume, NAMES), values)

    def test_names_become_labels_that_dicom_allows(self, tmp_path):
        source = write_series(tmp_path / "s", **patient())
        volume, names = read_volume(source), {0: "b", 1: "ä\\y" + "z" * 80, 2: " "}
        written(LabelMap(random_classes((4, 3, 4)), volume.affine, names), source, tmp_path)
        labels = [s.SegmentLabel for s in pydicom.dcmread(tmp_path / "test-3.dcm").SegmentSequence]
        assert labels == ["ä/y" + "z" * 61, "class 2"]

    def test_a_series_of_no_study_gets_nifti_and_a_note_without_its_words(self, tmp_path):
        source = write_series(tmp_path / "s", **patient(StudyInstanceUID=lambda z: f"1.2.{z + 1}"))
        volume, values = read_volume(source), random_classes((4, 3, 4))
        said = written(LabelMap(values, volume.affine, NAMES), source, tmp_path)
        assert said["files"] == ["test-3.nii.gz"]
        assert said["note"].startswith("no DICOM SEG: a series must have the identifiers and geometry")
        assert "Doe" not in said["note"]
        np.testing.assert_array_equal(read_label(tmp_path / "test-3.nii.gz", volume, NAMES), values)

    def test_a_film_without_a_place_gets_png(self, tmp_path):
        source = write(tmp_path / "a.dcm", picture(**patient()))
        values, shown = random_classes((4, 3, 1)), np.zeros((3, 4, 3), np.uint8)
        said = written(LabelMap(values, read_volume(source).affine, NAMES, shown), source, tmp_path)
        assert said["files"] == ["test-3.png", "test-3-shown.png"]
        assert "every slice must have a position" in said["note"]

    def test_refuses_another_series(self, tmp_path):
        """A mask must never lie on slices that it was not predicted from."""
        source = write_series(tmp_path / "s", **patient())
        volume = read_volume(source)
        for affine in (volume.affine @ np.diag([1, 1, -1, 1]), volume.affine + np.eye(4)[:, [3, 3, 3, 0]]):
            prediction = LabelMap(random_classes((4, 3, 4)), affine, NAMES)
            with pytest.raises(RefusedImage, match="every plane of a DICOM SEG must be one slice"):
                seg_writer.encode(prediction, source, MODEL, "0.1.0")
        prediction = LabelMap(random_classes((4, 3, 5)), volume.affine, NAMES)
        with pytest.raises(RefusedImage, match="every plane of a DICOM SEG must be one slice"):
            seg_writer.encode(prediction, source, MODEL, "0.1.0")

    @needs_shared
    @pytest.mark.parametrize(
        "name", ["series/mr_hippocrop_study3", "series/mr_siemens_anat_d2n", "multiframe/mr_philips_enhanced_anat"]
    )
    def test_real_series(self, tmp_path, name):
        path, values, volume = seg_of(SHARED / name, tmp_path)
        np.testing.assert_array_equal(read_label(path, volume, NAMES), values)
        self.check_highdicom(path, values, volume)


def test_kinds_of_input(tmp_path):
    write(tmp_path / "IM1", image())
    for name in ("a.nii.gz", "b.NII", "c.png", "d.npz"):
        (tmp_path / name).touch()
    names = ("IM1", ".", "a.nii.gz", "b.NII", "c.png", "d.npz#3")
    kinds = [writers.kind_of(tmp_path / name) for name in names]
    assert kinds == ["dicom", "dicom", "nifti", "nifti", "picture", "picture"]
