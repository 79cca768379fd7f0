"""Grids of voxels: checks that a mask lies on its image's grid, and the text with which a refusal describes both.

Geometry is RAS and mm.  A position in voxels is counted from the centre of the first voxel.
"""

import hashlib

import nibabel
import numpy as np
from jaxtyping import Bool, Float, Int

from omnifm.data.refusal import RefusedImage
from omnifm.data.volume import Volume

MAX_CORNER_SHIFT = 0.1
"""Largest distance, in voxels, between a corner of the mask and that of its image.  It allows for rounded headers."""
Region = tuple[int, Bool[np.ndarray, "columns rows"], Int[np.ndarray, "3 3"]]
"""Part of a segment or structure in one slice: its number, its pixels, and a matrix pixel (column, row, 1) -> voxel."""


def check_same_grid(mask: Volume, image: Volume) -> None:
    """Refuse a mask whose voxels are not at the places of the image's voxels.

    Raises:
        RefusedImage: `label_geometry`.
    """
    check_same_frame(mask.frame, image)
    shape = image.array.shape[:3]
    sides = [(-0.5, n - 0.5) for n in shape]
    corners = np.stack(np.meshgrid(*sides, [1.0], indexing="ij"), axis=-1).reshape(-1, 4)
    shift_mm = np.abs(corners @ (mask.affine - image.affine).T).max()
    if mask.array.shape[:3] != shape or shift_mm > MAX_CORNER_SHIFT * min(image.spacing_mm):
        raise RefusedImage("label_geometry", f"mask must lie on its image's grid; {both(image, mask)}")


def check_same_frame(frame: str, image: Volume) -> None:
    """Refuse a mask whose frame of reference is not the image's; nothing is checked where one of them is unknown.

    Args:
        frame: of the mask, as in `Volume.frame`.
        image: the mask's image.

    Raises:
        RefusedImage: `label_geometry`.
    """
    if frame and image.frame and frame != image.frame:
        got = f"got {frame[:8]}, image {image.frame[:8]} (digests)"
        raise RefusedImage("label_geometry", f"mask must have its image's frame of reference; {got}")


def frame_of(uid: str) -> str:
    """Digest of DICOM's FrameOfReferenceUID, as in `Volume.frame`.  A UID itself could identify a patient.

    >>> frame_of("1.2.3")
    'c47f5b18b8a430e6'
    """
    return hashlib.sha256(uid.encode()).hexdigest()[:16] if uid else ""


def to_voxels(points_mm: Float[np.ndarray, "n 3"], image: Volume) -> Float[np.ndarray, "n 3"]:
    """Positions in RAS mm -> positions in voxels of the image.

    They are rounded to a thousandth, so that rounding in files does not decide which voxels are inside a contour.
    """
    inverse = np.linalg.inv(image.affine)
    return np.round(points_mm @ inverse[:3, :3].T + inverse[:3, 3], 3)


def plane_on_grid(
    plane: Float[np.ndarray, "3 3"], columns: int, rows: int, image: Volume
) -> Int[np.ndarray, "3 3"] | None:
    """Which voxel of the image each pixel of a plane is.

    Args:
        plane: matrix pixel (column, row, 1) -> RAS mm.
        columns: number of pixels in a row of the plane.
        rows: number of rows of the plane.
        image: only its affine is used.

    Returns:
        matrix pixel (column, row, 1) -> voxel, which shifts, flips or exchanges axes; None if the pixels are no voxels
        of the image, or if a corner is more than `MAX_CORNER_SHIFT` away from its place.
    """
    exact = np.linalg.inv(image.affine)[:3] @ np.vstack([plane, [0, 0, 1]])
    if not np.isfinite(exact).all() or np.abs(exact).max() > 2**30:
        return None
    whole = np.rint(exact).astype(int)
    steps = np.abs(whole[:, :2])
    corners = np.array([(c, r, 1.0) for c in (-0.5, columns - 0.5) for r in (-0.5, rows - 0.5)])
    shift = np.abs(corners @ (exact - whole).T).max()
    one_to_one = (steps.sum(axis=0) == 1).all() and (steps.sum(axis=1) <= 1).all()
    return whole if one_to_one and shift <= MAX_CORNER_SHIFT else None


def both(image: Volume, mask: Volume) -> str:
    """Size, spacing, axes and origin of an image and of its mask, as text for a refusal."""
    return f"image {_described(image)}, mask {_described(mask)}"


def _described(volume: Volume) -> str:
    size = "x".join(str(n) for n in volume.array.shape[:3])
    spacing = "x".join(f"{step:.4g}" for step in volume.spacing_mm)
    axes = "".join(nibabel.aff2axcodes(volume.affine))
    origin = ", ".join(f"{mm:.5g}" for mm in volume.affine[:3, 3])
    return f"{size} voxels of {spacing} mm, {axes}, origin ({origin}) mm"
