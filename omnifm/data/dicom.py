"""DICOM images: one file, classic or multi-frame, or a folder holding one series, as a volume.

A section through a patient has its place in space; a picture (X-ray film, ultrasound, photograph) has none and
lies as a PNG does: x along its columns, y down its rows, spacing from PixelSpacing or ImagerPixelSpacing, else 1.

In a folder, hidden files, a DICOMDIR and files of another kind by their suffix (`.txt`, `.json`, `.nii.gz`) are no
slices and are ignored, and so are DICOM objects that hold no image (structures, segmentations, doses, reports).
Anything else that is not DICOM is refused: it may be a spoilt slice.

What becomes of the values is said in `dicom_pixels` and, for PET, in `dicom_suv`.
"""

import hashlib
import re
from pathlib import Path

from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset

from omnifm.data.dicom_file import File, is_marked, open_file, text, texts
from omnifm.data.dicom_geometry import placed
from omnifm.data.dicom_pixels import check_headers, read_pixels
from omnifm.data.dicom_slices import check_one_volume, slices_of
from omnifm.data.dicom_suv import suv_factor
from omnifm.data.refusal import RefusedImage, check_budget
from omnifm.data.volume import BurnedIn, Volume

VENDORS = ("CANON", "FUJIFILM", "GE", "PHILIPS", "SIEMENS", "UNITED IMAGING", "OTHER")
VENDOR_WORDS = {
    "CANON": "CANON",
    "TOSHIBA": "CANON",
    "FUJI": "FUJIFILM",
    "HITACHI": "FUJIFILM",
    "GE ": "GE",
    "G.E.": "GE",
    "GENERAL ELECTRIC": "GE",
    "PHILIPS": "PHILIPS",
    "SIEMENS": "SIEMENS",
    "UIH": "UNITED IMAGING",
    "UNITED IMAGING": "UNITED IMAGING",
}
"""How a manufacturer's name begins, and whose scanners those are today."""
MODALITIES = frozenset(
    {
        "BDUS",
        "BI",
        "CR",
        "CT",
        "DG",
        "DX",
        "ES",
        "GM",
        "IO",
        "IVOCT",
        "IVUS",
        "LS",
        "MG",
        "MR",
        "NM",
        "OCT",
        "OP",
        "OPM",
        "OPT",
        "OT",
        "PT",
        "PX",
        "RF",
        "RG",
        "RTIMAGE",
        "SC",
        "SM",
        "TG",
        "US",
        "XA",
        "XC",
    }
)
"""Codes of what makes images; another code is not passed on."""
NO_IMAGE = frozenset({"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "PR", "KO", "SR", "REG", "FID", "PLAN", "ANN"})
NO_IMAGE_CLASSES = (
    "1.2.840.10008.1.3.10",  # DICOMDIR
    "1.2.840.10008.5.1.4.1.1.66",  # segmentations, registrations, and surfaces
    "1.2.840.10008.5.1.4.1.1.481.2",  # dose
)
TEXT_MODALITIES = frozenset({"", "DOC", "ES", "IVUS", "OT", "SC", "US"})
"""Their pixels often hold a name; and where no modality is given, nobody knows."""
TEXT_CLASS = "1.2.840.10008.5.1.4.1.1.7"
"""Secondary capture, all kinds: screenshots and scanned paper."""
NOT_DICOM = re.compile(r"\.[a-z]+[0-9]?$")
DICOM_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima", ".img")


def is_dicom(path: Path) -> bool:
    """Whether a path is a folder (a series) or a file that looks like DICOM by its preamble or its name."""
    if path.is_dir():
        return True
    return path.is_file() and (is_marked(path) or path.name.lower().endswith(".dcm"))


def read(path: Path, max_bytes: int, burned_in_text: BurnedIn) -> Volume:
    """One file or one folder as a volume, see `volume.read_volume`.

    Raises:
        RefusedImage: see `refusal.REASONS`; what pydicom raises is left to the caller.
    """
    with disable_value_validation():  # what we use we judge ourselves; the rest must not stop a good image
        files = _series(path, max_bytes) if path.is_dir() else [_single(path, max_bytes)]
        for file in files:
            _check_kind(file, burned_in_text)
        check_headers(files, max_bytes)
        slices = [piece for file in files for piece in slices_of(file)]
        check_one_volume(slices)
        slices, affine = placed(slices)
        headers = [file.header for file in files]
        modality = text(headers[0], "Modality")
        factor = suv_factor(headers) if modality == "PT" else 1.0
        array = read_pixels(slices, factor, max_bytes)
        known = modality if modality in MODALITIES else ""
        return Volume(array, affine, known, _vendor(headers[0]), _frame(headers[0]))


def _single(path: Path, max_bytes: int) -> File:
    if not is_marked(path):
        raise RefusedImage("not_an_image", "DICOM must hold DICM after 128 bytes; it does not")
    check_budget(path.stat().st_size, max_bytes)
    file = open_file(path, max_bytes)
    if not _holds_image(file):
        raise RefusedImage("no_pixels", "DICOM must hold an image; it holds a plan, a mask, a dose or a report")
    return file


def _series(folder: Path, max_bytes: int) -> list[File]:
    paths = [path for path in sorted(folder.iterdir()) if may_be_slice(path)]
    check_budget(max((path.stat().st_size for path in paths), default=0), max_bytes)
    files = [file for path in paths if _holds_image(file := open_file(path, max_bytes))]
    if not files:
        raise RefusedImage("unsupported_format", "a folder must hold DICOM images; it holds none")
    return files


def may_be_slice(path: Path) -> bool:
    """Whether a file in a series folder is DICOM.

    Raises:
        RefusedImage: `not_an_image` where it should be but is not, `several_volumes` for a folder.
    """
    name = path.name.lower()
    if name.startswith(".") or name == "dicomdir":
        return False
    if path.is_symlink():  # it may lead out of the site's folder
        raise RefusedImage("not_an_image", "a series folder must hold plain files; it holds a link")
    if path.is_dir():
        raise RefusedImage("several_volumes", "a series folder must hold files; it holds folders")
    if path.is_file() and is_marked(path):
        return True
    if path.is_file() and NOT_DICOM.search(name) and not name.endswith(DICOM_SUFFIXES):
        return False
    raise RefusedImage("not_an_image", "a file in a series folder must be DICOM or another kind by its suffix")


def promises_image(header: Dataset, sop_class: str) -> bool:
    """Whether a header is that of an image; one without rows or pixels was then cut short."""
    return not _holds_no_image(header, sop_class) and (
        "Rows" in header or text(header, "Modality") in MODALITIES | {""}
    )


def _holds_no_image(header: Dataset, sop_class: str) -> bool:
    return text(header, "Modality") in NO_IMAGE or sop_class.startswith(NO_IMAGE_CLASSES)


def _holds_image(file: File) -> bool:
    """Whether a file is an image.

    Raises:
        RefusedImage: `truncated`, when it should be one and its pixels are not there.
    """
    # Without pixels it may be a slice cut short: ignoring it would lose the end of a series unseen.
    if file.pixels_at is None and promises_image(file.header, file.sop_class):
        raise RefusedImage("truncated", "an image must hold its pixels; the file ends before them")
    return file.pixels_at is not None and not _holds_no_image(file.header, file.sop_class)


def _check_kind(file: File, burned_in_text: BurnedIn) -> None:
    header = file.header
    kinds = set(texts(header, "ImageType"))
    if kinds & {"LOCALIZER", "SCOUT"}:
        raise RefusedImage("localizer", "an image must be part of a volume; it is a localizer")
    if "MOSAIC" in kinds:
        raise RefusedImage("mosaic", "a slice must be one slice; it is a mosaic of many")
    if burned_in_text == "unknown":
        _check_text(file)


def _check_text(file: File) -> None:
    header = file.header
    answer = text(header, "BurnedInAnnotation")
    risky = text(header, "Modality") in TEXT_MODALITIES or file.sop_class.startswith(TEXT_CLASS)
    if answer == "YES" or (risky and answer != "NO"):
        said = "says there is text in the pixels" if answer == "YES" else "does not deny text in the pixels"
        raise RefusedImage("burned_in_text", f"pixels must hold no text: the header {said}; declare burned_in_text")


def _vendor(header: Dataset) -> str:
    name = text(header, "Manufacturer").upper()
    found = [vendor for word, vendor in VENDOR_WORDS.items() if f"{name} ".startswith(word)]
    return found[0] if found else "OTHER" if name else ""


def _frame(header: Dataset) -> str:
    name = text(header, "FrameOfReferenceUID")
    return hashlib.sha256(name.encode()).hexdigest()[:16] if name else ""
