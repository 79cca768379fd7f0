"""Any image of a site as one kind of object: an array and where it lies in the patient.

Letters: x y z voxel axes, c channel.  Geometry is RAS (right, anterior, superior) and mm.
A picture (PNG, JPEG, ...) is `(x, y, 1)` or `(x, y, 1, 3)`: x runs along its columns to the right, y down its
rows.  It knows no patient axes, so its affine is the identity: spacing 1, and `in_ras()` leaves it upright.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
from jaxtyping import Float, Int, Shaped

from omnifm.data import nifti, raster
from omnifm.data.refusal import REASONS, RefusedImage, refusing

__all__ = ["MAX_BYTES", "REASONS", "RefusedImage", "Volume", "read_dicom", "read_label", "read_volume"]

MAX_BYTES = 2 * 2**30
"""Memory one image may take while it is read."""
MAX_CORNER_SHIFT = 0.1
"""How far, in voxels, a mask's corner may lie from its image's: rounding in headers, never half a voxel."""
MIN_LEVEL_GAP = 16
"""Grey levels of a painted mask are at least this far apart; class numbers and JPEG noise are closer."""


@dataclass(frozen=True, eq=False)
class Volume:
    """An image in space.

    Attributes:
        array: `x y z` or `x y z c`; float32 in the modality's unit (HU for CT), channels RGB.
        affine: 4x4, voxel index -> RAS mm.
        modality: DICOM code (MR, CT, ...) or "" where the file does not say.
    """

    array: Shaped[np.ndarray, "x y z *c"]
    affine: Float[np.ndarray, "4 4"]
    modality: str = ""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along x, y, z; > 0."""
        x, y, z = (float(step) for step in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    def in_ras(self) -> "Volume":
        """The same voxels with axes in the order and direction closest to R, A, S; no interpolation."""
        turn = nibabel.orientations.io_orientation(self.affine)
        array = nibabel.orientations.apply_orientation(self.array, turn)
        undo = nibabel.orientations.inv_ornt_aff(turn, self.array.shape[:3])
        return Volume(np.ascontiguousarray(array), self.affine @ undo, self.modality)


def read_volume(path: Path | str, *, max_bytes: int = MAX_BYTES) -> Volume:
    """Read NIfTI (`.nii`, `.nii.gz`), PNG, JPEG, TIFF, BMP or `file.npz#index`.

    Args:
        path: the image; a folder is one DICOM series.
        max_bytes: memory budget in bytes, checked against the header's promise before any voxel is read.

    Raises:
        RefusedImage: it cannot be read correctly; `.reason` says why.  Nothing else is raised.
    """
    return _read(Path(path), max_bytes, as_mask=False)


def _read(path: Path, max_bytes: int, *, as_mask: bool) -> Volume:
    with refusing():
        if "#" in path.name and not path.exists():
            return _picture(_from_npz(path, max_bytes))
        if path.is_dir():
            return read_dicom(path)
        if not path.is_file():  # also keeps us from waiting for ever on a pipe
            raise RefusedImage("missing_file", "image file must exist and be a regular file; it is not")
        name = path.name.lower()
        if name.endswith((".nii", ".nii.gz")):
            return Volume(*nifti.read(path, max_bytes))
        if name.endswith(raster.SUFFIXES):
            return _picture(raster.read(path, max_bytes, as_mask=as_mask))
        with path.open("rb") as file:
            if file.read(132)[128:] == b"DICM" or name.endswith(".dcm"):
                return read_dicom(path)
        known = "NIfTI, PNG, JPEG, TIFF, BMP or npz#index"
        raise RefusedImage("unsupported_format", f"image must be {known}; it is none of these")


def read_dicom(path: Path) -> Volume:
    """One DICOM file or a folder with one series.  Not read yet: refused, not guessed."""
    raise RefusedImage("unsupported_format", "DICOM is not read yet; convert it to NIfTI")


def read_label(
    path: Path | str, image: Volume, allowed: frozenset[int] | None = None, *, max_bytes: int = MAX_BYTES
) -> Int[np.ndarray, "x y z"]:
    """Read the mask of `image`.

    Where exactly {0, 1} is allowed, two habits of painting programs are understood: 255 is 1, and in a
    picture every grey level is 1 if the levels are at least 16 apart (one finding's regions, in greys).

    Args:
        path: a mask in any format of `read_volume`; coloured only if red = green = blue.
        image: as returned by `read_volume`, before any reorientation.
        allowed: declared label values; None allows every whole number >= 0.

    Returns:
        int32, on the image's own grid.

    Raises:
        RefusedImage: `label_geometry` (shape differs, or a corner lies more than 0.1 voxel away),
            `label_values` (fractional, negative or undeclared), or whatever `read_volume` refuses.
    """
    path = Path(path)
    mask = _read(path, max_bytes, as_mask=True)
    with refusing():
        values = _one_channel(mask.array)
        _check_same_grid(Volume(values, mask.affine), image)
        levels = np.unique(values)
        if not np.array_equal(levels, np.round(levels)) or levels[0] < 0 or levels[-1] >= 2**24:
            odd = levels[(levels != np.round(levels)) | (levels < 0) | (levels >= 2**24)]
            raise RefusedImage("label_values", f"mask values must be whole numbers >= 0; got {_shown(odd)}")
        labels = values.astype(np.int32)
        if allowed is None or set(levels.tolist()) <= allowed:
            return labels
        is_picture = not path.name.lower().endswith((".nii", ".nii.gz"))
        if allowed == {0, 1} and _is_painted(levels, is_picture):
            return (labels > 0).astype(np.int32)
        odd = levels[~np.isin(levels, sorted(allowed))]
        raise RefusedImage("label_values", f"mask values must be among {sorted(allowed)}; got {_shown(odd)}")


def _is_painted(levels: Float[np.ndarray, " n"], is_picture: bool) -> bool:
    """Whether every level above 0 means "inside": {0, 255} anywhere, levels far apart in a picture."""
    inside = levels[levels > 0].tolist()
    return inside == [255] or (is_picture and bool((np.diff([0, *inside]) >= MIN_LEVEL_GAP).all()))


def _one_channel(array: Shaped[np.ndarray, "x y z *c"]) -> Shaped[np.ndarray, "x y z"]:
    if array.ndim == 3:
        return array
    if not (array == array[..., :1]).all():
        raise RefusedImage("label_values", "mask must hold one value per voxel; its colour channels differ")
    return array[..., 0]


def _check_same_grid(mask: Volume, image: Volume) -> None:
    shape = image.array.shape[:3]
    sides = [(-0.5, n - 0.5) for n in shape]
    corners = np.stack(np.meshgrid(*sides, [1.0], indexing="ij"), axis=-1).reshape(-1, 4)
    shift_mm = np.abs(corners @ (mask.affine - image.affine).T).max()
    if mask.array.shape[:3] != shape or shift_mm > MAX_CORNER_SHIFT * min(image.spacing_mm):
        message = f"mask must lie on its image's grid; image {_grid(image)}, mask {_grid(mask)}"
        raise RefusedImage("label_geometry", message)


def _grid(volume: Volume) -> str:
    size = "x".join(str(n) for n in volume.array.shape[:3])
    spacing = "x".join(f"{step:.4g}" for step in volume.spacing_mm)
    axes = "".join(nibabel.aff2axcodes(volume.affine))
    origin = ", ".join(f"{mm:.5g}" for mm in volume.affine[:3, 3])
    return f"{size} voxels of {spacing} mm, {axes}, origin ({origin}) mm"


def _shown(values: Shaped[np.ndarray, " n"]) -> str:
    more = "" if len(values) <= 5 else f" and {len(values) - 5} more"
    return ", ".join(f"{value:g}" for value in values[:5].tolist()) + more


def _picture(array: Float[np.ndarray, "x y 1 *c"]) -> Volume:
    return Volume(array, np.eye(4))


def _from_npz(path: Path, max_bytes: int) -> Float[np.ndarray, "x y 1 *c"]:
    name, _, index = path.name.rpartition("#")
    file = path.with_name(name)
    if not file.is_file():
        raise RefusedImage("missing_file", "npz file must exist and be a regular file; it is not")
    if not (index.isascii() and index.isdigit()):
        raise RefusedImage("not_an_image", "npz image must be named file.npz#index with index a whole number")
    stack = _npz_stack(file, file.stat().st_mtime_ns, max_bytes)
    if int(index) >= len(stack):
        raise RefusedImage("missing_file", f"npz index must be below {len(stack)}; got {int(index)}")
    return raster.from_rows(stack[int(index)])


@lru_cache(maxsize=4)
def _npz_stack(file: Path, mtime_ns: int, max_bytes: int) -> Shaped[np.ndarray, "n rows columns *c"]:
    # One npz holds thousands of thumbnails: decompress it once, not once per item.
    return raster.read_npz(file, max_bytes)
