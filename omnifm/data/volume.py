"""Any image of a site as one kind of object: an array and where it lies in the patient.

Letters: x y z voxel axes, c channel.  Geometry is RAS (right, anterior, superior) and mm.
A picture (PNG, JPEG, ...) is `(x, y, 1)` or `(x, y, 1, 3)`: x runs along its columns to the right, y down its
rows.  It knows no patient axes, so its affine is the identity: spacing 1, and `in_ras()` leaves it upright.

One slice with patient axes (NIfTI, DICOM) is no picture: in RAS an axial one runs to the right and to the front, where
the PNG of its own pixels runs to the left and to the back.  A task that turns to RAS sees the two turned against each
other by 180 degrees, so the 2-D images of a federation should be of one kind; `omnifm check` tells a site that mixes.

Reading happens in a child process of bounded memory and time (`reader.py`); what it decodes with is in `decode.py`.
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
"""Memory one image may take while it is read."""
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels: from the first two, up to but without the last two."""
BurnedIn = Literal["unknown", "none"] | Sequence[Box]
"""What a site says of text in its pixels: nothing, that somebody looked and there is none, or where it is."""


@dataclass(frozen=True, eq=False)
class Volume:
    """An image in space: all that survives of a file, so nothing here may identify a patient.

    Attributes:
        array: `x y z` or `x y z c`; float32 in the modality's unit (HU for CT), channels RGB.
        affine: 4x4, voxel index -> RAS mm.
        modality: DICOM code (MR, CT, ...) or "" where the file does not say.
        vendor: of the scanner, one of `dicom.VENDORS`, or "".
        frame: digest of DICOM's frame of reference, or ""; two images of one frame share their coordinates.
    """

    array: Shaped[np.ndarray, "x y z *c"]
    affine: Float[np.ndarray, "4 4"]
    modality: str = ""
    vendor: str = ""
    frame: str = ""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along x, y, z; > 0."""
        x, y, z = (float(step) for step in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    @property
    def is_picture(self) -> bool:
        """Whether it is one slice without patient axes: its affine gives its pixels' size at most."""
        return self.array.shape[2] == 1 and np.array_equal(self.affine, np.diag(np.abs(np.diag(self.affine))))

    def in_ras(self) -> "Volume":
        """The same voxels with axes in the order and direction closest to R, A, S; no interpolation."""
        turn = nibabel.orientations.io_orientation(self.affine)
        array = nibabel.orientations.apply_orientation(self.array, turn)
        undo = nibabel.orientations.inv_ornt_aff(turn, self.array.shape[:3])
        return replace(self, array=np.ascontiguousarray(array), affine=self.affine @ undo)


def read_volume(path: Path | str, *, max_bytes: int = MAX_BYTES, burned_in_text: BurnedIn = "unknown") -> Volume:
    """Read NIfTI (`.nii`, `.nii.gz`), DICOM, PNG, JPEG, TIFF, BMP or `file.npz#index`.

    Args:
        path: the image; a folder is one DICOM series.
        max_bytes: memory budget in bytes, checked against the header's promise before any voxel is read and
            enforced on the decoder.
        burned_in_text: what is known of text in the pixels.  "unknown" refuses kinds of DICOM images that often
            carry names (ultrasound, screenshots) unless their header denies it; "none" takes the site's word;
            boxes are set to the image's smallest value.

    Raises:
        RefusedImage: it cannot be read correctly; `.reason` says why.  Nothing else is raised.
    """
    facts, array = READER.ask(Path(path), what="image", max_bytes=max_bytes, burned_in_text=burned_in_text)
    return Volume(array, np.array(facts["affine"]), facts["modality"], facts["vendor"], facts["frame"])


def read_label(
    path: Path | str, image: Volume, labels: Mapping[int, str] | None = None, *, max_bytes: int = MAX_BYTES
) -> Int[np.ndarray, "x y z"]:
    """Read the mask of `image`.

    Where exactly {0, 1} is declared, two habits of painting programs are understood: 255 is 1, and in a
    picture every grey level is 1 if the levels are at least 16 apart (one finding's regions, in greys).

    Args:
        path: a mask in any format of `read_volume` (coloured only if red = green = blue), a DICOM SEG or an
            RTSTRUCT.  Segments and structures are found by their names, segments else by their numbers.
        image: as returned by `read_volume`, before any reorientation.
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
