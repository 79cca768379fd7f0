"""DICOM RTSTRUCT: closed contours that are drawn in the image's slices, as sets of voxels.

Letters: n points; a b the two axes of a slice of the image.
A voxel is inside a contour if its centre is (even-odd rule).  A centre exactly on a contour belongs to one side only:
two structures that share a contour have no voxel in common, and no voxel between them is lost.
Contours of one structure in one slice lie apart, or one is a hole in the other (XOR): DICOM PS3.3 C.8.8.6.
"""

from collections.abc import Collection, Iterator
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float
from pydicom import Dataset

from omnifm.data.dicom_file import text
from omnifm.data.grid import MAX_CORNER_SHIFT, Region, to_voxels
from omnifm.data.refusal import RefusedImage
from omnifm.data.volume import Volume

Contour = tuple[bool, Float[np.ndarray, "n 3"]]
"""Whether the file declares that it is combined by XOR, and its corners in voxels of the image."""


def names(rt: Dataset) -> dict[int, str]:
    """Number of each structure -> its name.

    Raises:
        RefusedImage: `corrupt`, if two structures have the same number.
    """
    found = {int(roi.ROINumber): text(roi, "ROIName") for roi in rt.StructureSetROISequence}
    if len(found) < len(rt.StructureSetROISequence):
        raise RefusedImage("corrupt", "RTSTRUCT must number its structures uniquely; two share a number")
    return found


def frame_uids(rt: Dataset, numbers: Collection[int]) -> set[str]:
    """UIDs of the frames of reference of the wanted structures."""
    wanted = [roi for roi in rt.StructureSetROISequence if int(roi.ROINumber) in numbers]
    return {text(roi, "ReferencedFrameOfReferenceUID") for roi in wanted}


def regions(rt: Dataset, numbers: Collection[int], image: Volume) -> Iterator[Region]:
    """The regions of the wanted structures, slice by slice; a structure without contours is left out.

    Raises:
        RefusedImage: `label_geometry`, `label_values` (no contours, contours that cross, nothing inside),
            `truncated`.
    """
    contours_of = {
        int(roi.ReferencedROINumber): _contours(roi, image)
        for roi in rt.get("ROIContourSequence") or []
        if int(roi.ReferencedROINumber) in numbers and roi.get("ContourSequence")
    }
    if not contours_of:
        raise RefusedImage("label_values", "RTSTRUCT must hold contours of a declared structure; it holds none")
    axis = _slice_axis([points for contours in contours_of.values() for _, points in contours], image)
    for number, contours in contours_of.items():
        found = 0
        for plane, inside in _slices(contours, axis, image):
            found += int(np.count_nonzero(inside))
            yield number, inside, np.insert(np.eye(2, 3, dtype=int), axis, (0, 0, plane), axis=0)
        if not found:
            raise RefusedImage("label_values", f"structure {number} must hold the centre of a voxel; it holds none")


def _contours(roi: Dataset, image: Volume) -> list[Contour]:
    contours = []
    for contour in roi.ContourSequence:
        kind = contour.get("ContourGeometricType")
        if kind not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
            raise RefusedImage("label_geometry", "RTSTRUCT contours must be CLOSED_PLANAR; some are not")
        # Parsed from text: organs have 10^5 numbers, and pydicom's own need ten times the time and memory.
        raw = contour.get_item("ContourData").value or b""
        points = np.array(raw.split(b"\\") if raw else [], float)
        count = int(contour.NumberOfContourPoints)
        if len(points) != 3 * count or count < 1:
            got = f"{len(points)} of {3 * count}"
            raise RefusedImage("truncated", f"RTSTRUCT contours must hold the coordinates promised; got {got}")
        if not np.isfinite(points).all():
            raise RefusedImage("non_finite", "RTSTRUCT points must be finite; some are not")
        contours.append((kind == "CLOSEDPLANAR_XOR", to_voxels(points.reshape(-1, 3) * [-1, -1, 1], image)))  # LPS
    return contours


def _slice_axis(contours: list[Float[np.ndarray, "n 3"]], image: Volume) -> int:
    """The axis of the image along which every contour stays in one slice.

    Raises:
        RefusedImage: `label_geometry`, if there is none, or if a contour lies outside the image.
    """
    # Positions may be rounded to 0.1 mm, about a tenth of a slice.  A contour between slices is half a slice away.
    off = [
        max(float(np.abs(points[:, axis] - np.rint(points[0, axis])).max()) for points in contours) for axis in range(3)
    ]
    flat = [axis for axis in range(3) if off[axis] <= MAX_CORNER_SHIFT]
    if len(flat) != 1:
        got = f"one lies {min(off):.3g} slices off" if not flat else "they enclose no area"
        raise RefusedImage("label_geometry", f"RTSTRUCT contours must lie in slices of their image; {got}")
    corners = np.concatenate(contours)
    low, high = corners.min(axis=0), corners.max(axis=0)
    reach = 0.5 + MAX_CORNER_SHIFT  # up to the outer face of the outermost voxels
    size = np.array(image.array.shape[:3])
    if (low < -reach).any() or (high > size - 1 + reach).any():
        span = ", ".join(f"{a:.4g} to {b:.4g}" for a, b in zip(low, high, strict=True))
        shape = "x".join(str(n) for n in size)
        message = f"RTSTRUCT contours must lie inside the image of {shape} voxels; they span voxels {span}"
        raise RefusedImage("label_geometry", message)
    return flat[0]


def _slices(contours: list[Contour], axis: int, image: Volume) -> Iterator[tuple[int, Bool[np.ndarray, "a b"]]]:
    """One structure, slice by slice: the number of the slice, and the voxels inside."""
    shape = tuple(np.delete(image.array.shape[:3], axis).tolist())
    planes: dict[int, list[tuple[bool, Float[np.ndarray, "n 2"]]]] = {}
    for is_xor, points in contours:
        planes.setdefault(round(float(points[0, axis])), []).append((is_xor, np.delete(points, axis, axis=1)))
    steps = np.diff(sorted(planes))
    if len(steps) and steps.min() > 1:  # the slices between would have to be interpolated, which is a guess
        message = f"a structure must be drawn on neighbouring slices; its contours are {steps.min()} slices apart"
        raise RefusedImage("label_geometry", message)
    for plane, drawn in planes.items():
        filled = [_filled(corners, shape) for _, corners in drawn]
        if not all(is_xor for is_xor, _ in drawn):
            _check_nested(filled)
        yield plane, np.logical_xor.reduce(filled)


def _check_nested(filled: list[Bool[np.ndarray, "a b"]]) -> None:
    for one, other in combinations(filled, 2):
        shared = (one & other).sum()
        if shared and (shared < min(one.sum(), other.sum()) or one.sum() == other.sum()):
            message = "contours of a structure must lie apart or one inside the other; two cross or coincide"
            raise RefusedImage("label_values", message)


def _filled(corners: Float[np.ndarray, "n 2"], shape: tuple[int, int]) -> Bool[np.ndarray, "a b"]:
    """Voxel centres inside a polygon, by the even-odd rule.

    On every scan line along the first axis, each edge that crosses it inverts all centres after the crossing.
    scikit-image is not used: it takes 0.2 s per polygon at clinical size, and counts a centre on a line for both sides.
    """
    start, end = corners, np.roll(corners, -1, axis=0)
    upwards = (start[:, 1] <= end[:, 1])[:, None]  # so that two structures compute the same crossing for a shared edge
    start, end = np.where(upwards, start, end), np.where(upwards, end, start)
    first = np.ceil(start[:, 1]).astype(int)
    count = np.ceil(end[:, 1]).astype(int) - first  # scan lines that the edge crosses, without the one through its end
    edge = np.repeat(np.arange(len(corners)), count)
    line = np.arange(len(edge)) + (first - np.cumsum(count) + count)[edge]
    share = (line - start[edge, 1]) / (end - start)[edge, 1]
    crossing = start[edge, 0] + share * (end - start)[edge, 0]
    crossings = np.zeros((shape[0] + 1, shape[1]), np.uint8)  # it may overflow: only odd or even matters
    np.add.at(crossings, (np.ceil(crossing).astype(int).clip(0, shape[0]), line), 1)
    return (np.bitwise_xor.accumulate(crossings[:-1], axis=0) & 1).astype(bool)
