"""DICOM masks against highdicom (which writes and reads the SEGs), scikit-image and the shoelace formula."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    MPEG4HP41,
    CTImageStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    RTStructureSetStorage,
    generate_uid,
)
from skimage.draw import polygon2mask

from omnifm.data import decode, dicom_labels
from omnifm.data.grid import frame_of
from omnifm.data.refusal import RefusedImage
from omnifm.data.volume import Volume, read_label

SHARED = Path(__file__).parents[3] / "shared" / "data" / "dicom"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real test data are not at ../shared/data")
COLUMNS, ROWS, SLICES = 7, 5, 6  # 35 pixels: frames of single bits do not begin at whole bytes
FRAME = generate_uid()
NAMES = {0: "background", 1: "liver", 2: "tumour"}
MAX_BYTES = 2**30


def refused(reason: str, match: str | None = None):
    return pytest.raises(RefusedImage, match=match, check=lambda error: error.reason == reason)


def scan(*, oblique: bool = False, step_mm: float = 2.0, frame: str = FRAME) -> list[Dataset]:
    """Headers of a CT series, 0.5 x 0.8 mm pixels, position increasing along the normal."""
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0] if oblique else np.eye(3)
    turn *= np.sign(np.linalg.det(turn))
    series, study, headers = generate_uid(), generate_uid(), []
    for z in range(SLICES):
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.SOPClassUID, header.SOPInstanceUID, header.Modality = CTImageStorage, generate_uid(), "CT"
        header.SeriesInstanceUID, header.StudyInstanceUID, header.FrameOfReferenceUID = series, study, frame
        for name in (
            "PatientID",
            "PatientName",
            "PatientBirthDate",
            "PatientSex",
            "StudyDate",
            "StudyTime",
            "AccessionNumber",
            "StudyID",
        ):
            setattr(header, name, "")
        header.SeriesNumber, header.InstanceNumber, header.Rows, header.Columns = 1, z + 1, ROWS, COLUMNS
        header.PixelSpacing, header.SliceThickness = [0.8, 0.5], step_mm
        header.ImagePositionPatient = [round(float(mm), 6) for mm in (10, -20, 30) + turn[2] * z * step_mm]
        header.ImageOrientationPatient = [round(float(c), 8) for c in turn[:2].ravel()]
        header.BitsAllocated = header.BitsStored = 16
        header.HighBit, header.PixelRepresentation, header.SamplesPerPixel = 15, 0, 1
        header.PhotometricInterpretation = "MONOCHROME2"
        headers.append(header)
    return headers


def image_of(headers: list[Dataset], known_frame: bool = True) -> Volume:
    """The grid of a series, by PS3.3 C.7.6.2.1.1 and x, y turned to right, anterior."""
    first, last = headers[0], headers[-1]
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.ImageOrientationPatient[:3], float) * first.PixelSpacing[1]
    affine[:3, 1] = np.array(first.ImageOrientationPatient[3:], float) * first.PixelSpacing[0]
    places = [np.array(header.ImagePositionPatient, float) for header in (first, last)]
    affine[:3, 2] = (places[1] - places[0]) / max(1, len(headers) - 1)
    affine[:3, 3] = places[0]
    shape = (int(first.Columns), int(first.Rows), len(headers))
    frame = frame_of(first.FrameOfReferenceUID) if known_frame else ""
    return Volume(np.zeros(shape, np.float32), np.diag([-1.0, -1, 1, 1]) @ affine, "CT", "", frame)


def random_mask(seed: int = 0) -> np.ndarray:
    """Values 0, 1, 2 in x y z; the last slice is empty."""
    mask = np.random.default_rng(seed).integers(0, 3, (COLUMNS, ROWS, SLICES))
    mask[:, :, -1] = 0
    return mask


def write_seg(
    folder: Path,
    headers: list[Dataset],
    mask: np.ndarray,
    names: tuple[str, ...] = ("Liver", "Tumour"),
    kind: str = "BINARY",
    **options: object,
) -> Path:
    """Let highdicom write `mask`: x y z numbers of segments, or x y z segment of 0 and 1 (or fractions)."""
    segments = [
        highdicom.seg.SegmentDescription(number, name, codes.SCT.Tissue, codes.SCT.Organ, "MANUAL")
        for number, name in enumerate(names, 1)
    ]
    array = np.swapaxes(mask, 0, 2)
    array = array if kind == "FRACTIONAL" else array.astype(np.uint8)
    uids = (generate_uid(), 1, generate_uid(), 1, "maker", "model", "1", "serial")
    seg = highdicom.seg.Segmentation(headers, array, kind, segments, *uids, **options)
    seg.save_as(folder / "seg.dcm")
    return folder / "seg.dcm"


def edited(path: Path, edit) -> Path:
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)
    return path


def frames_of(seg: Dataset) -> pydicom.Sequence:
    return seg.PerFrameFunctionalGroupsSequence


def as_video(seg: Dataset) -> None:
    seg.file_meta.TransferSyntaxUID, seg.PixelData = MPEG4HP41, pydicom.encaps.encapsulate([bytes(8)] * 10)


def read(path: Path, image: Volume, labels: dict[int, str] | None = NAMES, max_bytes: int = MAX_BYTES) -> np.ndarray:
    assert dicom_labels.knows(path)
    return dicom_labels.read(path, image, labels, max_bytes)


def as_highdicom_reads(path: Path, image: Volume) -> np.ndarray:
    """highdicom's volume, voxel by voxel through millimetres to the image's grid."""
    theirs = highdicom.seg.segread(path).get_volume(combine_segments=True)
    mask = np.zeros(image.array.shape, int)
    for index in np.argwhere(theirs.array):
        place_mm = np.diag([-1, -1, 1, 1]) @ theirs.affine @ [*index, 1]
        voxel = np.linalg.solve(image.affine, place_mm)[:3]
        mask[tuple(np.rint(voxel).astype(int))] = theirs.array[tuple(index)]
    return mask


class TestSegmentation:
    @pytest.mark.parametrize("oblique", [False, True])
    @pytest.mark.parametrize(
        "order", [slice(None), slice(2, 5), slice(None, None, -1)], ids=["all", "some", "reversed"]
    )
    @pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
    def test_equals_highdicom(self, tmp_path, oblique, order, kind):
        headers, mask = scan(oblique=oblique), random_mask()
        path = write_seg(tmp_path, headers[order], mask[:, :, order], kind=kind)
        image = image_of(headers)
        kept = np.zeros_like(mask)
        kept[:, :, order] = mask[:, :, order]
        found = read(path, image)
        np.testing.assert_array_equal(found, kept)
        np.testing.assert_array_equal(found, as_highdicom_reads(path, image))
        assert found.dtype == np.int32
        assert found.flags.c_contiguous

    @pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
    @pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
    def test_follows_the_image_however_it_is_turned(self, tmp_path, axes, flip):
        headers, mask = scan(oblique=True), random_mask()
        path = write_seg(tmp_path, headers, mask)
        turned = mask.transpose(axes)[tuple(slice(None, None, step) for step in flip)]
        turn = np.eye(4)[:, [*axes, 3]] @ np.diag([*flip, 1])
        turn[:3, 3] = turn[:3, :3] @ [0 if step > 0 else 1 - n for step, n in zip(flip, turned.shape, strict=True)]
        image = Volume(np.zeros(turned.shape, np.float32), image_of(headers).affine @ turn)
        np.testing.assert_array_equal(read(path, image), turned)

    def test_of_a_cropped_image_only_background_may_be_cut_off(self, tmp_path):
        headers, mask = scan(), random_mask()
        mask[:2], mask[:, :, :1] = 0, 0
        path, whole = write_seg(tmp_path, headers, mask, omit_empty_frames=False), image_of(headers)

        def cropped(x: int, z: int) -> Volume:
            move = np.eye(4)
            move[:3, 3] = x, 0, z
            return Volume(whole.array[x:, :, z:], whole.affine @ move)

        np.testing.assert_array_equal(read(path, cropped(2, 1)), mask[2:, :, 1:])
        for image in (cropped(3, 1), cropped(2, 2)):
            with refused("label_geometry", "must lie inside the image; some of it lies outside"):
                read(path, image)

    @pytest.mark.parametrize(
        ("labels", "become"),
        [
            (None, (1, 2)),
            ({0: "", 5: " tumour ", 7: "LIVER"}, (7, 5)),
            ({0: "", 3: "liver"}, (3, 0)),  # tumour is not asked for
            ({0: "", 1: "a", 2: "b"}, (1, 2)),  # no name fits, all numbers do
            ({0: "liver", 2: "tumour"}, (0, 2)),
        ],
    )
    def test_names_come_before_numbers(self, tmp_path, labels, become):
        mask = random_mask()
        path = write_seg(tmp_path, scan(), mask)
        np.testing.assert_array_equal(read(path, image_of(scan()), labels), np.array([0, *become])[mask])

    @pytest.mark.parametrize("labels", [{0: "", 1: "a"}, {0: "", 1: "a", 3: "b"}])
    def test_refuses_when_neither_names_nor_numbers_fit(self, tmp_path, labels):
        path = write_seg(tmp_path, scan(), random_mask())
        with refused("label_values", r"of numbers \[1, 2\] none has the name") as caught:
            read(path, image_of(scan()), labels)
        assert "tumour" not in str(caught.value).lower()

    def test_refuses_a_name_declared_twice(self, tmp_path):
        path = write_seg(tmp_path, scan(), random_mask())
        with refused("label_values", r"declared names must differ; values \[1, 2\] share one"):
            read(path, image_of(scan()), {0: "", 1: "liver", 2: "Liver"})

    def test_two_segments_of_one_name_are_one_class(self, tmp_path):
        mask = random_mask()
        path = write_seg(tmp_path, scan(), mask, names=("tumour", "tumour"))
        np.testing.assert_array_equal(read(path, image_of(scan())), 2 * (mask > 0))

    @pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
    def test_a_wanted_segment_without_a_voxel_is_an_empty_mask(self, tmp_path, kind):
        mask = random_mask()
        mask[mask == 2] = 0
        path = write_seg(tmp_path, scan(), mask, kind=kind)
        assert not read(path, image_of(scan()), {0: "", 1: "tumour"}).any()

    def test_refuses_two_values_in_a_voxel_unless_one_is_not_asked_for(self, tmp_path):
        both = np.zeros((COLUMNS, ROWS, SLICES, 2), int)
        both[1:4, 1:4, 2, 0] = both[3, 3, 2, 1] = 1
        path = write_seg(tmp_path, scan(), np.moveaxis(both, 3, 3))
        with refused("label_values", "a voxel must have one value; 1 have 2 and another, such as 1"):
            read(path, image_of(scan()))
        np.testing.assert_array_equal(read(path, image_of(scan()), {0: "", 1: "liver"}), both[..., 0])

    def test_fractions_are_refused_unless_they_are_none_or_all(self, tmp_path):
        share = np.stack([random_mask() == 1, random_mask() == 2], axis=-1).astype(np.float32)
        options = {"kind": "FRACTIONAL", "max_fractional_value": 100}
        np.testing.assert_array_equal(
            read(write_seg(tmp_path, scan(), share, **options), image_of(scan())), random_mask()
        )
        share[0, 0, 0] = [0.4, 0]
        with refused("label_values", "must hold 0 or 100, no fractions; got 40"):
            read(write_seg(tmp_path, scan(), share, **options), image_of(scan()))

    @pytest.mark.parametrize(
        ("move", "fits"),
        [
            ([[1, 0, 0, 0.09], [0, 1, 0, 0], [0, 0, 1, 0]], True),
            ([[1, 0, 0, 0.11], [0, 1, 0, 0], [0, 0, 1, 0]], False),
            ([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.5]], False),
            ([[0.5, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], False),  # another pixel spacing
            ([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], False),  # turned
            ([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0.5, 0]], False),  # twice as many slices
            ([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0]], False),  # half as many
        ],
    )
    def test_pixels_must_be_voxels(self, tmp_path, move, fits):
        path, image = write_seg(tmp_path, scan(), random_mask()), image_of(scan())
        other = Volume(image.array, image.affine @ np.array([*move, [0, 0, 0, 1]], float))
        if fits:
            np.testing.assert_array_equal(read(path, other), random_mask())
        else:
            seg = r"mask 7x5x5 voxels of 0.5x0.8x2 mm, LPS, origin \(-10, 20, 30\) mm"
            with refused("label_geometry", rf"image 7x5x6 voxels of .* mm, \w+, origin .* mm, {seg}"):
                read(path, other)

    @pytest.mark.parametrize(
        ("measures", "fits"),
        [
            ({"SliceThickness": 2.0}, True),
            ({"SpacingBetweenSlices": 2.0, "SliceThickness": 4.0}, True),
            ({"SliceThickness": 4.0}, False),
            ({"SpacingBetweenSlices": 4.0, "SliceThickness": 2.0}, False),
            ({}, False),
        ],
    )
    def test_every_second_slice_is_refused_unless_the_slices_are_thin(self, tmp_path, measures, fits):
        mask = random_mask()
        mask[:, :, 1::2] = 0
        path, found = write_seg(tmp_path, scan(), mask), {}

        def edit(seg: Dataset) -> None:
            group = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
            group.clear()
            group.PixelSpacing = [0.8, 0.5]
            for name, value in measures.items():
                setattr(group, name, value)
            found["frames"] = len(frames_of(seg))

        edited(path, edit)
        assert found["frames"] == 6  # three planes of two segments
        if fits:
            np.testing.assert_array_equal(read(path, image_of(scan())), mask)
        else:
            with refused("label_geometry", "mask 7x5x3 voxels of 0.5x0.8x4 mm"):
                read(path, image_of(scan()))

    def test_refuses_another_frame_of_reference_where_both_are_known(self, tmp_path):
        path = write_seg(tmp_path, scan(), random_mask())
        other = scan(frame=generate_uid())
        with refused("label_geometry", r"frame of reference; got [0-9a-f]{8}, image [0-9a-f]{8} \(digests\)"):
            read(path, image_of(other))
        np.testing.assert_array_equal(read(path, image_of(other, known_frame=False)), random_mask())

    def test_a_folder_of_its_own_is_as_good_as_the_file(self, tmp_path):
        (tmp_path / "series").mkdir()
        write_seg(tmp_path / "series", scan(), random_mask())
        np.testing.assert_array_equal(read(tmp_path / "series", image_of(scan())), random_mask())

    @pytest.mark.parametrize(
        ("edit", "reason", "match"),
        [
            (lambda seg: setattr(seg, "PixelData", seg.PixelData[:-8]), "truncated", "pixels of 44 bytes; got 36"),
            (lambda seg: frames_of(seg).pop(), "corrupt", "each of its 10 frames; it describes 9"),
            (lambda seg: seg.SegmentSequence.append(seg.SegmentSequence[0]), "corrupt", "two share a number"),
            (
                as_video,
                "unsupported_transfer_syntax",
                "a compression that we decode",
            ),
            (
                lambda seg: frames_of(seg)[0].pop("PlanePositionSequence"),
                "label_geometry",
                "must give PlanePositionSequence for each frame",
            ),
            (
                lambda seg: frames_of(seg).__setitem__(0, frames_of(seg)[1]),
                "duplicate_slices",
                "one frame per segment and plane",
            ),
        ],
    )
    def test_refuses_what_contradicts_itself(self, tmp_path, edit, reason, match):
        path = edited(write_seg(tmp_path, scan(), random_mask()), edit)
        with refused(reason, match):
            read(path, image_of(scan()))

    @pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
    @pytest.mark.parametrize("cut", [10, 40, 100])
    @pytest.mark.filterwarnings("ignore:End of file reached")
    def test_refuses_a_file_that_ends_early(self, tmp_path, syntax, cut):
        path = write_seg(tmp_path, scan(), random_mask(), kind="LABELMAP", transfer_syntax_uid=syntax)
        np.testing.assert_array_equal(read(path, image_of(scan())), random_mask())
        path.write_bytes(path.read_bytes()[:-cut])
        with refused("truncated"):
            read(path, image_of(scan()))

    def test_refuses_a_map_with_an_unknown_segment(self, tmp_path):
        path = write_seg(tmp_path, scan(), random_mask(), kind="LABELMAP")
        edited(path, lambda seg: seg.SegmentSequence.pop())
        with refused("corrupt", r"must describe every segment in its pixels; it does not describe \[2\]"):
            read(path, image_of(scan()))

    def test_refuses_by_its_header_what_does_not_fit_in_memory(self, tmp_path):
        path = write_seg(tmp_path, scan(), random_mask())
        edited(path, lambda seg: (setattr(seg, "Rows", 60000), setattr(seg, "Columns", 60000)))
        with refused("too_large", "it needs 5[0-9]{4} MiB"):
            read(path, image_of(scan()))

    def test_another_dicom_object_is_no_label(self, tmp_path):
        path = write_seg(tmp_path, scan(), random_mask())
        edited(path, lambda seg: setattr(seg, "SOPClassUID", CTImageStorage))
        assert not dicom_labels.knows(path)
        assert not dicom_labels.knows(tmp_path / "missing.dcm")


Drawn = dict[str, list[np.ndarray]]


def write_rt(folder: Path, image: Volume, drawn: Drawn, kind: str = "CLOSED_PLANAR", frame: str = FRAME) -> Path:
    """Structures by name, as contours of n x 3 voxels of `image`, in LPS mm."""
    rt = Dataset()
    rt.file_meta = FileMetaDataset()
    rt.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    rt.SOPClassUID, rt.SOPInstanceUID, rt.Modality = RTStructureSetStorage, generate_uid(), "RTSTRUCT"
    rt.StructureSetROISequence, rt.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(drawn.items(), 11):
        roi, of_roi = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame
        of_roi.ReferencedROINumber, of_roi.ContourSequence = number, []
        for points in contours:
            contour = Dataset()
            places_mm = (np.c_[points, np.ones(len(points))] @ image.affine.T)[:, :3] * [-1, -1, 1]
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{mm:.6f}" for mm in places_mm.ravel()]
            of_roi.ContourSequence.append(contour)
        rt.StructureSetROISequence.append(roi)
        rt.ROIContourSequence.append(of_roi)
    rt.save_as(folder / "rt.dcm", enforce_file_format=True)
    return folder / "rt.dcm"


def mark_ends(dataset: Dataset) -> None:
    """Write sequences with marks at their ends instead of lengths at their beginnings."""
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                mark_ends(item)


def big_image(oblique: bool = True) -> Volume:
    image = image_of(scan(oblique=oblique))
    return Volume(np.zeros((40, 30, 4), np.float32), image.affine, "CT", "", image.frame)


def box(left: float, top: float, right: float, bottom: float, z: float = 1) -> np.ndarray:
    return np.array([(left, top, z), (right, top, z), (right, bottom, z), (left, bottom, z)], float)


def star(random: np.random.Generator, z: int, corners: int = 12) -> np.ndarray:
    angle = np.sort(random.uniform(0, 2 * np.pi, corners))
    radius = random.uniform(3, 12, corners)
    return np.c_[20 + radius * np.cos(angle), 15 + radius * np.sin(angle), np.full(corners, z)]


def shoelace(points: np.ndarray) -> float:
    x, y = points[:, 0], points[:, 1]
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


class TestStructures:
    def test_golden(self, tmp_path):
        """From 2.5 to 5.5 lie the centres 3, 4, 5; a hole takes 4; the line at y = 7 leaves its centres out."""
        image = big_image()
        path = write_rt(tmp_path, image, {"Liver": [box(2.5, 2.5, 5.5, 7), box(3.6, 3.6, 4.4, 4.4)]})
        expected = np.zeros(image.array.shape, int)
        expected[3:6, 3:7, 1] = 1
        expected[4, 4, 1] = 0
        np.testing.assert_array_equal(read(path, image), expected)

    @pytest.mark.parametrize("seed", range(5))
    def test_equals_scikit_image_where_no_centre_is_on_a_line(self, tmp_path, seed):
        random, image = np.random.default_rng(seed), big_image()
        contours = [star(random, z) for z in range(4)]
        expected = np.stack([polygon2mask((40, 30), points[:, :2]) for points in contours], axis=-1)
        np.testing.assert_array_equal(read(write_rt(tmp_path, image, {"liver": contours}), image), expected)

    def test_volume_is_the_shoelace_formulas(self, tmp_path):
        image, angle = big_image(), np.linspace(0, 2 * np.pi, 200, endpoint=False)
        contours = [np.c_[20 + 15.3 * np.cos(angle), 15 + 11.7 * np.sin(angle), np.full(200, z)] for z in range(4)]
        found = read(write_rt(tmp_path, image, {"liver": contours}), image).sum()
        assert found == pytest.approx(sum(shoelace(points) for points in contours), rel=0.01)

    def test_neighbours_share_no_voxel_and_leave_none_out(self, tmp_path):
        """Four quarters of a box whose lines run through voxel centres, one of them slanted."""
        image, centre = big_image(), (17, 13, 1)
        corners = [*box(5, 4, 29, 24)]
        quarters = [np.array([corners[i], corners[(i + 1) % 4], centre], float) for i in range(4)]
        path = write_rt(tmp_path, image, {str(i): [quarter] for i, quarter in enumerate(quarters, 1)})
        found = read(path, image, {i: str(i) for i in range(5)})
        assert (found > 0).sum() == 24 * 20  # the area of the box
        assert [(found == i).sum() for i in range(1, 5)] == pytest.approx([shoelace(q) for q in quarters], rel=0.12)
        whole = read(write_rt(tmp_path, image, {"liver": [np.array(corners)]}), image)
        np.testing.assert_array_equal(found > 0, whole > 0)

    def test_a_keyhole_is_a_hole(self, tmp_path):
        image = big_image()
        outer, inner = box(2.5, 2.5, 20.5, 20.5), box(8.5, 8.5, 12.5, 12.5)
        keyhole = np.concatenate([outer, outer[:1], inner, inner[:1]])
        (tmp_path / "other").mkdir()
        one = read(write_rt(tmp_path, image, {"liver": [keyhole]}), image)
        two = read(write_rt(tmp_path / "other", image, {"liver": [outer, inner]}), image)
        np.testing.assert_array_equal(one, two)
        assert one.sum() == 18 * 18 - 4 * 4

    def test_an_island_in_a_hole_is_inside(self, tmp_path):
        image = big_image()
        rings = [box(2.5, 2.5, 20.5, 20.5), box(4.5, 4.5, 18.5, 18.5), box(8.5, 8.5, 12.5, 12.5)]
        assert read(write_rt(tmp_path, image, {"liver": rings}), image).sum() == 18**2 - 14**2 + 4**2

    @pytest.mark.parametrize("other", [box(5.5, 5.5, 15.5, 15.5), box(2.5, 2.5, 10.5, 10.5)], ids=["cross", "twice"])
    def test_refuses_contours_that_cross_unless_xor_is_said(self, tmp_path, other):
        image, contours = big_image(), [box(2.5, 2.5, 10.5, 10.5), other]
        with refused("label_values", "apart or one inside the other; two cross or coincide"):
            read(write_rt(tmp_path, image, {"liver": contours}), image)
        path = write_rt(tmp_path, image, {"liver": [*contours, box(30, 20, 35, 25)]}, kind="CLOSEDPLANAR_XOR")
        assert read(path, image).sum() == {5.5: 64 - 25 + 100 - 25, 2.5: 0}[other[0, 0]] + 25

    @pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
    def test_follows_the_image_however_it_is_turned(self, tmp_path, axes):
        image = big_image()
        path = write_rt(tmp_path, image, {"liver": [box(2.5, 2.5, 5.5, 8.5, z=z) for z in (1, 2)]})
        turned = Volume(image.array.transpose(axes), image.affine[:, [*axes, 3]])
        np.testing.assert_array_equal(read(path, turned), read(path, image).transpose(axes))

    @pytest.mark.parametrize(
        ("labels", "become"),
        [({0: "", 5: "TUMOUR ", 7: "liver"}, (7, 5)), ({0: "", 5: "tumour"}, (0, 5)), (None, (11, 12))],
    )
    def test_structures_are_found_by_name(self, tmp_path, labels, become):
        image = big_image()
        path = write_rt(tmp_path, image, {"Liver": [box(2.5, 2.5, 5.5, 5.5)], "tumour": [box(9.5, 9.5, 11.5, 11.5)]})
        found = read(path, image, labels)
        assert (found[4, 4, 1], found[10, 10, 1]) == become
        assert np.count_nonzero(found) == np.dot(np.array(become) > 0, [9, 4])

    def test_refuses_when_no_name_fits(self, tmp_path):
        path = write_rt(tmp_path, big_image(), {"Liver": [box(2.5, 2.5, 5.5, 5.5)]})
        with refused("label_values", r"of numbers \[11\] none has the name of a value in \[0, 11\]$"):
            read(path, big_image(), {0: "", 11: "lung"})

    def test_a_structure_not_drawn_is_absent_but_not_the_only_one(self, tmp_path):
        image = big_image()
        path = write_rt(tmp_path, image, {"Liver": [box(2.5, 2.5, 5.5, 5.5)], "tumour": []})
        assert read(path, image).sum() == 9
        with refused("label_values", "must hold contours of a declared structure; it holds none"):
            read(path, image, {0: "", 1: "tumour"})

    def test_refuses_a_structure_too_small_for_the_grid(self, tmp_path):
        path = write_rt(
            tmp_path, big_image(), {"liver": [box(2.5, 2.5, 5.5, 5.5)], "tumour": [box(8.2, 8.2, 8.8, 8.8)]}
        )
        with refused("label_values", "structure 12 must hold the centre of a voxel; it holds none"):
            read(path, big_image())

    def test_refuses_two_values_in_a_voxel(self, tmp_path):
        path = write_rt(
            tmp_path, big_image(), {"liver": [box(2.5, 2.5, 9.5, 9.5)], "tumour": [box(8.5, 8.5, 12.5, 12.5)]}
        )
        with refused("label_values", "a voxel must have one value; 1 have 2 and another, such as 1"):
            read(path, big_image())

    @pytest.mark.parametrize(("z", "fits"), [(1.09, True), (1.11, False), (1.5, False)])
    def test_contours_lie_in_slices(self, tmp_path, z, fits):
        path = write_rt(tmp_path, big_image(), {"liver": [box(2.5, 2.5, 9.5, 9.5, z=z)]})
        if fits:
            assert read(path, big_image())[:, :, 1].sum() == 49
        else:
            with refused("label_geometry", rf"must lie in slices of their image; one lies 0.{str(z)[-1]}.* slices off"):
                read(path, big_image())

    @pytest.mark.parametrize(
        ("contours", "match"),
        [
            ([np.array([(2.5, 2.5, 1), (9.5, 2.5, 1), (9.5, 9.5, 2)])], "must lie in slices"),
            ([box(2, 2, 2, 2)], "they enclose no area"),
            ([box(2.5, 2.5, 39.7, 9.5)], r"inside the image of 40x30x4 voxels; they span voxels 2.5 to 39.7, 2.5 to"),
            ([box(-0.7, 2.5, 9.5, 9.5)], "must lie inside the image"),
            ([box(2.5, 2.5, 9.5, 9.5, z=4)], "must lie inside the image"),
            ([box(2.5, 2.5, 9.5, 9.5, z=z) for z in (0, 2)], "neighbouring slices; its contours are 2 slices apart"),
        ],
    )
    def test_refuses_by_geometry(self, tmp_path, contours, match):
        path = write_rt(tmp_path, big_image(), {"liver": contours})
        with refused("label_geometry", match):
            read(path, big_image())

    def test_reaches_up_to_the_outer_face_of_the_image(self, tmp_path):
        path = write_rt(tmp_path, big_image(), {"liver": [box(-0.5, -0.5, 39.5, 29.5, z=3)]})
        assert read(path, big_image())[:, :, 3].all()

    def test_refuses_what_is_not_a_closed_contour(self, tmp_path):
        path = write_rt(tmp_path, big_image(), {"liver": [box(2, 2, 9, 9)]}, kind="OPEN_PLANAR")
        with refused("label_geometry", "must be CLOSED_PLANAR; some are not"):
            read(path, big_image())

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("NumberOfContourPoints", 5, "truncated"),
            ("ContourData", [1, 2], "truncated"),
            ("ContourData", None, "truncated"),
        ],
    )
    def test_refuses_what_contradicts_itself(self, tmp_path, name, value, reason):
        path = write_rt(tmp_path, big_image(), {"liver": [box(2, 2, 9, 9)]})
        edited(path, lambda rt: setattr(rt.ROIContourSequence[0].ContourSequence[0], name, value))
        with refused(reason):
            read(path, big_image())

    @pytest.mark.parametrize("is_undefined", [False, True], ids=["lengths", "marks"])
    def test_refuses_a_file_that_ends_early_wherever_it_ends(self, tmp_path, is_undefined):
        path = write_rt(tmp_path, big_image(), {"liver": [box(2.5, 2.5, 5.5, 5.5)], "tumour": [box(9, 9, 15, 15)]})
        if is_undefined:
            edited(path, mark_ends)
        whole = path.read_bytes()
        for cut in range(1, 220, 5 if is_undefined else 1):
            path.write_bytes(whole[:-cut])
            with pytest.raises(RefusedImage):
                decode.read_mask(path, big_image(), NAMES, MAX_BYTES)

    @pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
    def test_refuses_points_at_infinity(self, tmp_path):
        path = write_rt(tmp_path, big_image(), {"liver": [box(2, 2, 9, 9)]})
        data = ["inf"] + ["1"] * 11
        edited(path, lambda rt: setattr(rt.ROIContourSequence[0].ContourSequence[0], "ContourData", data))
        with refused("non_finite", "points must be finite"):
            read(path, big_image())

    def test_refuses_another_frame_of_reference_where_both_are_known(self, tmp_path):
        image = big_image()
        path = write_rt(tmp_path, image, {"liver": [box(2.5, 2.5, 9.5, 9.5)]}, frame=generate_uid())
        with refused("label_geometry", "frame of reference"):
            read(path, image)
        assert read(path, Volume(image.array, image.affine)).sum() == 49


@needs_shared
class TestRealData:
    def headers(self, series: str) -> list[Dataset]:
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in (SHARED / series).glob("*.dcm")]
        return sorted((h for h in headers if h.Modality == "CT"), key=lambda h: h.ImagePositionPatient[2])

    def test_liver_equals_highdicom(self):
        image = image_of(self.headers("series/ct_3slice_for_seg"))
        path = SHARED / "single/nonimage_and_rt/liver.dcm"
        found = read_label(path, image, {0: "background", 1: "liver"})
        assert found.sum() == 107098
        theirs = highdicom.seg.segread(path).get_volume(combine_segments=True)  # z y x, from head to feet or back
        upwards = theirs.array if theirs.affine[2, 0] > 0 else theirs.array[::-1]
        np.testing.assert_array_equal(found, upwards.transpose(2, 1, 0))

    def test_overlaps_are_refused_unless_not_asked_for(self):
        image = image_of(self.headers("series/ct_3slice_for_seg"))
        path = SHARED / "single/nonimage_and_rt/partial_overlaps.dcm"
        with refused("label_values", "a voxel must have one value"):
            read_label(path, image)
        found = read_label(path, image, {0: "", 1: "purple", 2: "dark_blue"})
        assert np.bincount(found.ravel()).tolist()[1:] == [10743, 4713]

    def test_square_with_a_hole_has_the_shoelace_formulas_volume(self):
        image = image_of(self.headers("series/ct_with_rtstruct"), known_frame=False)
        path = SHARED / "series/ct_with_rtstruct/rt.dcm"
        found = read_label(path, image, {0: "", 1: "ROI-1"})
        contours = pydicom.dcmread(path).ROIContourSequence[0].ContourSequence
        outer, inner = (shoelace(np.array(c.ContourData, float).reshape(-1, 3)) for c in contours)
        assert (outer, inner) == (576, 224.5)
        # A voxel is 0.49 mm wide: along 24 and 15 mm the count of whole ones is up to 2 and 3 % off.
        assert found.sum() * np.prod(image.spacing_mm[:2]) == pytest.approx(outer - inner, rel=0.03)
        assert not found[:, :, 1].any()  # 60 mm is the first slice

    def test_that_structure_names_another_frame_of_reference_than_its_images(self):
        image = image_of(self.headers("series/ct_with_rtstruct"))
        with refused("label_geometry", "frame of reference"):
            read_label(SHARED / "series/ct_with_rtstruct/rt.dcm", image)
