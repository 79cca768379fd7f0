"""The places of a series' slices: they are sorted along their normal, and refused unless they are equally far apart.

DICOM's axes point to the left, posterior and superior (LPS), those of a volume's affine to the right, anterior and
superior (RAS); both are in mm.  Voxel axes are x along a row (columns), y down the rows, z along the slices' normal.
"""

from typing import NoReturn

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
MAX_ROUNDING_MM = 0.05
"""Rounding of positions that is believed: they are written with one digit after the point or more."""
MAX_OFF_DECLARED = 0.05
"""Largest relative difference between the distance of slices and the distance that their header declares."""
MAX_TILT_DEGREES = 0.5
"""Largest angle between stacking direction and normal, which the affine can hold.  Above it, the gantry was tilted."""
TOMOGRAPHIC = frozenset({"CT", "MR", "PT"})
"""Modalities whose images are always sections of the patient; if one has no place, its header is damaged."""
Affine = Float[np.ndarray, "4 4"]


def placed(slices: list[Slice], *, tilted: bool = False) -> tuple[list[Slice], Affine]:
    """The slices in the order of z, and the affine voxel -> RAS mm; with `tilted` its third axis may be at an angle.

    The thickness of a single slice is SpacingBetweenSlices, or SliceThickness if that is absent; it is 1 mm if the
    value is absent or not believable.  Positions that are rounded to 0.1 mm are those of the grid that fits
    them best.  The affine of a picture, which has no place in a patient, holds only its pixel spacing, or 1 if that is
    absent.

    Raises:
        RefusedImage: see `refusal.REASONS`.
    """
    if not any(map(is_section, slices)):
        return slices, _picture_affine(slices)
    if not all(map(is_section, slices)):
        raise RefusedImage("bad_geometry", "every slice must have a position and an orientation; some have none")
    row, column = in_plane(slices)
    normal = np.cross(row, column)
    positions = np.array([piece.position_mm for piece in slices])
    order = np.argsort(positions @ normal, kind="stable")
    slices, positions = [slices[index] for index in order], positions[order]
    affine = np.eye(4)
    between_rows, between_columns = _pixel_spacing(slices)
    affine[:3, 0], affine[:3, 1] = row * between_columns, column * between_rows
    affine[:3, 2], affine[:3, 3] = normal * _thickness_mm(slices[0]), positions[0]
    if len(slices) > 1:
        affine[:3, 2], affine[:3, 3] = _steps(slices, positions, normal)
        degrees = tilt_degrees(affine)
        if degrees > MAX_TILT_DEGREES and not tilted:
            rule = f"slices must be stacked along their normal; they are tilted by {degrees:.1f} degrees"
            raise RefusedImage("gantry_tilt", f"{rule}: `omnifm prepare dicom --tilt shear` corrects it")
        _check_declared(slices, [float(affine[:3, 2] @ normal), float(np.linalg.norm(affine[:3, 2]))])
    _check_spacing(affine)
    return slices, LPS_TO_RAS @ affine


def is_section(piece: Slice) -> bool:
    """Whether a slice has a place in the patient."""
    return piece.position_mm is not None and piece.orientation is not None


def in_plane(slices: list[Slice]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Unit vectors (LPS) in which the column and the row of all slices increase.

    Raises:
        RefusedImage: `bad_geometry`, `mixed_orientation`.
    """
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


def _steps(
    slices: list[Slice], positions: Float[np.ndarray, "n 3"], normal: Float[np.ndarray, "3"]
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """The step from one slice to the next and the first position in mm (LPS).

    It is checked that no slice is missing or displaced.
    """
    gaps = np.diff(positions @ normal)
    if gaps.min() <= SAME_PLACE_MM:
        raise RefusedImage("duplicate_slices", "every slice must lie at a place of its own; some do not")
    step, first = (positions[-1] - positions[0]) / (len(slices) - 1), positions[0]
    grid = first + np.arange(len(slices))[:, None] * step
    if np.linalg.norm(positions - grid, axis=1).max() > MAX_OFF_GRID * gaps.min():
        if not _are_rounded(positions, min(piece.rounding_mm for piece in slices)):
            _refuse_uneven(gaps)
        step, first = np.polyfit(np.arange(len(slices)), positions, 1)
    return step, first


def tilt_degrees(affine: Affine) -> float:
    """Angle between the third axis and the normal of the first two."""
    normal, step = np.cross(affine[:3, 0], affine[:3, 1]), affine[:3, 2]
    lengths = float(np.linalg.norm(step) * np.linalg.norm(normal))
    cosine = min(1.0, float(abs(step @ normal)) / lengths) if lengths else 1.0
    return float(np.degrees(np.arccos(cosine)))


def _are_rounded(positions: Float[np.ndarray, "n 3"], half_mm: float) -> bool:
    """Whether positions at equal steps, rounded by up to `half_mm`, are these.

    Each coordinate x_k is the rounded a + k d for some a and d if and only if one d fits every pair:
    |x_j - x_i - (j - i) d| <= 2 half_mm.
    """
    if half_mm > MAX_ROUNDING_MM:
        return False
    lowest, highest = np.full(3, -np.inf), np.full(3, np.inf)
    slack = 2 * half_mm + SAME_PLACE_MM / 10
    for lag in range(1, len(positions)):
        rise = positions[lag:] - positions[:-lag]
        lowest = np.maximum(lowest, (rise.max(axis=0) - slack) / lag)
        highest = np.minimum(highest, (rise.min(axis=0) + slack) / lag)
    return bool((lowest <= highest).all())


def _refuse_uneven(gaps: Float[np.ndarray, " n"]) -> NoReturn:
    times = gaps / gaps.min()
    reason = "missing_slices" if _are_whole(times) and times.max() > 1.5 else "irregular_spacing"
    got = f"gaps of {gaps.min():.4g} to {gaps.max():.4g} mm"
    raise RefusedImage(reason, f"slices must be equally far apart and in line; got {got}")


def _check_declared(slices: list[Slice], steps_mm: list[float]) -> None:
    """Refuse slices whose header declares another distance between them.

    Some scanners write the empty space between two slices instead of the distance between their centres.

    Args:
        slices: of one volume.
        steps_mm: the distance from one slice to the next, along their normal and along the stack.
    """
    step_mm = steps_mm[0]
    for piece in slices:
        declared, thickness = piece.gap_mm, piece.thickness_mm or 0.0
        allowed = max(MAX_OFF_DECLARED * step_mm, piece.rounding_mm)
        if declared is None or min(abs(step - declared) for step in steps_mm) <= allowed:
            continue
        times = step_mm / declared
        if times > 1.5 and abs(times - round(times)) <= 2 * MAX_OFF_GRID:
            rule = f"slices lie {step_mm:.4g} mm apart, but their header says {declared:.4g} mm"
            raise RefusedImage("missing_slices", f"{rule}: some are missing; export the whole series again")
        if abs(declared + thickness - step_mm) > MAX_OFF_DECLARED * step_mm:
            rule = f"positions and SpacingBetweenSlices must agree; got {step_mm:.4g} and {declared:.4g} mm"
            raise RefusedImage("bad_geometry", f"{rule}: export the whole series again, or convert it to NIfTI")


def _are_whole(times: Float[np.ndarray, " n"]) -> bool:
    return bool(np.abs(times - np.round(times)).max() <= 2 * MAX_OFF_GRID)


def _thickness_mm(piece: Slice) -> float:
    low, high = SPACING_LIMITS_MM
    given = piece.gap_mm if piece.gap_mm is not None else piece.thickness_mm
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
