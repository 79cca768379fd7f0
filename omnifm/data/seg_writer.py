"""A DICOM SEG of a predicted label map, beside the series that it was predicted from.

It carries the series' patient and study, as viewers and archives need: a document of the hospital, which stays there.
Every frame lies on its source slice and refers to it.  Of a class we know a name and no code: category and type are the
generic SNOMED CT "Tissue", as 3D Slicer's are.  Letters: x y z voxel axes.
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
"""Far above a scanner's own."""
MUST_BE_THERE = (
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
"""Empty where the source lacks them (type 2)."""
SEXES = ("", "M", "F", "O")
MAX_LABEL = 64
"""Letters of a segment's label (LO)."""


def encode(prediction: LabelMap, source: Path, model: str, version: str) -> bytes:
    """The file's content.

    Args:
        prediction: on the grid of `volume.read_volume(source)`.
        source: the series folder or file, which has been read and so accepted before.
        model: digest of the model, kept as the device's serial number.
        version: of this software.

    Raises:
        RefusedImage: the series cannot be referred to: no place in space, identifiers missing.
    """
    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote headers
        try:
            return _encode(prediction, source, model, version)
        except RefusedImage:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a header makes a library throw, in words that may quote it
            rule = "a series must name patient, study and slices as DICOM demands for a DICOM SEG"
            raise RefusedImage("bad_geometry", f"{rule}; it made the library raise {type(error).__name__}") from None


def _encode(prediction: LabelMap, source: Path, model: str, version: str) -> bytes:
    step_mm = float(np.linalg.norm(prediction.affine[:3, 2]))
    headers = _headers(source, step_mm)
    pieces = [piece for header in headers for piece in slices_of(_file(source, header))]
    place = _planes(pieces, prediction)
    if len(headers) > 1:  # single frames: in the order of z, as viewers show them
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
    """Headers of the series' images, without pixels: what the reader took for slices."""
    files = [source] if source.is_file() else sorted(file for file in source.iterdir() if _may_be_slice(file))
    headers: list[Dataset] = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    images = [header for header in headers if "Rows" in header and not _is_no_image(header)]
    for header in images:
        header.decode()  # names are written in UTF-8, which knows every alphabet, as those of classes need too
        _complete(header, step_mm)
    return images


def _complete(header: Dataset, step_mm: float) -> None:
    """Add what highdicom asks of a source and what scanners and anonymisers leave out."""
    for keyword in MUST_BE_THERE:
        if keyword not in header:
            setattr(header, keyword, "")
    if header.PatientSex not in SEXES:
        header.PatientSex = ""
    if not text(header, "FrameOfReferenceUID"):  # a series that names none has one of its own
        header.FrameOfReferenceUID = generate_uid(entropy_srcs=[text(header, "SeriesInstanceUID")])
    measures = header
    if "PerFrameFunctionalGroupsSequence" in header:
        shared, first = header.SharedFunctionalGroupsSequence[0], header.PerFrameFunctionalGroupsSequence[0]
        for group in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
            if group not in shared:  # some say it for each frame; the reader has found them equal
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
    """The z of each slice; each plane must have one slice, or a mask would lie on another."""
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
    """Spacing as the series gives it; between slices as it was measured, which headers often get wrong."""
    if piece.spacing_mm is None:
        raise RefusedImage("bad_geometry", "every slice must give its PixelSpacing for a DICOM SEG; some do not")
    return highdicom.PixelMeasuresSequence(piece.spacing_mm, slice_thickness=step_mm, spacing_between_slices=step_mm)


def _segments(prediction: LabelMap, version: str) -> list[SegmentDescription]:
    """One for every class but the background, present or not."""
    made_by = highdicom.AlgorithmIdentificationSequence(MAKER, codes.cid7162.ArtificialIntelligence, version)
    tissue = codes.SCT.Tissue
    return [
        SegmentDescription(number, _label(name, number), tissue, tissue, "AUTOMATIC", algorithm_identification=made_by)
        for number, name in sorted(prediction.names.items())
        if number > 0
    ]


def _label(name: str, number: int) -> str:
    return name.replace("\\", "/").strip()[:MAX_LABEL] or f"class {number}"
