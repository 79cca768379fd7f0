"""DICOM images as volumes: one file, classic or multi-frame, or a folder that holds one series.

A section (CT, MR, PET) has a place in the patient.  A picture (X-ray, ultrasound, photograph) has none: x runs along
its columns and y down its rows, as in a PNG.  Its spacing is PixelSpacing or ImagerPixelSpacing, or 1 if both are
absent.

In a series folder these are ignored: hidden files, a DICOMDIR, files whose suffix names another format (`.txt`,
`.json`, `.nii.gz`), and DICOM objects that hold no image (structures, segmentations, doses, reports).  Any other file
that is not DICOM is refused, because it may be a damaged slice.

How stored values become voxel values is described in `dicom_pixels` and, for PET, in `dicom_suv`.
"""

import hashlib
import re
from pathlib import Path

from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset

from omnifm.data.dicom_file import File, is_marked, open_file, text, texts
from omnifm.data.dicom_geometry import MAX_TILT_DEGREES, placed, tilt_degrees
from omnifm.data.dicom_kinds import check_count, check_parts
from omnifm.data.dicom_pixels import check_headers, read_pixels
from omnifm.data.dicom_slices import check_one_volume, slices_of
from omnifm.data.dicom_suv import suv_factor
from omnifm.data.dicom_tilt import SHEAR, sheared
from omnifm.data.dicom_volumes import count_places, one_volume
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
"""Beginning of a manufacturer's name -> the vendor that owns its scanners today."""
MODALITY_CODES = """
    BDUS BI CR CT DG DX ES GM IO IVOCT IVUS LS MG MR NM OCT OP OPM OPT OT PT PX RF RG RTIMAGE SC SM TG US XA XC
"""
MODALITIES = frozenset(MODALITY_CODES.split())
"""Codes of devices that make images.  Any other code is dropped, since it could be free text."""
NO_IMAGE = frozenset({"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "PR", "KO", "SR", "REG", "FID", "PLAN", "ANN"})
"""Modality codes of DICOM objects that hold no image."""
NO_IMAGE_CLASSES = (
    "1.2.840.10008.1.3.10",  # DICOMDIR
    "1.2.840.10008.5.1.4.1.1.66",  # segmentations, registrations, and surfaces
    "1.2.840.10008.5.1.4.1.1.481.2",  # dose
)
"""How the SOP classes of objects without an image begin."""
TEXT_MODALITIES = frozenset({"", "DOC", "ES", "IVUS", "OT", "SC", "US"})
"""Modalities whose pixels often show a patient's name; "" stands for an absent modality, of which nothing is known."""
TEXT_CLASS = "1.2.840.10008.5.1.4.1.1.7"
"""How the SOP classes of secondary captures begin: screenshots and scanned paper."""
SCREENSHOT_WORDS = ("SCREEN SAVE", "SCREENSHOT", "SCREEN SHOT", "DOSE REPORT", "DOSE_INFO", "CSA REPORT")
"""Words in ImageType by which scanners mark pictures of their screen."""
SUFFIX = re.compile(r"\.[a-z]+[0-9]?$")
"""A suffix that names a file format; the number at the end of a UID is none."""
DICOM_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima", ".img")


def is_dicom(path: Path) -> bool:
    """Whether a path is a folder (a series), or a file with DICOM's preamble or with a name in `.dcm`."""
    if path.is_dir():
        return True
    return path.is_file() and (is_marked(path) or path.name.lower().endswith(".dcm"))


def read(path: Path, max_bytes: int, burned_in_text: BurnedIn) -> Volume:
    """Read one file or one folder as a volume; the arguments are those of `volume.read_volume`.

    Raises:
        RefusedImage: see `refusal.REASONS`.  Exceptions of pydicom are passed on to the caller.
    """
    return read_changed(path, max_bytes, burned_in_text)[0]


def read_changed(
    path: Path, max_bytes: int, burned_in_text: BurnedIn, choice: str = "", tilt: str = ""
) -> tuple[Volume, list[str]]:
    """Read one file or one folder, of which a volume may be chosen and a tilt corrected.

    Args:
        path: file or folder.
        max_bytes: memory budget in bytes.
        burned_in_text: what is known about text in the pixels.
        choice: one volume of a series that holds several, as `dicom_volumes.check_choice` describes it.
        tilt: "shear" to correct a tilted gantry, "" to refuse it.

    Returns:
        the volume, and what was changed in words; nothing was changed if a plain `read` gives the same.

    Raises:
        RefusedImage: see `refusal.REASONS`.  Exceptions of pydicom are passed on to the caller.
    """
    with disable_value_validation():  # we check the elements that we use; a mistake in another one does not matter
        files = _series(path, max_bytes) if path.is_dir() else [_single(path, max_bytes)]
        for file in files:
            _check_kind(file, burned_in_text)
        check_headers(files, max_bytes)
        everything = [piece for file in files for piece in slices_of(file)]
        check_parts(files)
        if path.is_dir():
            check_count(files, count_places(everything))
        slices = one_volume(everything, choice)
        check_one_volume(slices)
        slices, affine = placed(slices, tilted=tilt == SHEAR)
        headers = [file.header for file in files]
        modality = text(headers[0], "Modality")
        factor = suv_factor(headers) if modality == "PT" else 1.0
        array = read_pixels(slices, factor, max_bytes)
        known = modality if modality in MODALITIES else ""
        volume = Volume(array, affine, known, _vendor(headers[0]), _frame(headers[0]))
        changes = [f"volume {choice} of {len(everything) // len(slices)}"] if len(everything) > len(slices) else []
        if (degrees := tilt_degrees(affine)) > MAX_TILT_DEGREES:
            check_budget(4 * array.nbytes, max_bytes)
            volume = sheared(volume)
            changes.append(f"gantry tilt of {degrees:.1f} degrees, removed by a linear shear")
        return volume, changes


def _single(path: Path, max_bytes: int) -> File:
    if not is_marked(path):
        raise RefusedImage("not_an_image", "a DICOM file must have the letters DICM after 128 bytes; this one does not")
    check_budget(path.stat().st_size, max_bytes)
    file = open_file(path, max_bytes)
    if not _holds_image(file):
        raise RefusedImage(
            "no_pixels", "a DICOM file must hold an image; this one holds a plan, a mask, a dose or a report"
        )
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
        RefusedImage: `not_an_image` if it should be DICOM by its name but is not, `several_volumes` for a folder.
    """
    name = path.name.lower()
    if name.startswith(".") or name == "dicomdir":
        return False
    if path.is_symlink():  # a link may lead out of the site's folder
        raise RefusedImage(
            "not_an_image", "a series folder must hold plain files; it holds a link: copy the file instead"
        )
    if path.is_dir():
        raise RefusedImage("several_volumes", "a series folder must hold files of one series; it holds folders")
    if path.is_file() and is_marked(path):
        return True
    if path.is_file() and SUFFIX.search(name) and not name.endswith(DICOM_SUFFIXES):
        return False
    raise RefusedImage(
        "not_an_image", "a file in a series folder must be DICOM, or have the suffix of another format; one is neither"
    )


def promises_image(header: Dataset, sop_class: str) -> bool:
    """Whether a header describes an image.  If such a file has no rows or pixels, it was cut short."""
    return not _holds_no_image(header, sop_class) and (
        "Rows" in header or text(header, "Modality") in MODALITIES | {""}
    )


def _holds_no_image(header: Dataset, sop_class: str) -> bool:
    return text(header, "Modality") in NO_IMAGE or sop_class.startswith(NO_IMAGE_CLASSES)


def _holds_image(file: File) -> bool:
    """Whether a file is an image.

    Raises:
        RefusedImage: `truncated` if its header describes an image but the file has no pixels.
    """
    # A file without pixels may be a slice that was cut short.  If it were ignored, the series would lack a slice.
    if file.pixels_at is None and promises_image(file.header, file.sop_class):
        raise RefusedImage("truncated", "an image must hold its pixels; the file ends before them: copy it again")
    return file.pixels_at is not None and not _holds_no_image(file.header, file.sop_class)


def is_localizer(header: Dataset) -> bool:
    """Whether an image says that it is a localizer (scout view)."""
    return bool({"LOCALIZER", "SCOUT"} & set(texts(header, "ImageType")))


def is_screenshot(header: Dataset, sop_class: str) -> bool:
    """Whether an image says that it is a screenshot, a scanned page or a report as a picture."""
    kinds = " ".join(texts(header, "ImageType")).upper()
    return sop_class.startswith(TEXT_CLASS) or any(word in kinds for word in SCREENSHOT_WORDS)


def _check_kind(file: File, burned_in_text: BurnedIn) -> None:
    header = file.header
    kinds = set(texts(header, "ImageType"))
    if is_localizer(header):
        raise RefusedImage("localizer", "an image must be part of a volume; it is a localizer (scout view)")
    if "MOSAIC" in kinds:
        todo = "`omnifm prepare dicom --convert mosaic` unpacks it"
        raise RefusedImage("mosaic", f"a slice must be one slice; it is a mosaic of many: {todo}")
    if burned_in_text == "unknown":
        _check_text(file)


def _check_text(file: File) -> None:
    header = file.header
    answer = text(header, "BurnedInAnnotation")
    risky = text(header, "Modality") in TEXT_MODALITIES or file.sop_class.startswith(TEXT_CLASS)
    if answer == "YES" or (risky and answer != "NO"):
        found = "says there is text in the pixels" if answer == "YES" else "does not deny text in the pixels"
        todo = "look at the image, and say by burned_in_text what it shows"
        raise RefusedImage("burned_in_text", f"pixels must hold no text; the header {found}: {todo}")


def _vendor(header: Dataset) -> str:
    name = text(header, "Manufacturer").upper()
    if not name:
        return ""
    return next((vendor for word, vendor in VENDOR_WORDS.items() if f"{name} ".startswith(word)), "OTHER")


def _frame(header: Dataset) -> str:
    name = text(header, "FrameOfReferenceUID")
    return hashlib.sha256(name.encode()).hexdigest()[:16] if name else ""
