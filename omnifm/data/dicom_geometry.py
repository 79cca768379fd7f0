"""The places of a series' slices: they are sorted along their normal, and refused unless they are equally far apart.

DICOM's axes point to the left, posterior and superior (LPS), those of a volume's affine to the right, anterior and
superior (RAS); both are in mm.  Voxel axes are x along a row (columns), y down the rows, z along the slices' normal.
"""

import numpy as np
from jaxtyping import Float

from omnifm.data.dicom_file import numbers, text
from omnifm.data.dicom_slices import Slice
from omnifm.data.nifti import SPACING_LIMITS_MM
from omnifm.data.refusal import RefusedImage

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MAX_SKEW = 1e-3
"""Largest error by which directions may differ from perpendicular unit vectors, or slices from parallel ones."""
SAME_PLACE_MM = 1e-3
"""Slices that are closer than this lie at the same place."""
MAX_OFF_GRID = 0.05
"""Largest distance, in slice spacings, between a slice and its place at equal spacing."""
MAX_TILT_DEGREES = 0.5
"""Largest angle between stacking direction and normal, which the affine can hold.  Above it, the gantry was tilted."""
TOMOGRAPHIC = frozenset({"CT", "MR", "PT"})
"""Modalities whose images are always sections of the patient; if one has no place, its header is damaged."""
Affine = Float[np.ndarray, "4 4"]


def placed(slices: list[Slice]) -> tuple[list[Slice], Affine]:
    """The slices in the order of z, and the affine voxel -> RAS mm.

    The thickness of a single slice is SpacingBetweenSlices, or SliceThickness if that is absent; it is 1 mm if the
    value is absent or not believable.  The affine of a picture, which has no place in a patient, holds only its pixel
    spacing, or 1 if that is absent.

    Raises:
        RefusedImage: see `refusal.REASONS`.
    """
    if all(piece.position_mm is None or piece.orientation is None for piece in slices):
        return slices, _picture_affine(slices)
    if any(piece.position_mm is None or piece.orientation is None for piece in slices):
        raise RefusedImage("bad_geometry", "every slice must have a position and an orientation; some have none")
    row, column = _in_plane(slices)
    normal = np.cross(row, column)
    positions = np.array([piece.position_mm for piece in slices])
    order = np.argsort(positions @ normal, kind="stable")
    slices, positions = [slices[index] for index in order], positions[order]
    affine = np.eye(4)
    between_rows, between_columns = _pixel_spacing(slices)
    affine[:3, 0], affine[:3, 1] = row * between_columns, column * between_rows
    affine[:3, 2] = _step(slices, positions, normal) if len(slices) > 1 else normal * _thickness_mm(slices[0])
    affine[:3, 3] = positions[0]
    _check_spacing(affine)
    return slices, LPS_TO_RAS @ affine


def _in_plane(slices: list[Slice]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Unit vectors (LPS) in which the column and the row increase."""
    vectors = np.array([piece.orientation for piece in slices]).reshape(-1, 2, 3)
    lengths = np.linalg.norm(vectors, axis=2)
    across = np.abs((vectors[:, 0] * vectors[:, 1]).sum(axis=1))
    if np.abs(lengths - 1).max() > MAX_SKEW or across.max() > MAX_SKEW:
        raise RefusedImage("bad_geometry", "ImageOrientationPatient must be two perpendicular unit vectors; it is not")
    if np.abs(vectors - vectors[0]).max() > MAX_SKEW:
        raise RefusedImage(
            "mixed_orientation",
            f"all {len(slices)} slices must have the same orientation; they do not: put each series in its own folder",
        )
    row, column = vectors[0] / lengths[0][:, None]
    return row, column


def _pixel_spacing(slices: list[Slice]) -> tuple[float, float]:
    if any(piece.spacing_mm is None for piece in slices):
        raise RefusedImage("bad_geometry", "every slice must give its PixelSpacing; some do not")
    spacing = np.array([piece.spacing_mm for piece in slices])
    if np.abs(spacing - spacing[0]).max() > MAX_SKEW * spacing[0].min():
        raise RefusedImage("bad_geometry", f"all {len(slices)} slices must have the same PixelSpacing; they do not")
    between_rows, between_columns = spacing[0].tolist()
    return between_rows, between_columns


def _step(
    slices: list[Slice], positions: Float[np.ndarray, "n 3"], normal: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "3"]:
    """The step from one slice to the next in mm (LPS), after a check that no slice is missing or displaced."""
    gaps = np.diff(positions @ normal)
    _check_one_each(slices, gaps)
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    grid = positions[0] + np.arange(len(slices))[:, None] * step
    if np.linalg.norm(positions - grid, axis=1).max() > MAX_OFF_GRID * gaps.min():
        times = gaps / gaps.min()
        reason = "missing_slices" if _are_whole(times) and times.max() > 1.5 else "irregular_spacing"
        got = f"gaps of {gaps.min():.4g} to {gaps.max():.4g} mm"
        raise RefusedImage(reason, f"slices must be equally far apart and in line; got {got}")
    tilt = np.degrees(np.arccos(min(1.0, step @ normal / np.linalg.norm(step))))
    if tilt > MAX_TILT_DEGREES:
        raise RefusedImage(
            "gantry_tilt", f"slices must be stacked along their normal; they are tilted by {tilt:.1f} degrees"
        )
    return step


def _are_whole(times: Float[np.ndarray, " n"]) -> bool:
    return bool(np.abs(times - np.round(times)).max() <= 2 * MAX_OFF_GRID)


def _check_one_each(slices: list[Slice], gaps: Float[np.ndarray, " n"]) -> None:
    """Refuse two slices at one place: as copies, or as several volumes if most places have more than one slice."""
    if gaps.min() > SAME_PLACE_MM:
        return
    place = np.concatenate([[0], np.cumsum(gaps > SAME_PLACE_MM)])
    counts = np.bincount(place)
    identities = {(text(piece.file.header, "SOPInstanceUID"), piece.frame) for piece in slices}
    got = f"{len(slices)} slices at {len(counts)} places"
    if len(identities) < len(slices) or (counts > 1).mean() <= 0.5:
        raise RefusedImage("duplicate_slices", f"every slice must lie at a place of its own; got {got}")
    raise RefusedImage(
        "several_volumes", f"a series must be one volume, not several, e.g. over time; got {got}: split it"
    )


def _thickness_mm(piece: Slice) -> float:
    low, high = SPACING_LIMITS_MM
    given = piece.thickness_mm
    return given if given is not None and low <= given <= high else 1.0


def _picture_affine(slices: list[Slice]) -> Affine:
    header = slices[0].file.header
    if text(header, "Modality") in TOMOGRAPHIC:
        raise RefusedImage("bad_geometry", "CT, MR and PT must say where they lie; position or orientation is absent")
    if len(slices) > 1:
        raise RefusedImage(
            "several_volumes", f"a folder must hold one picture; got {len(slices)} without a place in space"
        )
    spacing = slices[0].spacing_mm or numbers(header, "ImagerPixelSpacing", 2)
    aspect = numbers(header, "PixelAspectRatio", 2)
    if spacing is None and aspect is not None and aspect[0] != aspect[1]:
        rule = "pixels of a picture must be square or of known size"
        raise RefusedImage("bad_geometry", f"{rule}; got the ratio {aspect[0]:g}:{aspect[1]:g} without a size")
    between_rows, between_columns = spacing or (1.0, 1.0)
    affine = np.diag([between_columns, between_rows, 1.0, 1.0])
    _check_spacing(affine)
    return affine


def _check_spacing(affine: Affine) -> None:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = SPACING_LIMITS_MM
    if not ((spacing >= low) & (spacing <= high)).all():
        got = [float(f"{step:.4g}") for step in spacing]
        raise RefusedImage("bad_geometry", f"spacing must be {low} to {high} mm; got {got}")
