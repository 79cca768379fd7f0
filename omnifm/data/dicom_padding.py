"""Voxels without a measurement: pixels that a DICOM header declares as padding become air.

Scanners fill what lies outside their round field of view with a marker, PixelPaddingValue, or with a range of values
up to PixelPaddingRangeLimit.  Both are stored values, before slope and intercept.
"""

import numpy as np
from jaxtyping import Bool, Float, Shaped
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from omnifm.data.dicom_file import number, text
from omnifm.data.refusal import RefusedImage
from omnifm.data.volume import AIR_HU, CT_FLOOR_HU

ZERO_IS_NOTHING = frozenset({"MR", "PT", "NM"})
"""Modalities whose value 0 means that nothing was measured."""
KEYWORDS = {"iu": "PixelPadding", "f4": "FloatPixelPadding", "f8": "DoubleFloatPixelPadding"}
"""Kind of stored pixels -> how the names of the two elements begin."""


def padding(stored: Shaped[np.ndarray, "rows columns"], header: Dataset) -> Bool[np.ndarray, "rows columns"] | None:
    """Which stored pixels are padding; None if the header declares none.

    Raises:
        RefusedImage: `corrupt`, `non_finite`.
    """
    name = KEYWORDS["iu" if stored.dtype.kind in "iub" else stored.dtype.str[1:]]
    value, limit = (_declared(header, f"{name}{end}") for end in ("Value", "RangeLimit"))
    if value is None:
        return None
    low, high = sorted((value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


def fill_with_air(
    values: Float[np.ndarray, "rows columns"], is_padding: Bool[np.ndarray, "rows columns"], modality: str
) -> Float[np.ndarray, "rows columns"]:
    """The values in the modality's unit with air in place of padding.

    A CT value below the smallest Hounsfield unit stays: no measurement has it, and `Volume.in_ras` turns it into air.
    In X-rays and photographs, whose unit has no zero, the smallest value of the image stands for air.
    """
    if modality == "CT":
        return np.where(is_padding & (values >= CT_FLOOR_HU), np.float32(AIR_HU), values)
    rest = values[~is_padding]
    air = 0.0 if modality in ZERO_IS_NOTHING or not rest.size else rest.min()
    return np.where(is_padding, np.float32(air), values)


def _declared(header: Dataset, keyword: str) -> float | None:
    """A declared value as the pixels hold it, whichever sign its own type gives it."""
    tag = Tag(keyword)
    raw = header[tag].value if tag in header else None
    if isinstance(raw, bytes):  # in files without value types it is not clear whether the number has a sign
        value: float | None = float(int.from_bytes(raw[:2], "little")) if len(raw) >= 2 else None
    else:
        value = number(header, keyword)
    if value is None or not keyword.startswith("PixelPadding"):
        return value
    if value != int(value):
        raise RefusedImage("corrupt", f"{keyword} must be a whole number; got {value:g}")
    return float(_in_bits(int(value), header))


def _in_bits(value: int, header: Dataset) -> int:
    """A number whose bits are those of a stored pixel, read with or without sign as the pixels are."""
    bits = int(number(header, "BitsStored") or number(header, "BitsAllocated") or 16)
    is_signed = text(header, "PixelRepresentation") == "1"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    if low <= value <= high:
        return value
    value %= 2 ** min(bits, 16)
    return value - 2 ** min(bits, 16) if is_signed and value >= 2 ** (min(bits, 16) - 1) else value
