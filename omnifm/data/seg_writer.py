"""A DICOM SEG of a predicted label map, which refers to the series that it was predicted from.

It holds the patient and the study of that series, because viewers and archives need them, so it must stay in the
hospital.  Every frame lies on its source slice and refers to it.  We know the name of a class but no code for it, so
category and type are the generic SNOMED CT "Tissue", as in 3D Slicer.  Letters: x y z voxel axes.
"""

import warnings
from io import BytesIO
from pathlib import Path

import highdicom
import numpy as np
import pydicom
from highdicom.seg import Segmentation, SegmentDescription
from jaxtyping import Int
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from omnifm.data.dicom import NO_IMAGE, NO_IMAGE_CLASSES
from omnifm.data.dicom_file import File, is_marked, text
from omnifm.data.dicom_geometry import LPS_TO_RAS
from omnifm.data.dicom_slices import Slice, slices_of
from omnifm.data.grid import MAX_CORNER_SHIFT
from omnifm.data.prediction import LabelMap
from omnifm.data.refusal import RefusedImage

MAKER = "OmniFM-FLARE"
DESCRIPTION = "OmniFM automatic segmentation, research use only"
SERIES_NUMBER = 9900
"""Far above the numbers that scanners use."""
REQUIRED = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
"""Elements that a SEG must have; they are empty if the source has none (type 2 in DICOM)."""
SEXES = ("", "M", "F", "O")
MAX_LABEL = 64
"""Largest number of characters in a segment's label (value representation LO)."""


def encode(prediction: LabelMap, source: Path, model: str, version: str) -> bytes:
    """The content of the DICOM file.

    Args:
        prediction: classes on the grid of `volume.read_volume(source)`.
        source: series folder or file that `volume.read_volume` has accepted.
        model: digest of the model, which is written as the device's serial number.
        version: version of this software.

    Raises:
        RefusedImage: a SEG cannot refer to the series: it has no place in space, or identifiers are missing.
    """
    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote headers
        try:
            return _encode(prediction, source, model, version)
        except RefusedImage:
            raise
        except Exception as error:  # noqa: BLE001 - a library's own message may quote the header
            rule = "a series must have the identifiers and geometry that DICOM requires for a DICOM SEG"
            raise RefusedImage("bad_geometry", f"{rule}; the library raised {type(error).__name__}") from None


def _encode(prediction: LabelMap, source: Path, model: str, version: str) -> bytes:
    step_mm = float(np.linalg.norm(prediction.affine[:3, 2]))
    headers = _headers(source, step_mm)
    pieces = [piece for header in headers for piece in slices_of(_file(source, header))]
    place = _planes(pieces, prediction)
    if len(headers) > 1:  # classic files: frames in the order of z, as viewers show them
        order = np.argsort(place)
        headers, place = [headers[index] for index in order], place[order]
    seg = Segmentation(
        headers,
        prediction.values[:, :, place].transpose(2, 1, 0),
        "BINARY",
        _segments(prediction, version),
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MAKER,
        software_versions=version,
        device_serial_number=model[:16],
        content_label="SEGMENTATION",
        content_description=DESCRIPTION,
        series_description=DESCRIPTION,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set="ISO_IR 192",
        pixel_measures=_measures(pieces[0], step_mm),
    )
    buffer = BytesIO()
    seg.save_as(buffer)
    return buffer.getvalue()


def _headers(source: Path, step_mm: float) -> list[Dataset]:
    """Headers, without pixels, of the files that the reader uses as slices."""
    files = [source] if source.is_file() else sorted(file for file in source.iterdir() if _may_be_slice(file))
    headers: list[Dataset] = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    images = [header for header in headers if "Rows" in header and not _is_no_image(header)]
    for header in images:
        header.decode()  # text is then written as UTF-8, which holds names of patients and classes in every alphabet
        _complete(header, step_mm)
    return images


def _complete(header: Dataset, step_mm: float) -> None:
    """Add elements that highdicom needs and that scanners or anonymisers may leave out."""
    for keyword in REQUIRED:
        if keyword not in header:
            setattr(header, keyword, "")
    if header.PatientSex not in SEXES:
        header.PatientSex = ""
    if not text(header, "FrameOfReferenceUID"):  # without a name, the frame of reference is the series' own
        header.FrameOfReferenceUID = generate_uid(entropy_srcs=[text(header, "SeriesInstanceUID")])
    measures = header
    if "PerFrameFunctionalGroupsSequence" in header:
        shared, first = header.SharedFunctionalGroupsSequence[0], header.PerFrameFunctionalGroupsSequence[0]
        for group in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
            if group not in shared:  # given for each frame; the reader has checked that all are equal
                setattr(shared, group, getattr(first, group))
        measures = shared.PixelMeasuresSequence[0]
    if not text(measures, "SliceThickness"):
        measures.SliceThickness = f"{step_mm:.6g}"


def _may_be_slice(file: Path) -> bool:
    return not file.name.startswith(".") and file.is_file() and not file.is_symlink() and is_marked(file)


def _is_no_image(header: Dataset) -> bool:
    return text(header, "Modality") in NO_IMAGE or text(header, "SOPClassUID").startswith(NO_IMAGE_CLASSES)


def _file(source: Path, header: Dataset) -> File:
    return File(source, header, text(header, "SOPClassUID"), "", 0, None, 0)


def _planes(pieces: list[Slice], prediction: LabelMap) -> Int[np.ndarray, " n"]:
    """The z index of each slice.

    Raises:
        RefusedImage: `bad_geometry`, unless every plane of the prediction is exactly one slice.
    """
    if any(piece.position_mm is None for piece in pieces):
        raise RefusedImage("bad_geometry", "every slice must have a position for a DICOM SEG; some have none")
    places_mm = np.array([[*(piece.position_mm or ()), 1.0] for piece in pieces])
    found = (np.linalg.inv(prediction.affine) @ LPS_TO_RAS @ places_mm.T)[:3].T
    planes = np.rint(found[:, 2]).astype(int)
    off = np.abs(found - np.c_[np.zeros((len(pieces), 2)), planes]).max()
    if sorted(planes.tolist()) != list(range(prediction.values.shape[2])) or off > MAX_CORNER_SHIFT:
        raise RefusedImage("bad_geometry", "every plane of a DICOM SEG must be one slice of its series; it is not")
    return planes


def _measures(piece: Slice, step_mm: float) -> highdicom.PixelMeasuresSequence:
    """Pixel spacing from the header, and the measured distance between slices, which headers often give wrongly."""
    if piece.spacing_mm is None:
        raise RefusedImage("bad_geometry", "every slice must give its PixelSpacing for a DICOM SEG; some do not")
    return highdicom.PixelMeasuresSequence(piece.spacing_mm, slice_thickness=step_mm, spacing_between_slices=step_mm)


def _segments(prediction: LabelMap, version: str) -> list[SegmentDescription]:
    """One segment for every class except the background, also for classes without a voxel."""
    made_by = highdicom.AlgorithmIdentificationSequence(MAKER, codes.cid7162.ArtificialIntelligence, version)
    tissue = codes.SCT.Tissue
    return [
        SegmentDescription(number, _label(name, number), tissue, tissue, "AUTOMATIC", algorithm_identification=made_by)
        for number, name in sorted(prediction.names.items())
        if number > 0
    ]


def _label(name: str, number: int) -> str:
    return name.replace("\\", "/").strip()[:MAX_LABEL] or f"class {number}"
