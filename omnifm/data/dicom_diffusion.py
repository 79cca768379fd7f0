"""The diffusion weighting (b value, s/mm2) of an MR slice: the standard element, or what a vendor writes instead."""

import re

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from omnifm.data.dicom_file import text, texts

PRIVATE = {
    "GE": (0x00430010, "GEMS_PARM_01", 0x00431039),
    "SIEMENS": (0x00190010, "SIEMENS MR HEADER", 0x0019100C),
    "PHILIPS": (0x20010010, "PHILIPS IMAGING DD 001", 0x20011003),
}
"""Manufacturer -> the element that names a private block, that name, and the element that holds the b value."""
GE_SHIFT = 100_000
"""GE adds a multiple of this to mark the direction: 1000001000 is b = 1000."""
SIEMENS_NAME = re.compile(r"(?:^|_)b(\d{1,5})(?:[#t]|$)")
"""The b value in the name of a Siemens sequence: `*ep_b1000#3`, `*ep_b1000t`."""


def b_value(groups: list[Dataset], standard: Dataset) -> str:
    """The b value as text; "" if the slice does not say one.

    Args:
        groups: the frame's functional groups, those of all frames, and last the header.
        standard: the dataset that holds DiffusionBValue if there is one.
    """
    found = texts(standard, "DiffusionBValue")
    if found:
        return found[0]
    header = groups[-1]
    for vendor, (creator, name, element) in PRIVATE.items():
        # Some anonymisers keep the block and lose its name.  Then the manufacturer says whose block it is.
        owner = _first(header, creator) or name * text(header, "Manufacturer").upper().startswith(vendor)
        value = _first(header, element) if owner.upper().startswith(name) else ""
        if vendor == "GE" and value.isdecimal():
            return str(int(value) % GE_SHIFT)
        if re.fullmatch(r"\d+(\.\d*)?", value):
            return value
    found_in_name = SIEMENS_NAME.search("".join(texts(header, "SequenceName")[:1]))
    return found_in_name[1] if found_in_name else ""


def _first(header: Dataset, tag: int) -> str:
    """The first value of a private element as text; in files without value types it arrives as bytes."""
    value = header[tag].value if tag in header else ""
    words = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    parts = words.split("\\") if isinstance(words, str) else words
    return str(parts[0] if isinstance(parts, MultiValue | list) and parts else parts).strip(" \0")
