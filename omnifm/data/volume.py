"""Any image of a site as one kind of object: an array and its place in the patient.

Letters: x y z voxel axes, c channel.  Geometry is RAS (right, anterior, superior) and mm.

A picture (PNG, JPEG, ...) has the shape `(x, y, 1)` or `(x, y, 1, 3)`: x runs along its columns to the right, y down
its rows.  It has no patient axes, so its affine is the identity: the spacing is 1, and `in_ras()` does not turn it.

A single slice with patient axes (NIfTI, DICOM) is not a picture.  In RAS, an axial slice runs to the right and to the
front; a PNG of the same pixels runs to the left and to the back.  A task that turns images to RAS sees one rotated by
180 degrees against the other.  The 2-D images of a federation should therefore be of one kind; `omnifm check` warns a
site that mixes both.

Images are read in a child process with limits of memory and time (`reader.py`), by the decoders of `decode.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
from jaxtyping import Float, Int, Shaped

from omnifm.data.reader import READER
from omnifm.data.refusal import REASONS, RefusedImage

__all__ = ["MAX_BYTES", "REASONS", "BurnedIn", "RefusedImage", "Volume", "read_label", "read_volume"]

MAX_BYTES = 2 * 2**30
"""Largest memory for one image while it is read, bytes."""
CT_FLOOR_HU = -1024.0
"""Smallest Hounsfield unit that a scanner measures.  A smaller value marks a voxel without a measurement."""
AIR_HU = -1000.0
"""Air, by the definition of Hounsfield units."""
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are the first pixel outside the box."""
BurnedIn = Literal["unknown", "none"] | Sequence[Box]
"""What a site knows about text in its pixels: not checked, checked and none found, or where the text is."""


@dataclass(frozen=True, eq=False)
class Volume:
    """An image in space.  It is all that is kept of a file, so nothing here may identify a patient.

    Attributes:
        array: `x y z` or `x y z c`; float32 in the modality's unit (HU for CT), channels RGB.
        affine: 4x4, voxel index -> RAS mm.
        modality: DICOM code (MR, CT, ...), or "" if the file does not say.
        vendor: of the scanner, one of `dicom.VENDORS`, or "".
        frame: hash of DICOM's frame of reference, or "".  Two images of one frame have the same coordinates.
    """

    array: Shaped[np.ndarray, "x y z *c"]
    affine: Float[np.ndarray, "4 4"]
    modality: str = ""
    vendor: str = ""
    frame: str = ""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along x, y, z in mm, > 0."""
        x, y, z = (float(step) for step in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    @property
    def is_picture(self) -> bool:
        """Whether it is one slice without patient axes: its affine holds nothing but the size of the pixels."""
        return self.array.shape[2] == 1 and np.array_equal(self.affine, np.diag(np.abs(np.diag(self.affine))))

    def with_air(self) -> "Volume":
        """Return the same image with air in place of the values by which CT scanners mark voxels outside their view."""
        if self.modality != "CT" or self.array.min() >= CT_FLOOR_HU:
            return self
        return replace(self, array=np.where(self.array < CT_FLOOR_HU, self.array.dtype.type(AIR_HU), self.array))

    def in_ras(self) -> "Volume":
        """Return the same voxels with axes in the order and direction closest to R, A, S; nothing is interpolated.

        Values that no CT scanner measures become air, see `with_air`.
        """
        volume = self.with_air()
        turn = nibabel.orientations.io_orientation(volume.affine)
        array = nibabel.orientations.apply_orientation(volume.array, turn)
        undo = nibabel.orientations.inv_ornt_aff(turn, volume.array.shape[:3])
        return replace(volume, array=np.ascontiguousarray(array), affine=volume.affine @ undo)


def read_volume(path: Path | str, *, max_bytes: int = MAX_BYTES, burned_in_text: BurnedIn = "unknown") -> Volume:
    """Read NIfTI (`.nii`, `.nii.gz`), DICOM, PNG, JPEG, TIFF, BMP or `file.npz#index`.

    Args:
        path: the image; a folder is one DICOM series.
        max_bytes: largest memory in bytes.  The size in the header is checked before any voxel is read, and the
            decoder runs under this limit.
        burned_in_text: what is known about text in the pixels.  "unknown" refuses kinds of DICOM images that often
            show names (ultrasound, screenshots), unless their header says that they do not.  "none" says that the
            site has checked.  Boxes are set to the image's smallest value.

    Raises:
        RefusedImage: the image cannot be read correctly; `.reason` says why.  No other error is raised.
    """
    facts, array = READER.ask(Path(path), what="image", max_bytes=max_bytes, burned_in_text=burned_in_text)
    return Volume(array, np.array(facts["affine"]), facts["modality"], facts["vendor"], facts["frame"])


def read_label(
    path: Path | str, image: Volume, labels: Mapping[int, str] | None = None, *, max_bytes: int = MAX_BYTES
) -> Int[np.ndarray, "x y z"]:
    """Read the mask of `image`.

    If the declared values are exactly 0 and 1, two habits of painting programs are understood.  255 is read as 1.  In
    a picture, every grey level above 0 is read as 1 if the levels are at least 16 apart: some programs paint each
    region of a finding in its own grey.

    Args:
        path: a mask in any format of `read_volume` (coloured only if red = green = blue), a DICOM SEG or an
            RTSTRUCT.  Segments and structures are found by their names; segments otherwise by their numbers.
        image: as returned by `read_volume`, not yet turned to RAS.
        labels: declared values and their names; None allows every whole number >= 0.

    Returns:
        int32, on the image's own grid.

    Raises:
        RefusedImage: `label_geometry` (shape differs, or a corner lies more than 0.1 voxel away),
            `label_values` (fractional, negative or undeclared), or whatever `read_volume` refuses.
    """
    grid = {"shape": image.array.shape[:3], "affine": image.affine.tolist(), "frame": image.frame}
    names = None if labels is None else {str(value): name for value, name in labels.items()}
    return READER.ask(Path(path), what="mask", max_bytes=max_bytes, labels=names, **grid)[1]
