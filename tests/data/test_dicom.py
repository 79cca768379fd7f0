"""The front: what counts as a series, what is refused before a pixel is decoded, and what survives of a header."""

import hashlib
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from omnifm.data import decode, dicom
from omnifm.data.refusal import RefusedImage
from omnifm.data.volume import MAX_BYTES, Volume, read_volume

SHARED = Path(__file__).parents[3] / "shared" / "data" / "dicom"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real test data are not at ../shared/data")
PIXELS = np.arange(12, dtype=np.uint16).reshape(3, 4)  # rows columns
SERIES = generate_uid()


def refused(reason: str, match: str | None = None):
    return pytest.raises(RefusedImage, match=match, check=lambda error: error.reason == reason)


def read(path: Path, burned_in_text: object = "unknown", max_bytes: int = MAX_BYTES) -> Volume:
    """In this process, so that checks of shapes and types see it."""
    return decode.read_image(path, max_bytes, burned_in_text)


def image(pixels: np.ndarray = PIXELS, **changes: object) -> Dataset:
    """One slice as a data set; a change to None removes the element."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = uid.MRImageStorage, generate_uid(), SERIES
    ds.Modality, ds.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M"]
    ds.FrameOfReferenceUID = "1.2.3"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 1 if pixels.ndim == 2 else pixels.shape[2]
    ds.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.itemsize
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness = [2, 3], 4
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW"
    for keyword, value in changes.items():
        if value is not None:
            setattr(ds, keyword, value)
        elif keyword in ds:
            delattr(ds, keyword)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def picture(pixels: np.ndarray = PIXELS, **changes: object) -> Dataset:
    """A data set that knows no place in a patient."""
    nowhere = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
    return image(
        pixels, **{"Modality": "DX", "SOPClassUID": uid.DigitalXRayImageStorageForPresentation, **nowhere, **changes}
    )


def write(path: Path, ds: Dataset, syntax: str = ExplicitVRLittleEndian) -> Path:
    ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path


def series(num: int = 4, **changes: object) -> list[Dataset]:
    """Slices 4 mm apart, not yet written; a change may be a function of the slice's number."""

    def at(value: object, index: int) -> object:
        return value(index) if callable(value) else value

    place = {"ImagePositionPatient": lambda z: [0, 0, 4 * z]}
    return [image(PIXELS + z, **{key: at(value, z) for key, value in {**place, **changes}.items()}) for z in range(num)]


def write_series(folder: Path, num: int = 4, **changes: object) -> Path:
    for index, ds in enumerate(series(num, **changes)):
        write(folder / f"{index}.dcm", ds)
    return folder


class TestFiles:
    def test_is_dicom_by_mark_by_name_or_as_a_folder(self, tmp_path):
        write(tmp_path / "IM0001", image())
        (tmp_path / "a.DCM").write_bytes(b"")
        (tmp_path / "a.txt").write_bytes(b"x" * 200)
        found = [dicom.is_dicom(tmp_path / name) for name in ("IM0001", "a.DCM", "a.txt", "nothing.dcm", ".")]
        assert found == [True, True, False, False, True]

    def test_the_mark_makes_dicom_not_the_name(self, tmp_path):
        (tmp_path / "a.dcm").write_bytes(bytes(500))
        with refused("not_an_image", "DICM after 128 bytes"):
            read(tmp_path / "a.dcm")

    def test_what_is_no_slice_is_ignored_in_a_series(self, tmp_path):
        write_series(tmp_path / "s")
        write(tmp_path / "s/seg.dcm", image(Modality="SEG", SOPClassUID=uid.SegmentationStorage))
        write(tmp_path / "s/dose.dcm", image(Modality="RTDOSE", SOPClassUID=uid.RTDoseStorage))
        write(tmp_path / "s/struct.dcm", without_pixels(Modality="RTSTRUCT", SOPClassUID=uid.RTStructureSetStorage))
        for name in ("notes.txt", "mask.nii.gz", ".DS_Store", "DICOMDIR", "info.json"):
            (tmp_path / "s" / name).write_bytes(b"no slice")
        assert read(tmp_path / "s").array.shape == (4, 3, 4)

    @pytest.mark.parametrize("name", ["IM0005", "5.dcm", "1.2.840.5", "5.ima"])
    def test_a_spoilt_slice_is_not_ignored(self, tmp_path, name):
        write_series(tmp_path / "s")
        (tmp_path / "s" / name).write_bytes(b"")
        with refused("not_an_image"):
            read(tmp_path / "s")

    def test_refuses_links_in_a_series(self, tmp_path):
        (tmp_path / "elsewhere.dcm").write_bytes(b"x")
        (tmp_path / "series").mkdir()
        (tmp_path / "series/a.dcm").symlink_to(tmp_path / "elsewhere.dcm")
        with refused("not_an_image", "holds a link"):
            dicom.read(tmp_path / "series", 2**30, "unknown")

    def test_refuses_folders_in_a_series_and_nothing_at_all(self, tmp_path):
        write_series(tmp_path / "s/inner")
        with refused("several_volumes", "holds folders"):
            read(tmp_path / "s")
        (tmp_path / "empty").mkdir()
        with refused("unsupported_format", "holds none"):
            read(tmp_path / "empty")

    @pytest.mark.parametrize("modality", ["SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR"])
    def test_refuses_objects_that_are_no_image(self, tmp_path, modality):
        with refused("no_pixels"):
            read(write(tmp_path / "a.dcm", image(Modality=modality)))

    def test_a_segmentation_is_one_whatever_its_modality(self, tmp_path):
        with refused("no_pixels"):
            read(write(tmp_path / "a.dcm", image(SOPClassUID=uid.SegmentationStorage)))

    def test_trailing_padding_is_no_pixel(self, tmp_path):
        plan = without_pixels(Modality="PLAN")
        plan.add_new(0xFFFCFFFC, "OB", bytes(10))
        with refused("no_pixels"):
            read(write(tmp_path / "a.dcm", plan))

    def test_refuses_an_image_without_its_pixels(self, tmp_path):
        with refused("truncated"):
            read(write(tmp_path / "a.dcm", image(PixelData=None)))
        path = write(tmp_path / "b.dcm", image())
        path.write_bytes(path.read_bytes()[:500])  # within the header
        with refused("truncated"):
            read(path)


def without_pixels(**changes: object) -> Dataset:
    return image(PixelData=None, Rows=None, Columns=None, **changes)


class TestKinds:
    @pytest.mark.parametrize("word", ["LOCALIZER", "SCOUT"])
    def test_refuses_localizers(self, tmp_path, word):
        with refused("localizer"):
            read(write(tmp_path / "a.dcm", image(ImageType=["ORIGINAL", "PRIMARY", word])))

    def test_refuses_mosaics(self, tmp_path):
        with refused("mosaic"):
            read(write(tmp_path / "a.dcm", image(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])))

    def test_refuses_films(self, tmp_path):
        film = picture(NumberOfFrames=2, PixelData=PIXELS.tobytes() * 2)
        with refused("several_volumes", "here are 2, a film"):
            read(write(tmp_path / "a.dcm", film))


class TestBurnedInText:
    @pytest.mark.parametrize("modality", ["US", "IVUS", "OT", "SC", "ES", "DOC"])
    def test_kinds_that_often_carry_names_are_refused(self, tmp_path, modality):
        path = write(tmp_path / "a.dcm", picture(Modality=modality))
        with refused("burned_in_text", "does not deny text"):
            read(path)
        assert read(path, "none").array.shape == (4, 3, 1)

    def test_a_secondary_capture_is_one_whatever_its_modality(self, tmp_path):
        screenshot = picture(Modality="CR", SOPClassUID=uid.SecondaryCaptureImageStorage)
        with refused("burned_in_text"):
            read(write(tmp_path / "a.dcm", screenshot))
        with refused("burned_in_text"):
            read(write(tmp_path / "b.dcm", picture(Modality=None)))

    def test_the_header_may_deny_it_or_admit_it(self, tmp_path):
        read(write(tmp_path / "a.dcm", picture(Modality="US", BurnedInAnnotation="NO")))
        admits = write(tmp_path / "b.dcm", image(BurnedInAnnotation="YES"))
        with refused("burned_in_text", "says there is text"):
            read(admits)
        read(admits, "none")

    def test_boxes_are_set_to_the_smallest_value(self, tmp_path):
        blanked = read(write(tmp_path / "a.dcm", picture(PIXELS + 5, Modality="US")), [(1, 0, 3, 2)]).array[..., 0].T
        expected = PIXELS + 5
        expected[0:2, 1:3] = 5
        np.testing.assert_array_equal(blanked, expected)


class TestWhatSurvives:
    @pytest.mark.parametrize(
        ("name", "vendor"),
        [
            ("GE MEDICAL SYSTEMS", "GE"),
            ("G.E. Medical Systems", "GE"),
            ("Siemens Healthineers", "SIEMENS"),
            ("Philips Medical Systems", "PHILIPS"),
            ("TOSHIBA_MEC", "CANON"),
            ("UIH", "UNITED IMAGING"),
            ("Genial Scanners", "OTHER"),
            ("Doe^Jane", "OTHER"),
            ("", ""),
            (None, ""),
        ],
    )
    def test_vendor_is_one_of_a_closed_list(self, tmp_path, name, vendor):
        changes = {} if name is None else {"Manufacturer": name}
        assert read(write(tmp_path / "a.dcm", image(**changes))).vendor == vendor
        assert vendor in (*dicom.VENDORS, "")

    def test_frame_is_a_digest(self, tmp_path):
        volume = read(write(tmp_path / "a.dcm", image()))
        assert volume.frame == hashlib.sha256(b"1.2.3").hexdigest()[:16]
        assert volume.modality == "MR"
        assert read(write(tmp_path / "b.dcm", image(FrameOfReferenceUID=None))).frame == ""

    def test_an_unknown_modality_is_not_passed_on(self, tmp_path):
        assert read(write(tmp_path / "a.dcm", image(Modality="DOE^JANE"))).modality == ""

    @pytest.mark.parametrize(
        "change",
        [
            {"ImagePositionPatient": ["1", "2", "CANARY"]},
            {"PhotometricInterpretation": "CANARY"},
            {"Rows": None},
            {"RescaleSlope": "CANARY", "RescaleIntercept": "0"},
            {"SliceThickness": "CANARY"},
            {"BitsStored": 17},
            {"NumberOfFrames": "CANARY"},
            {"ImageType": ["LOCALIZER", "CANARY"]},
            {"SamplesPerPixel": 2},
            {"BurnedInAnnotation": "YES"},
            {"ImageOrientationPatient": None},
        ],
    )
    def test_messages_quote_no_header(self, tmp_path, change):
        ds = image(
            PatientName="CANARY",
            PatientID="/etc/cron.d/CANARY",
            StudyInstanceUID="../../CANARY",
            SeriesDescription="CANARY",
            StudyDate="CANARY",
            Manufacturer="CANARY",
        )
        path = write(tmp_path / "CANARY.dcm", ds)
        spoilt = pydicom.dcmread(path)
        with pydicom.config.disable_value_validation():
            for keyword, value in change.items():
                text = value if not isinstance(value, str | list) else None
                if value is None:
                    delattr(spoilt, keyword)
                elif text is not None:
                    setattr(spoilt, keyword, value)
                else:  # text where a number belongs: only a raw element holds it
                    raw = "\\".join([value] if isinstance(value, str) else value).encode()
                    tag = pydicom.tag.Tag(keyword)
                    vr = pydicom.datadict.dictionary_VR(tag)
                    spoilt._dict[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(raw), raw, 0, False, True)
            spoilt.save_as(path)
        with pytest.raises(RefusedImage) as caught:
            read_volume(path)
        assert "CANARY" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


class TestBounds:
    def test_the_budget_counts_before_decoding(self, tmp_path):
        huge = image(Rows=65535, Columns=65535, NumberOfFrames=50)
        with refused("too_large"):
            read(write(tmp_path / "a.dcm", huge))

    def test_the_budget_counts_all_slices(self, tmp_path):
        side = np.zeros((512, 512), np.uint16)
        for z in range(4):
            write(tmp_path / f"s/{z}.dcm", image(side, ImagePositionPatient=[0, 0, z]))
        needed = 4 * 512**2 * 4 + 8 * 512**2 * 4 + 24 * 512**2 + (tmp_path / "s/0.dcm").stat().st_size
        assert read(tmp_path / "s", max_bytes=needed).array.shape == (512, 512, 4)
        with refused("too_large"):
            read(tmp_path / "s", max_bytes=needed - 1)

    def test_a_deflated_file_is_read(self, tmp_path):
        path = write(tmp_path / "a.dcm", image(), uid.DeflatedExplicitVRLittleEndian)
        np.testing.assert_array_equal(read(path).array[..., 0].T, PIXELS)
        path.write_bytes(path.read_bytes()[:-20])
        with refused("truncated", "decompress to its end"):
            read(path)

    def test_a_deflated_bomb_does_not_go_off(self, tmp_path):
        path = write(tmp_path / "a.dcm", image(), uid.DeflatedExplicitVRLittleEndian)
        meta = path.read_bytes()[: 144 + int.from_bytes(path.read_bytes()[140:144], "little")]
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
        zeros = bytes(2**20)
        bomb = b"".join(deflater.compress(zeros) for _ in range(64)) + deflater.flush()
        path.write_bytes(meta + bomb)
        assert len(bomb) < 100_000
        with refused("too_large"):
            read(path, max_bytes=20 * 2**20)

    def test_mutants_give_finite_volumes_or_refusals(self, tmp_path):
        random = np.random.default_rng(0)
        path = write(tmp_path / "a.dcm", image(np.zeros((16, 16), np.uint16)))
        whole, outcomes = path.read_bytes(), set()
        for _ in range(250):
            mutant = bytearray(whole)
            for _ in range(random.integers(1, 6)):
                mutant[random.integers(128, len(whole) - 500)] = random.integers(0, 256)
            path.write_bytes(mutant)
            try:
                volume = read_volume(path)
                assert np.isfinite(volume.array).all() and np.isfinite(volume.affine).all()
                outcomes.add("read")
            except RefusedImage as refusal:
                outcomes.add(refusal.reason)
        assert {"read", "truncated", "bad_geometry"} <= outcomes


@needs_shared
class TestRealData:
    def test_every_odd_file_gives_a_volume_or_a_refusal(self):
        outcomes = set()
        for file in sorted(path for path in SHARED.rglob("*") if path.is_file() and "series" not in path.parts):
            try:
                assert np.isfinite(read_volume(file).array).all()
            except RefusedImage as refusal:
                outcomes.add(refusal.reason)
        assert {"truncated", "corrupt", "no_pixels", "burned_in_text", "localizer"} <= outcomes

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("ct_gantrytilt_d2n", "gantry_tilt"),
            ("ct_irregular_increment_d2n", "missing_slices"),
            ("mr_philips_fmri_4d_d2n", "several_volumes"),
            ("mr_siemens_mosaic", "mosaic"),
            ("notavolume_d2n", "several_volumes"),
        ],
    )
    def test_refuses_real_series_that_are_no_volume(self, name, reason):
        with refused(reason):
            read_volume(SHARED / "series" / name)

    @pytest.mark.parametrize("name", ["mr_glioma_t1post_study3", "oriented_3slices", "ct_with_rtstruct"])
    def test_every_pixel_lies_where_its_own_slice_says(self, name):
        volume = read_volume(SHARED / "series" / name)
        slices = [pydicom.dcmread(path) for path in sorted((SHARED / "series" / name).glob("*.dcm"))]
        slices = [ds for ds in slices if "PixelData" in ds]
        assert volume.array.shape == (slices[0].Columns, slices[0].Rows, len(slices))
        for ds in slices:
            row, column = np.reshape(np.array(ds.ImageOrientationPatient, float), (2, 3))
            corner = np.array(ds.ImagePositionPatient) + 7 * row * ds.PixelSpacing[1] + 5 * column * ds.PixelSpacing[0]
            voxel = np.linalg.solve(volume.affine, [*corner * [-1, -1, 1], 1])[:3]
            np.testing.assert_allclose(voxel[:2], [7, 5], atol=0.02)
            value = ds.pixel_array[5, 7] * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
            assert volume.array[7, 5, round(voxel[2])] == pytest.approx(value)

    def test_lossless_syntaxes_decode_to_identical_pixels(self):
        names = ["UNC", "RLE", "JPLL", "JLSL", "J2KR"]
        volumes = [read_volume(SHARED / f"transfer_syntax/CT1/CT1_{name}") for name in names]
        for volume in volumes[1:]:
            np.testing.assert_array_equal(volume.array, volumes[0].array)
        names = ["", "_RLE", "_bigendian", "_implicit", "_jp2klossless", "_jpeg_ls_lossless", "_expb"]
        small = [read_volume(SHARED / f"single/mr/MR_small{name}.dcm").array for name in names]
        assert len({array.tobytes() for array in small}) == 1

    def test_enhanced_mr_is_a_volume(self):
        volume = read_volume(SHARED / "multiframe/mr_philips_enhanced_anat/IM-0001-0170-0001.dcm")
        assert volume.array.shape == (256, 256, 8)
        assert volume.spacing_mm == pytest.approx((1, 1, 1.2), abs=1e-4)
        with refused("several_volumes", "4 volumes: time=1, time=2, time=3, time=4. Choose one with --volume"):
            read_volume(SHARED / "multiframe/mr_siemens_xa10_enhanced")
