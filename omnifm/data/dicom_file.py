"""Reading one DICOM file within limits: its header first, and its pixels after the header has been checked.

pydicom parses, and we limit what it reads.  Only the elements in `KEPT` are read from a header, so a patient's name is
never loaded.  A deflated (compressed) file is decompressed in pieces, and each is counted against the memory budget.
"""

import math
import re
import zlib
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_preamble
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

from omnifm.data.refusal import RefusedImage, check_budget

CHUNK = 2**20
DEFLATED = uid.DeflatedExplicitVRLittleEndian
PIXEL_GROUP = 0x7FE0
PIXELS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "FloatPixelData", "DoubleFloatPixelData", "PixelData")
PHILIPS_PET = (0x70530010, 0x70531000, 0x70531009)
"""Philips' private elements: the creator, SUV per count, Bq/mL per count."""
GE_PET = (0x00090010, 0x0009100D)
"""GE's private elements: the creator, date and time of the scan."""
KEYWORDS = """
    SOPClassUID SOPInstanceUID SeriesInstanceUID FrameOfReferenceUID Modality Manufacturer ImageType
    BurnedInAnnotation NumberOfFrames Rows Columns SamplesPerPixel PhotometricInterpretation PlanarConfiguration
    BitsAllocated BitsStored HighBit PixelRepresentation PixelAspectRatio
    ImagePositionPatient ImageOrientationPatient PixelSpacing ImagerPixelSpacing SliceThickness SpacingBetweenSlices
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
    EchoTime EchoNumbers InversionTime TemporalPositionIdentifier DiffusionBValue FlipAngle KVP SequenceName
    ConvolutionKernel PatientPosition StudyInstanceUID SeriesNumber AcquisitionNumber InstanceNumber
    ImagesInAcquisition NumberOfSlices ConcatenationUID InConcatenationTotalNumber DimensionIndexSequence
    PixelPaddingValue PixelPaddingRangeLimit FloatPixelPaddingValue FloatPixelPaddingRangeLimit
    DoubleFloatPixelPaddingValue DoubleFloatPixelPaddingRangeLimit
    RescaleSlope RescaleIntercept RescaleType ModalityLUTSequence PaletteColorLookupTableUID
    RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData
    Units CorrectedImage DecayCorrection PatientWeight SeriesDate SeriesTime AcquisitionDate AcquisitionTime
    FrameReferenceTime ActualFrameDuration RadiopharmaceuticalInformationSequence
"""
DIFFUSION = (0x00190010, 0x0019100C, 0x00430010, 0x00431039, 0x20010010, 0x20011003)
"""Private elements of Siemens, GE and Philips, each after its creator: the b value of a slice."""
KEPT = (*(Tag(keyword) for keyword in KEYWORDS.split()), *PHILIPS_PET, *GE_PET, *DIFFUSION)
"""The only elements that are read from a header."""


@dataclass(frozen=True, eq=False)
class File:
    """A DICOM file whose header has been read.

    Attributes:
        path: the file.
        header: the elements of `KEPT`, never pixels.
        sop_class: UID of the kind of object; "" if the file does not give it.
        syntax: UID of the transfer syntax, i.e. how the file is encoded; "" if the file does not give it.
        data_at: position of the header in the file, in bytes.
        pixels_at: position of the pixels, in bytes; in a deflated file, that in the decompressed data.  None if there
            are no pixels.
        num_bytes: size of the file after decompression.
    """

    path: Path
    header: Dataset
    sop_class: str
    syntax: str
    data_at: int
    pixels_at: int | None
    num_bytes: int


def is_marked(path: Path) -> bool:
    """Whether a file begins as DICOM files do: 128 bytes of any content, then the letters DICM."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def open_file(path: Path, max_bytes: int) -> File:
    """Read the header of a file that `is_marked`.

    Raises:
        RefusedImage: `too_large`, `truncated`, `unsupported_transfer_syntax`.
    """
    with path.open("rb") as raw:
        read_preamble(raw, force=False)
        meta = read_dataset(raw, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        syntax = text(meta, "TransferSyntaxUID")
        data_at = raw.tell()
        stream: BinaryIO = _inflated(raw, max_bytes) if syntax == DEFLATED else raw
        header = read_dataset(
            stream,
            syntax == uid.ImplicitVRLittleEndian,
            syntax != uid.ExplicitVRBigEndian,
            stop_when=lambda tag, vr, length: tag.group >= PIXEL_GROUP,
            specific_tags=list(KEPT),
        )
        end, group = stream.tell(), stream.read(2)
        num_bytes = stream.seek(0, 2)
    if syntax not in uid.AllTransferSyntaxes and any(
        keyword in header for keyword in ("Rows", "Columns", "BitsAllocated")
    ):
        raise RefusedImage(
            "unsupported_transfer_syntax",
            "DICOM must name a standard transfer syntax; it does not: convert it to Explicit VR Little Endian",
        )
    holds_pixels = PIXEL_GROUP in (int.from_bytes(group, order) for order in ("little", "big"))
    sop_class = text(header, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID")
    return File(path, header, sop_class, syntax, data_at, end if holds_pixels else None, num_bytes)


def with_pixels(file: File, max_bytes: int) -> Dataset:
    """Header and pixels in one dataset, as pydicom's decoders need them.

    Raises:
        RefusedImage: `truncated`.
    """
    implicit, little_endian = (bool(kind) for kind in file.header.original_encoding)
    with file.path.open("rb") as raw:
        stream: BinaryIO = raw
        if file.syntax == DEFLATED:
            raw.seek(file.data_at)
            stream = _inflated(raw, max_bytes)
        stream.seek(file.pixels_at or 0)
        tags: list[BaseTag | int] = [Tag(keyword) for keyword in PIXELS]
        pixels = read_dataset(stream, implicit, little_endian, specific_tags=tags)
    if not any(keyword in pixels for keyword in PIXELS[2:]):
        raise RefusedImage("truncated", "pixels must be complete; the file ends within them: copy it again")
    whole = Dataset()
    whole.update(file.header)
    whole.update(pixels)
    whole.set_original_encoding(implicit, little_endian)
    return whole


def _inflated(raw: BinaryIO, max_bytes: int) -> BytesIO:
    """The rest of a deflated file, decompressed."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = bytearray()
    while not inflater.eof:
        packed = inflater.unconsumed_tail or raw.read(CHUNK)
        if not packed:
            raise RefusedImage("truncated", "deflated DICOM must decompress to its end; it does not")
        data += inflater.decompress(packed, CHUNK)
        check_budget(2 * len(data), max_bytes)  # the data exist twice for a moment: here and in the stream
    return BytesIO(data)


def text(group: Dataset, keyword: str) -> str:
    """The first value of an element as text without padding; "" if there is none."""
    values = texts(group, keyword)
    return values[0] if values else ""


def texts(group: Dataset, keyword: str) -> list[str]:
    """The values of an element as text without padding."""
    return [str(value).strip(" \0") for value in _values(group, keyword)]


def numbers(group: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """The `count` finite numbers of an element; None if it is absent or empty.

    Raises:
        RefusedImage: `non_finite`, or `corrupt` for another count.
    """
    try:
        found = tuple(float(value) for value in _values(group, keyword) if value != "")
    except (ValueError, TypeError, OverflowError):
        _refuse_number(group, keyword)
    if not found:
        return None
    if len(found) != count:
        raise RefusedImage("corrupt", f"{keyword} must hold {count} numbers; got {len(found)}")
    if not all(math.isfinite(value) for value in found):
        raise RefusedImage("non_finite", f"{keyword} must be finite; it is not")
    return found


def number(group: Dataset, keyword: str) -> float | None:
    """The one finite number of an element; None if it is absent or empty.

    Raises:
        RefusedImage: as `numbers`.
    """
    found = numbers(group, keyword, 1)
    return None if found is None else found[0]


def _refuse_number(group: Dataset, keyword: str) -> NoReturn:
    stored = group.get_item(_tag(keyword))
    value = stored.value if stored is not None else ""
    words = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    rule = f"{keyword} must hold numbers as DICOM writes them, like 0.75; it does not"
    if re.search(r"\d,\d", words):
        rule = f"{keyword} must be written with a decimal point, like 0.75; it has a decimal comma"
    todo = "set the exporting program to DICOM's form, or convert the series to NIfTI"
    raise RefusedImage("corrupt", f"{rule}: {todo}")


def _values(group: Dataset, keyword: str) -> list[Any]:
    tag = _tag(keyword)
    try:
        value = group[tag].value if tag in group else None
    except (ValueError, TypeError, OverflowError, ArithmeticError):  # pydicom turns text into a number here
        _refuse_number(group, keyword)
    several = value if isinstance(value, MultiValue | list) else [value]
    return [part for part in several if part is not None]


@cache
def _tag(keyword: str) -> BaseTag:
    # Cached, since pydicom searches its dictionary each time, and thousands of slices use dozens of keywords.
    return Tag(keyword)
