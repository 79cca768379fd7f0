"""DICOM SEG and RTSTRUCT as masks on their image's grid.

This module chooses the segments or structures and checks that every voxel has one value.  `dicom_seg` and `rtstruct`
find the voxels of each segment or structure; nothing is interpolated.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pydicom
from jaxtyping import Bool, Int
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.dataelem import RawDataElement
from pydicom.uid import RTStructureSetStorage, SegmentationStorage

from omnifm.data import dicom, dicom_seg, rtstruct
from omnifm.data.grid import Region, check_same_frame, frame_of
from omnifm.data.refusal import RefusedImage, check_budget
from omnifm.data.volume import Volume

READERS: dict[str | None, ModuleType] = {
    SegmentationStorage: dicom_seg,
    dicom_seg.LABEL_MAP: dicom_seg,
    RTStructureSetStorage: rtstruct,
}
UNDEFINED = 0xFFFFFFFF
"""Length of an element that ends with a delimiter instead of giving its length."""
BYTES_PER_VOXEL = 16
"""Memory for the mask and for the copies on which its values are checked."""
BYTES_PER_PIXEL = 16
"""Memory for one frame and for the checks of its pixels."""


def knows(path: Path) -> bool:
    """Whether a path is a DICOM SEG or RTSTRUCT, or a folder that holds one and nothing else."""
    file = _only_file(path)
    return file.is_file() and dicom.is_dicom(file) and _reader_of(file) is not None


def read(path: Path, image: Volume, labels: Mapping[int, str] | None, max_bytes: int) -> Int[np.ndarray, "x y z"]:
    """The mask of `image`, from a path of which `knows` is true.

    Args:
        path: SEG or RTSTRUCT, or a folder that holds one.
        image: only its grid and its frame of reference are used.
        labels: declared values and their names.  Segments and structures are found by these names (case is ignored),
            and others are left out.  If no segment has a declared name, segments are found by their numbers, provided
            that all of them are declared.  None takes the number of each segment or structure as its value.
        max_bytes: memory budget in bytes.

    Raises:
        RefusedImage: `label_values` (nothing declared is found, two values for one voxel, fractions), `label_geometry`
            (voxels not at the places of the image's, outside the image, another frame of reference), and the reasons
            for which any DICOM file is refused.
    """
    file, shape = _only_file(path), image.array.shape[:3]
    head = pydicom.dcmread(file, specific_tags=["Rows", "Columns"], stop_before_pixels=True, force=True)
    pixels = int(head.get("Rows") or 0) * int(head.get("Columns") or 0)
    voxels = int(np.prod(shape, dtype=object))
    check_budget(file.stat().st_size + pixels * BYTES_PER_PIXEL + voxels * BYTES_PER_VOXEL, max_bytes)
    mask = np.full(shape, -1, np.int32, order="F")  # in this order each slice is contiguous in memory
    with disable_value_validation():  # we check the elements that we use
        for value, inside, place in _regions(file, image, labels):
            _write_region(mask, inside, place, value)
    result = np.empty(shape, np.int32)
    for y in range(shape[1]):  # in slabs: reordering all of it at once takes five times as long
        np.maximum(mask[:, y], 0, out=result[:, y])
    return result


def _regions(file: Path, image: Volume, labels: Mapping[int, str] | None) -> Iterator[Region]:
    """The regions of the wanted segments or structures, with the declared value in place of the number."""
    reader = _reader_of(file)
    dataset = pydicom.dcmread(file, force=True)
    assert reader is not None
    _check_complete(dataset)
    values = _values(reader.names(dataset), labels, by_number=reader is dicom_seg)
    for uid in reader.frame_uids(dataset, values.keys()):
        check_same_frame(frame_of(uid), image)
    for number, inside, place in reader.regions(dataset, values.keys(), image):
        if inside.any():
            yield values[number], inside, place


def _check_complete(dataset: Dataset) -> None:
    """Refuse a file that ends too early; pydicom would silently lose all of it, a contour or a digit."""
    last = dataset.get_item(max(dataset.keys())) if dataset else None
    is_cut = isinstance(last, RawDataElement) and last.length not in (UNDEFINED, len(last.value or b""))
    if last is None or is_cut:
        raise RefusedImage("truncated", "DICOM mask must be complete; its file ends too early: copy it again")


def _values(names: Mapping[int, str], labels: Mapping[int, str] | None, *, by_number: bool) -> dict[int, int]:
    """The value of each wanted segment or structure, by its number."""
    if labels is None:
        return {number: number for number in names}
    declared: dict[str, list[int]] = {}
    for value, name in labels.items():
        declared.setdefault(_normalised(name), []).append(value)
    found = {
        number: declared[_normalised(name)] for number, name in names.items() if _normalised(name) in declared and name
    }
    shared = [values for values in found.values() if len(values) > 1]
    if shared:
        raise RefusedImage("label_values", f"declared names must differ; values {shared[0]} share one")
    if found:
        return {number: value for number, [value] in found.items()}
    if by_number and names and set(names) <= set(labels):
        return {number: number for number in names}
    rule = "a segment or structure must have the name of a declared value"
    got = f"of numbers {sorted(names)[:9]} none has the name of a value in {sorted(labels)}"
    raise RefusedImage("label_values", f"{rule}; {got}" + (", nor are these numbers all declared" if by_number else ""))


def _write_region(
    mask: Int[np.ndarray, "x y z"], inside: Bool[np.ndarray, "columns rows"], place: Int[np.ndarray, "3 3"], value: int
) -> None:
    """Write a value into one slice of the mask, where -1 means that no value is set yet; `place` as in `grid.Region`.

    Raises:
        RefusedImage: `label_geometry` outside the image, `label_values` where another value is set already.
    """
    across, along = (int(axis) for axis in np.abs(place[:, :2]).argmax(axis=0))
    normal = 3 - across - along
    steps, first = place[[across, along], [0, 1]], place[[across, along], 2]
    view = mask.transpose(across, along, normal)[:: steps[0], :: steps[1]]
    first = np.where(steps > 0, first, np.array(view.shape[:2]) - 1 - first)
    low = np.maximum(first, 0)
    high = np.maximum(np.minimum(first + inside.shape, view.shape[:2]), low)
    kept = inside[low[0] - first[0] : high[0] - first[0], low[1] - first[1] : high[1] - first[1]]
    if not 0 <= place[normal, 2] < view.shape[2] or np.count_nonzero(kept) < np.count_nonzero(inside):
        raise RefusedImage("label_geometry", f"value {value} must lie inside the image; some of it lies outside")
    part = view[low[0] : high[0], low[1] : high[1], place[normal, 2]]
    other = part[kept & (part >= 0) & (part != value)]
    if len(other):
        got = f"{len(other)} have {value} and another, such as {other[0]}"
        raise RefusedImage("label_values", f"a voxel must have one value; {got}")
    part[kept] = value


def _normalised(name: str) -> str:
    return name.strip().casefold()


def _only_file(path: Path) -> Path:
    # Archives export every series into a folder of its own, also a series that is one SEG or RTSTRUCT.
    inside = [file for file in path.iterdir() if not file.name.startswith(".")] if path.is_dir() else []
    return inside[0] if len(inside) == 1 else path


def _reader_of(file: Path) -> ModuleType | None:
    head = pydicom.dcmread(file, specific_tags=["SOPClassUID"], stop_before_pixels=True, force=True)
    return READERS.get(head.get("SOPClassUID"))
