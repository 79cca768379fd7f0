"""What the header of a NIfTI file or of a picture says that is no error, and that somebody should look at.

It runs inside `reader_process`, as all parsing of files does.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

ORIENTATION_TAG = 0x0112
"""Number of EXIF's tag Orientation."""
UPRIGHT = 1
"""Its value for a picture that is stored as it is shown."""


def notes(path: Path) -> dict[str, float]:
    """Return `transforms_apart` (voxels) of a NIfTI file with both transforms, `exif` of a picture with such a tag.

    >>> notes(Path("series"))
    {}
    """
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _transforms(path)
    if name.endswith((".jpg", ".jpeg", ".png", ".tif", ".tiff")):
        with Image.open(path) as picture:
            tag = picture.getexif().get(ORIENTATION_TAG, UPRIGHT)
        return {} if tag == UPRIGHT else {"exif": float(tag)}
    return {}


def _transforms(path: Path) -> dict[str, float]:
    """How far apart sform and qform put the corners of the image; nothing if the file has only one of them."""
    image = nibabel.load(path)  # reads the header only
    header = image.header
    if min(int(header["sform_code"]), int(header["qform_code"])) <= 0:
        return {}
    there = np.linalg.inv(header.get_sform()) @ header.get_qform()
    shape = [*image.shape, 1, 1][:3]
    corners = np.array([[*corner, 1] for corner in product(*((0, size - 1) for size in shape))], float)
    return {"transforms_apart": float(np.abs((corners @ there.T - corners)[:, :3]).max())}
