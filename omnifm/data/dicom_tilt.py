"""Gantry tilt: slices that are stacked at an angle to their plane are sheared onto a straight grid.

A tilted scanner moves the table between slices along the patient, not along the slices' normal.  Slice k is therefore
displaced in its own plane by k times the same vector.  The exact shear of this geometry moves every slice back; between
pixels the values are interpolated linearly.  Interpolation smooths: the noise differs from slice to slice.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from omnifm.data.dicom_geometry import tilt_degrees
from omnifm.data.refusal import RefusedImage
from omnifm.data.volume import AIR_HU, Volume

SHEAR = "shear"
"""The only way in which a tilt is corrected."""
MAX_DEGREES = 45.0
"""Largest tilt that is believed; gantries tilt by up to 30 degrees."""
NO_SHIFT = 1e-6
"""A shift by less than this part of a pixel is none."""


def sheared(volume: Volume) -> Volume:
    """The volume on a straight grid that holds all its pixels; air fills what lies outside.

    Args:
        volume: grey, its third axis at an angle to the first two.

    Raises:
        RefusedImage: `gantry_tilt` if the angle is not believable, `unsupported_format` for colour.
    """
    degrees = tilt_degrees(volume.affine)
    if degrees > MAX_DEGREES:
        raise RefusedImage("gantry_tilt", f"a gantry must be tilted by at most 45 degrees; got {degrees:.1f}")
    if volume.array.ndim != 3:
        raise RefusedImage("unsupported_format", "a tilted volume must be grey to be sheared; it is coloured")
    volume = volume.with_air()
    affine = volume.affine.copy()
    step, normal = affine[:3, 2].copy(), np.cross(affine[:3, 0], affine[:3, 1])
    normal *= np.sign(step @ normal) / np.linalg.norm(normal)
    fill = AIR_HU if volume.modality == "CT" else float(volume.array.min())
    array = volume.array
    for axis in (0, 1):
        pixel = affine[:3, axis]
        array, first = _shifted(array, axis, float(step @ pixel / (pixel @ pixel)), fill)
        affine[:3, 3] += first * pixel
    affine[:3, 2] = (step @ normal) * normal
    return replace(volume, array=array, affine=affine)


def _shifted(
    array: Float[np.ndarray, "x y z"], axis: int, per_slice: float, fill: float
) -> tuple[Float[np.ndarray, "x2 y2 z"], int]:
    """Slice k moved by k * `per_slice` pixels along an axis, and the place of the first pixel of the new array."""
    shifts = np.arange(array.shape[2]) * per_slice
    if np.abs(shifts).max() < NO_SHIFT:
        return array, 0
    first, last = int(np.floor(shifts.min())), int(np.ceil(shifts.max()))
    shape = list(array.shape)
    shape[axis] += last - first
    moved = np.full(shape, fill, np.float32)
    for z, shift in enumerate(shifts):
        whole = int(np.floor(shift))
        part = np.float32(shift - whole)
        # One pixel of fill on both sides: a border pixel is blended with what lies beyond it.
        sides = [(1, 1) if number == axis else (0, 0) for number in range(2)]
        framed = np.moveaxis(np.pad(array[..., z], sides, constant_values=fill), axis, 0)
        blended = framed[1:] * (1 - part) + framed[:-1] * part
        target = np.moveaxis(moved[..., z], axis, 0)
        start = whole - first
        count = len(blended) if part else len(blended) - 1
        target[start : start + count] = blended[:count]
    return moved, first
