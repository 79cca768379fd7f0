"""What `omnifm prepare dicom` learns of each file in a tree: what it is and what belongs together, under other names.

Runs inside `reader_process`, so that patients' identifiers never reach the parent: they leave as salted digests.
"""

import hashlib
import hmac
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydicom import Dataset, FileDataset, dcmread
from pydicom.uid import RTStructureSetStorage, SegmentationStorage

from omnifm.data.dicom import may_be_slice, promises_image
from omnifm.data.dicom_geometry import TOMOGRAPHIC
from omnifm.data.items import MODALITY
from omnifm.data.refusal import RefusedImage, refusing

SEGMENTATIONS = (SegmentationStorage, "1.2.840.10008.5.1.4.1.1.66.7")
"""DICOM SEG and its label-map kind."""
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
    "ImagePositionPatient",
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
]


def describe(path: Path, salt: bytes, modality: str, description: str, exclude: str) -> dict[str, Any]:
    """Facts of one file.

    Args:
        path: any file.
        salt: secret of the site; the same salt links the same patient again.
        modality: DICOM code that images must have; "" takes all.
        description: pattern (regular expression, any case) found in the series description or protocol; "" takes all.
        exclude: pattern that must not be found there; "" excludes nothing.

    Returns:
        `kind`: "image", "label" (SEG, RTSTRUCT), "other" (DICOM of other kinds) or "" (no DICOM by its name, and
        hidden files); and for DICOM digests `patient` ("" without a PatientID), `study`, `series`, `instance`, the
        list `refers` of series that a label is about, `modality`, `wanted`, `excluded`, and `section`: whether it may
        be one slice of several; an X-ray or a photograph is an image by itself.

    Raises:
        RefusedImage: the header cannot be read, the file should be DICOM by its name and is not, or an image does not
            say of which series it is: it may be a slice of any.
    """
    with refusing():
        if not may_be_slice(path):
            return {"kind": ""}
        header = dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
        kind, series = _kind(header), f"{header.get('SeriesInstanceUID') or ''}".strip()
        if kind == "image" and not series:
            raise RefusedImage("corrupt", "an image must name its series; its SeriesInstanceUID is empty")
        text = f"{header.get('SeriesDescription', '')} {header.get('ProtocolName', '')}"
        said = bool(re.search(description, text, re.IGNORECASE))
        code = str(header.get("Modality", ""))
        identity = f"{header.get('PatientID') or ''}".strip()
        return {
            "kind": kind,
            # Without IssuerOfPatientID, which scanners and archives fill in for some of a patient's objects only: one
            # patient taken for two may be trained and tested on, two who share a number are merely kept together.
            "patient": _digest(salt, f"patient {identity}") if identity else "",
            "study": _digest(salt, f"study {header.get('StudyInstanceUID', '')}"),
            "series": _digest(salt, f"series {series}"),
            "instance": _digest(salt, f"instance {header.get('SOPInstanceUID', '')}"),
            "refers": [_digest(salt, f"series {uid}") for uid in _referred(header)],
            "modality": code if MODALITY.fullmatch(code) else "",
            "section": code in TOMOGRAPHIC or "ImagePositionPatient" in header,
            "wanted": modality in ("", code) and said,
            "excluded": bool(exclude) and bool(re.search(exclude, text, re.IGNORECASE)),
        }


def _kind(header: FileDataset) -> str:
    sop_class = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", ""))
    if sop_class in (*SEGMENTATIONS, RTStructureSetStorage):
        return "label"
    return "image" if promises_image(header, sop_class) else "other"


def _referred(header: Dataset) -> Iterator[str]:
    """Series that a SEG or an RTSTRUCT names as its images."""
    for series in header.get("ReferencedSeriesSequence") or []:
        yield str(series.get("SeriesInstanceUID", ""))
    for frame in header.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for series in study.get("RTReferencedSeriesSequence") or []:
                yield str(series.get("SeriesInstanceUID", ""))


def _digest(salt: bytes, text: str) -> str:
    return hmac.new(salt, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:16]
