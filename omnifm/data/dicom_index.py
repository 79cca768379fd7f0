"""Facts of each DICOM file for `omnifm prepare dicom`: its kind, and which patient, study and series it belongs to.

It runs inside `reader_process`.  Identifiers of patients never reach the parent process: only salted digests leave.
"""

import hashlib
import hmac
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NotRequired, TypedDict

from pydicom import Dataset, FileDataset, dcmread
from pydicom.uid import RTStructureSetStorage, SegmentationStorage

from omnifm.data.dicom import is_localizer, is_screenshot, may_be_slice, promises_image
from omnifm.data.dicom_geometry import TOMOGRAPHIC
from omnifm.data.items import MODALITY
from omnifm.data.refusal import RefusedImage, refusing

SEGMENTATIONS = (SegmentationStorage, "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of DICOM SEG: Segmentation and Label Map Segmentation Storage."""
TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "Modality",
    "SeriesDescription",
    "ProtocolName",
    "Rows",
    "ImageType",
    "SeriesNumber",
    "FrameOfReferenceUID",
    "ImageOrientationPatient",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
]


STACK = ("StudyInstanceUID", "SeriesNumber", "FrameOfReferenceUID", "Modality", "PatientID")
"""What the slices of one volume share, beside their orientation, where each has a series of its own."""


class FileFacts(TypedDict):
    """Facts of one file; all but `kind` only if it is DICOM.  Identifiers are salted digests."""

    kind: str
    """"image", "label" (SEG, RTSTRUCT), "other" (DICOM of other kinds), or "" (no DICOM by its name, or hidden)."""
    patient: NotRequired[str]
    """Digest, or "" if the file has no PatientID."""
    study: NotRequired[str]
    series: NotRequired[str]
    instance: NotRequired[str]
    refers: NotRequired[list[str]]
    """The series that a label belongs to."""
    modality: NotRequired[str]
    section: NotRequired[bool]
    """Whether the file may be one slice of several.  An X-ray or a photograph is an image by itself."""
    beside: NotRequired[bool]
    """Whether the file says that it is a scout view or a screenshot, so that it is no slice of its series."""
    stack: NotRequired[str]
    """Digest of what the slices of one volume share where each has a series of its own; "" if it cannot be one."""
    numbered: NotRequired[bool]
    """Whether the series has a number."""
    wanted: NotRequired[bool]
    excluded: NotRequired[bool]


def describe(path: Path, salt: bytes, modality: str, description: str, exclude: str) -> FileFacts:
    """Facts of one file.

    Args:
        path: any file.
        salt: secret of the site.  The same salt gives the same digest for the same patient.
        modality: DICOM code that images must have; "" accepts all.
        description: regular expression (case is ignored) that must be found in the series description or the protocol;
            "" accepts all.
        exclude: regular expression that must not be found there; "" excludes nothing.

    Raises:
        RefusedImage: the header cannot be read, the file should be DICOM by its name and is not, or an image does not
            name its series, so that it could be a slice of any.
    """
    with refusing():
        if not may_be_slice(path):
            return {"kind": ""}
        header = dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
        kind, series = _kind(header), f"{header.get('SeriesInstanceUID') or ''}".strip()
        if kind == "image" and not series:
            raise RefusedImage("corrupt", "an image must name its series; its SeriesInstanceUID is empty")
        text = f"{header.get('SeriesDescription', '')} {header.get('ProtocolName', '')}"
        matches = bool(re.search(description, text, re.IGNORECASE))
        code = str(header.get("Modality", ""))
        return {
            "kind": kind,
            "patient": _patient(header, salt),
            "study": _digest(salt, f"study {header.get('StudyInstanceUID', '')}"),
            "series": _digest(salt, f"series {series}"),
            "instance": _digest(salt, f"instance {header.get('SOPInstanceUID', '')}"),
            "refers": [_digest(salt, f"series {uid}") for uid in _referred(header)],
            "modality": code if MODALITY.fullmatch(code) else "",
            "section": code in TOMOGRAPHIC or "ImagePositionPatient" in header,
            "beside": is_localizer(header) or is_screenshot(header, _sop_class(header)),
            "stack": _stack(header, salt),
            "numbered": bool(f"{header.get('SeriesNumber') or ''}".strip()),
            "wanted": modality in ("", code) and matches,
            "excluded": bool(exclude) and bool(re.search(exclude, text, re.IGNORECASE)),
        }


def _patient(header: Dataset, salt: bytes) -> str:
    # IssuerOfPatientID is left out on purpose: scanners and archives give it for some of a patient's objects only.  One
    # patient taken for two could be in training and in test; two patients with one number are only kept together.
    identity = f"{header.get('PatientID') or ''}".strip()
    return _digest(salt, f"patient {identity}") if identity else ""


def _kind(header: FileDataset) -> str:
    sop_class = _sop_class(header)
    if sop_class in (*SEGMENTATIONS, RTStructureSetStorage):
        return "label"
    return "image" if promises_image(header, sop_class) else "other"


def _sop_class(header: FileDataset) -> str:
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", ""))


def _stack(header: Dataset, salt: bytes) -> str:
    """Digest of study, series number, frame of reference, orientation and size of a single slice."""
    frames = header.get("NumberOfFrames")
    orientation = header.get("ImageOrientationPatient")
    if frames not in (None, "", 1) or not orientation or "ImagePositionPatient" not in header:
        return ""
    shared = [f"{header.get(keyword) or ''}".strip() for keyword in STACK]
    turned = [f"{float(part):.2f}" for part in orientation]
    return _digest(salt, f"stack {shared} {turned}")


def _referred(header: Dataset) -> Iterator[str]:
    """UIDs of the series that a SEG or an RTSTRUCT refers to."""
    for series in header.get("ReferencedSeriesSequence") or []:
        yield str(series.get("SeriesInstanceUID", ""))
    for frame in header.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for series in study.get("RTReferencedSeriesSequence") or []:
                yield str(series.get("SeriesInstanceUID", ""))


def _digest(salt: bytes, text: str) -> str:
    return hmac.new(salt, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:16]
