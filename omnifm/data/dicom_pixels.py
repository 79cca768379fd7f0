"""Stored pixels of DICOM slices -> float32 in the unit of the modality.

Grey values become slope * stored + intercept, or the value in the modality's look-up table.  Padding becomes air (see
`dicom_padding`).  In MONOCHROME1 higher stored values are darker.  These values are mirrored within the range of their
bits, so that more is brighter, except where the number is a measurement (`MEASURED`).  Colour becomes RGB and is never
rescaled: 0-255 for 8 bits.  Bits above the stored ones, which may hold overlays, are cleared.
"""

from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
from jaxtyping import Float, Shaped
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from omnifm.data.dicom_file import File, number, text, texts, with_pixels
from omnifm.data.dicom_padding import fill_with_air, padding
from omnifm.data.dicom_slices import Slice, num_frames
from omnifm.data.refusal import RefusedImage, check_budget

DECODERS: Mapping[str, str] = {
    uid.ImplicitVRLittleEndian: "",
    uid.ExplicitVRLittleEndian: "",
    uid.ExplicitVRBigEndian: "",
    uid.DeflatedExplicitVRLittleEndian: "",
    uid.RLELossless: "pylibjpeg",
    uid.JPEGBaseline8Bit: "pylibjpeg",
    uid.JPEGExtended12Bit: "pylibjpeg",
    uid.JPEGLossless: "pylibjpeg",
    uid.JPEGLosslessSV1: "pylibjpeg",
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg",
    uid.HTJ2K: "pylibjpeg",
}
"""Transfer syntax -> decoder ("" if nothing is compressed).  It is fixed, so that all sites use the same decoders."""
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
MEASURED = frozenset({"CT", "PT", "NM"})
"""Modalities whose values are measurements or counts, whatever MONOCHROME1 says of their display."""
IMAGE_START = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")  # JPEG and JPEG-LS, JPEG 2000
IMAGE_END = b"\xff\xd9"
BLOCK = 32
"""Number of slices that are transposed at once, which makes writing to memory faster than slice by slice."""
Frame = Shaped[np.ndarray, "rows columns *c"]


def check_headers(files: list[File], max_bytes: int) -> None:
    """Refuse images by their headers, before a pixel is read.

    Raises:
        RefusedImage: `unsupported_transfer_syntax`, `unsupported_format`, `corrupt`, `too_large`.
    """
    values, one = 0, 0
    for file in files:
        frames = num_frames(file.header)
        channels = _check_pixel_type(file)
        frame = int(file.header.Rows) * int(file.header.Columns) * channels
        values, one = values + frames * frame, max(one, frame)
    # Memory for the result, one block of it twice, one frame as stored and in units, and the largest file.
    needed = 4 * values + 8 * one * min(BLOCK, values // one) + 24 * one + max(file.num_bytes for file in files)
    check_budget(needed, max_bytes)


def read_pixels(slices: list[Slice], factor: float, max_bytes: int) -> Float[np.ndarray, "x y z *c"]:
    """The values of the slices, stacked in the order given.

    Args:
        slices: slices of one size, all grey or all colour.
        factor: factor of all values after slope and intercept, e.g. SUV per Bq/mL.
        max_bytes: memory budget in bytes.

    Raises:
        RefusedImage: `truncated`, `corrupt`, `non_finite`, `no_units`, `unsupported_format`.
    """
    frames = _frames(slices, factor, max_bytes)
    volume: np.ndarray | None = None
    for start in range(0, len(slices), BLOCK):
        block = np.stack([*islice(frames, BLOCK)])  # z y x c
        if volume is None:
            _, rows, columns, *channels = block.shape
            volume = np.empty((columns, rows, len(slices), *channels), np.float32)
        for y in range(block.shape[1]):
            volume[:, y, start : start + BLOCK] = block[:, y].swapaxes(0, 1)
    assert volume is not None
    if text(slices[0].file.header, "PhotometricInterpretation") == "PALETTE COLOR":
        # As for pictures: some programs store grey images with a palette.
        return volume[..., 0] if (volume == volume[..., :1]).all() else volume
    return volume


def _check_pixel_type(file: File) -> int:
    """Number of channels of a decoded frame, after a check that the header describes its pixels consistently."""
    header = file.header
    if file.syntax not in DECODERS:
        raise RefusedImage(
            "unsupported_transfer_syntax",
            "DICOM compression must be one that we decode; it is not: convert it to Explicit VR Little Endian",
        )
    sizes = {side: number(header, side) or 0 for side in ("Rows", "Columns")}
    if min(sizes.values()) < 1:
        raise RefusedImage("corrupt", f"Rows and Columns must be positive; got {list(sizes.values())}")
    kind = text(header, "PhotometricInterpretation")
    samples = 3 if kind in COLOUR else 1
    if kind not in (*GREY, *COLOUR, "PALETTE COLOR"):
        raise RefusedImage("unsupported_format", "pixels must be grey, palette, RGB or YBR; they are not")
    if number(header, "SamplesPerPixel") != samples:
        raise RefusedImage("corrupt", f"SamplesPerPixel must be {samples} for this kind of pixel; it is not")
    allocated, stored = number(header, "BitsAllocated"), number(header, "BitsStored")
    if allocated not in (1, 8, 16, 32, 64) or (samples == 3 and allocated not in (8, 16)):
        raise RefusedImage("unsupported_format", f"BitsAllocated must be 1, 8, 16, 32 or 64; got {allocated}")
    if samples == 3 and kind != "RGB" and allocated != 8:
        raise RefusedImage("unsupported_format", f"YBR must have 8 bits per channel; got {allocated:g}")
    if stored is not None and not (1 <= stored <= allocated and number(header, "HighBit") in (None, stored - 1)):
        got = f"{stored:g} stored of {allocated:g}"
        raise RefusedImage("unsupported_format", f"stored bits must be the lowest of those allocated; got {got}")
    return 3 if kind == "PALETTE COLOR" else samples


def _frames(slices: list[Slice], factor: float, max_bytes: int) -> Iterator[Float[np.ndarray, "rows columns *c"]]:
    file, dataset = None, Dataset()
    for piece in slices:
        if piece.file is not file:
            file, dataset = piece.file, with_pixels(piece.file, max_bytes)
            _check_length(dataset, file)
        frame = _in_units(_decoded(dataset, piece), piece, dataset, factor)
        if not np.isfinite(frame).all():
            raise RefusedImage("non_finite", "every voxel must be finite; some are NaN or infinite")
        yield frame


def _check_length(dataset: Dataset, file: File) -> None:
    """Refuse if there are fewer or more pixels than the header promises."""
    frames = num_frames(dataset)
    if uid.UID(file.syntax).is_encapsulated:
        _check_encapsulated(dataset, frames, is_rle=file.syntax == uid.RLELossless)
        return
    per_pixel = 2 if dataset.PhotometricInterpretation == "YBR_FULL_422" else dataset.SamplesPerPixel
    bits = frames * dataset.Rows * dataset.Columns * per_pixel * dataset.BitsAllocated
    promised = (bits + 7) // 8
    keyword = next(key for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if key in dataset)
    stored = len(dataset[keyword].value)
    if stored not in (promised, promised + promised % 2):
        raise RefusedImage("truncated", f"pixels must take the {promised} bytes promised; they take {stored}")


def _check_encapsulated(dataset: Dataset, frames: int, *, is_rle: bool) -> None:
    data = dataset.PixelData
    table = [dataset.get(key) for key in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    offsets = (table[0], table[1]) if all(table) else None
    starts = sum(part.startswith(IMAGE_START) for part in generate_fragments(data))
    found = 0
    for frame in generate_frames(data, number_of_frames=frames, extended_offsets=offsets):
        found += 1
        # Decoders silently fill missing pixels with grey.  There may be padding after the end mark.
        if not is_rle and IMAGE_END not in frame.rstrip(b"\0")[-3:]:
            raise RefusedImage(
                "truncated", "a compressed frame must end with its end mark; one does not: copy the file again"
            )
    if found != frames or starts > frames:
        raise RefusedImage("truncated", f"pixels must hold the {frames} frames promised; got {max(found, starts)}")


def _decoded(dataset: Dataset, piece: Slice) -> Frame:
    decoder = get_decoder(piece.file.syntax)
    frame, _ = decoder.as_array(dataset, index=piece.frame, decoding_plugin=DECODERS[piece.file.syntax])
    if frame.shape[:2] != (dataset.Rows, dataset.Columns):
        raise RefusedImage("corrupt", "a decoded frame must have the size promised; it has another")
    return frame


def _in_units(stored: Frame, piece: Slice, dataset: Dataset, factor: float) -> Float[np.ndarray, "rows columns *d"]:
    slope, intercept = _rescale(piece)
    kind, has_lut = text(dataset, "PhotometricInterpretation"), "ModalityLUTSequence" in dataset
    if kind not in GREY:
        if (slope, intercept) != (1.0, 0.0) or has_lut:
            raise RefusedImage(
                "unsupported_format",
                "colour must not be rescaled; the header gives a slope, an intercept or a look-up table",
            )
        return np.asarray(apply_color_lut(stored, dataset) if kind == "PALETTE COLOR" else stored, np.float32)
    is_padding = padding(stored, dataset)
    if kind == "MONOCHROME1" and text(dataset, "Modality") not in MEASURED:
        stored = _mirrored(stored, dataset, has_lut)
    if has_lut:
        stored = apply_modality_lut(stored, dataset)
    values = _scaled(stored, slope, intercept, factor)
    return values if is_padding is None else fill_with_air(values, is_padding, text(dataset, "Modality"))


def _scaled(stored: Frame, slope: float, intercept: float, factor: float) -> Float[np.ndarray, "rows columns"]:
    with np.errstate(all="ignore"):  # values too large for float32 become infinite, which is refused later
        if (slope, intercept, factor) == (1.0, 0.0, 1.0):
            return stored.astype(np.float32)
        return ((stored.astype(np.float64) * slope + intercept) * factor).astype(np.float32)


def _rescale(piece: Slice) -> tuple[float, float]:
    header, slope, intercept = piece.file.header, piece.slope, piece.intercept
    if "ModalityLUTSequence" in header:
        if slope is not None or intercept is not None:
            raise RefusedImage("corrupt", "a header must give a look-up table or a slope and intercept, not both")
        return 1.0, 0.0
    if text(header, "Modality") == "CT":
        _check_hounsfield(piece)
    if slope is None and intercept is None:
        return 1.0, 0.0
    if slope is None or intercept is None or slope == 0:
        raise RefusedImage(
            "corrupt", "RescaleSlope (not 0) and RescaleIntercept must both be given or both be absent; they are not"
        )
    return slope, intercept


def _check_hounsfield(piece: Slice) -> None:
    if piece.slope is None or piece.intercept is None:
        raise RefusedImage("no_units", "CT must give the slope and intercept to Hounsfield units; it does not")
    enhanced = "SharedFunctionalGroupsSequence" in piece.file.header
    contrast = texts(piece.file.header, "ImageType")[3:4] if enhanced else []
    # Some scanners mark plain CT as "US" (unspecified).  Perfusion maps have that mark too, but ImageType names them.
    if piece.rescale_type not in ("", "HU", "US") or contrast not in ([], ["NONE"]):
        raise RefusedImage("no_units", "CT must be in Hounsfield units; its header gives another type of value")


def _mirrored(stored: Frame, dataset: Dataset, has_lut: bool) -> Frame:
    if has_lut or stored.dtype.kind == "f":
        raise RefusedImage(
            "unsupported_format", "MONOCHROME1 must hold whole numbers without a look-up table; it does not"
        )
    ends = 2**dataset.BitsStored - 1 if dataset.PixelRepresentation == 0 else -1  # smallest + largest value
    return ends - stored.astype(np.int64)
