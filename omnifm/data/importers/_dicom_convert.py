"""Series that are not one straight volume, made into one: a chosen volume, a corrected tilt, an unpacked mosaic."""

import shutil
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np

from omnifm.data import dicom_mosaic
from omnifm.data.dicom_tilt import SHEAR
from omnifm.data.dicom_volumes import check_choice
from omnifm.data.reader import READER
from omnifm.data.volume import MAX_BYTES, RefusedImage

CONVERTED = ".nii.gz"
"""Suffix of the image that replaces a series."""
MOSAIC = "mosaic"


class Conversion(NamedTuple):
    """How series that are not one straight volume become one; an empty text refuses them.

    Attributes:
        volume: the volume that is chosen, as `dicom_volumes.check_choice` describes it.
        tilt: "shear" corrects a tilted gantry.
        convert: "mosaic" unpacks mosaics with dcm2niix.
    """

    volume: str
    tilt: str
    convert: str


def check_conversion(conversion: Conversion) -> None:
    """Refuse options that do not exist, before anything is read.

    Raises:
        ValueError: an option is unknown, or dcm2niix is wanted and not installed.
    """
    check_choice(conversion.volume)
    if conversion.tilt not in ("", SHEAR):
        raise ValueError(f"tilt must be {SHEAR} or absent; got {conversion.tilt!r}")
    if conversion.convert not in ("", MOSAIC):
        raise ValueError(f"convert must be {MOSAIC} or absent; got {conversion.convert!r}")
    if conversion.convert:
        dicom_mosaic.program()


def converted(folder: Path, conversion: Conversion) -> str:
    """Replace the DICOM files of a series by one NIfTI file beside their folder, if they are no plain volume.

    Args:
        folder: the copied files of one series.
        conversion: what is allowed.

    Returns:
        what was changed, in words; "" if the series is a plain volume, which is left as it is.

    Raises:
        RefusedImage: the series cannot be made into one volume.
    """
    choice = conversion.volume
    try:
        facts, array = READER.ask(
            folder,
            what="series",
            max_bytes=MAX_BYTES,
            burned_in_text="unknown",
            choice=choice,
            tilt=conversion.tilt,
        )
    except RefusedImage as refusal:
        if refusal.reason != "mosaic" or conversion.convert != MOSAIC:
            raise
        with dicom_mosaic.converted(folder) as file:
            facts, array = READER.ask(file, what="mosaic", max_bytes=MAX_BYTES, choice=choice)
    if not facts["changes"]:
        return ""
    if array.ndim != 3:
        raise RefusedImage("unsupported_format", "a series that is changed must be grey; it is coloured")
    image = nibabel.Nifti1Image(array, np.array(facts["affine"]))
    image.set_sform(image.affine, code="scanner")
    image.set_qform(image.affine, code="scanner")
    image.to_filename(folder.with_name(f"{folder.name}{CONVERTED}"))
    shutil.rmtree(folder)
    return "; ".join(facts["changes"])
