"""DICOM SEG: the position of every frame says on which voxels of the image its pixels lie.

Planes without a frame are background.  Source: DICOM PS3.3 C.8.20 (segmentation) and C.7.6.16 (functional groups).
"""

from collections.abc import Collection, Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from pydicom import Dataset
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import ExplicitVRBigEndian

from omnifm.data.dicom_file import text
from omnifm.data.dicom_pixels import DECODERS
from omnifm.data.grid import Region, both, plane_on_grid
from omnifm.data.refusal import RefusedImage
from omnifm.data.volume import Volume

Groups = tuple[Dataset, Dataset]
"""The functional groups of one frame, and those shared by all frames."""
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
"""Label Map Segmentation Storage: the value of a pixel is the number of its segment."""
MAX_STEP = 1.5
"""Planes without neighbours are accepted if their declared distance is below this, in slices of the image."""


def names(seg: Dataset) -> dict[int, str]:
    """Number of each segment -> its label.

    Raises:
        RefusedImage: `corrupt`, if two segments have the same number.
    """
    found = {int(segment.SegmentNumber): text(segment, "SegmentLabel") for segment in seg.SegmentSequence}
    if len(found) < len(seg.SegmentSequence):
        raise RefusedImage("corrupt", "DICOM SEG must number its segments uniquely; two share a number")
    return found


def frame_uids(seg: Dataset, numbers: Collection[int]) -> set[str]:
    """UIDs of the frames of reference: a SEG has one for all segments, which may be ""."""
    return {text(seg, "FrameOfReferenceUID")}


def regions(seg: Dataset, numbers: Collection[int], image: Volume) -> Iterator[Region]:
    """The regions of the wanted segments, frame by frame.

    Raises:
        RefusedImage: `label_geometry`, `label_values` (fractions), `duplicate_slices`, `truncated`,
            `unsupported_transfer_syntax`, `corrupt`.
    """
    syntax = _checked_syntax(seg)
    frames = _frames(seg)
    placed = _placed(seg, frames, image)
    is_map = seg.SOPClassUID == LABEL_MAP
    owners = [
        0 if is_map else int(_group(groups, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        for groups in frames
    ]
    if len({(owner, place.tobytes()) for owner, place in zip(owners, placed, strict=True)}) < len(frames):
        raise RefusedImage(
            "duplicate_slices", "DICOM SEG must hold at most one frame per segment and plane; it holds two"
        )
    wanted = [index for index, owner in enumerate(owners) if is_map or owner in numbers]
    for index, pixels in zip(wanted, _decoded(seg, wanted, DECODERS[syntax]), strict=True):
        inside = _in_map(seg, pixels, numbers) if is_map else {owners[index]: _binary(seg, pixels)}
        for number, chosen in inside.items():
            yield number, chosen.T, placed[index]


def _decoded(seg: Dataset, wanted: list[int], decoder: str) -> Iterator[Shaped[np.ndarray, "rows columns"]]:
    """The stored pixels of the wanted frames."""
    if seg.BitsAllocated == 1 and not decoder:
        num_bits = int(seg.Rows * seg.Columns)
        for index in wanted:  # pydicom 3.0 fails on frames that begin or end within a byte
            start, end = index * num_bits, (index + 1) * num_bits
            packed = np.frombuffer(seg.PixelData[start // 8 : (end + 7) // 8], np.uint8)
            yield np.unpackbits(packed, bitorder="little")[start % 8 :][:num_bits].reshape(seg.Rows, seg.Columns)
    elif wanted:  # for an empty list pydicom would decode all frames
        yield from iter_pixels(seg, indices=wanted, raw=True, decoding_plugin=decoder)


def _checked_syntax(seg: Dataset) -> str:
    syntax = text(seg.file_meta, "TransferSyntaxUID")
    if syntax not in DECODERS or syntax == ExplicitVRBigEndian:  # big endian does not define the order of single bits
        raise RefusedImage(
            "unsupported_transfer_syntax", "DICOM SEG must be in a compression that we decode; it is not"
        )
    promised = (int(seg.get("NumberOfFrames") or 1) * seg.Rows * seg.Columns * seg.BitsAllocated + 7) // 8
    stored = len(seg.get("PixelData") or b"")
    if stored < (1 if DECODERS[syntax] else promised):
        raise RefusedImage("truncated", f"DICOM SEG must hold pixels of {promised} bytes; got {stored}")
    return syntax


def _frames(seg: Dataset) -> list[Groups]:
    count = int(seg.get("NumberOfFrames") or 1)
    each = list(seg.get("PerFrameFunctionalGroupsSequence") or [])
    if len(each) != count or count < 1:
        raise RefusedImage("corrupt", f"DICOM SEG must describe each of its {count} frames; it describes {len(each)}")
    return [(own, seg.SharedFunctionalGroupsSequence[0]) for own in each]


def _group(groups: Groups, name: str) -> Dataset:
    for group in groups:
        if group.get(name):
            return group[name].value[0]
    raise RefusedImage("label_geometry", f"DICOM SEG must give {name} for each frame; it does not")


def _plane(groups: Groups) -> Float[np.ndarray, "3 3"]:
    """Matrix pixel (column, row, 1) -> RAS mm: PS3.3 C.7.6.2.1.1, with x and y negated (LPS to RAS)."""
    position = _group(groups, "PlanePositionSequence").ImagePositionPatient
    cosines = np.array(_group(groups, "PlaneOrientationSequence").ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = (float(mm) for mm in _group(groups, "PixelMeasuresSequence").PixelSpacing)
    steps = [cosines[0] * between_columns, cosines[1] * between_rows, np.array(position, float)]
    return np.diag([-1.0, -1.0, 1.0]) @ np.stack(steps, axis=1)


def _placed(seg: Dataset, frames: list[Groups], image: Volume) -> list[Int[np.ndarray, "3 3"]]:
    """For each frame, the matrix pixel (column, row, 1) -> voxel of the image."""
    places = [plane_on_grid(_plane(groups), seg.Columns, seg.Rows, image) for groups in frames]
    on_grid = [place for place in places if place is not None]
    if len(on_grid) < len(frames) or not _is_dense(frames[0], on_grid, image):
        got = both(image, _extent(seg, frames))
        raise RefusedImage("label_geometry", f"DICOM SEG must lie on its image's grid of voxels; {got}")
    return on_grid


def _is_dense(groups: Groups, places: list[Int[np.ndarray, "3 3"]], image: Volume) -> bool:
    """Whether the SEG's planes are as close as the image's slices.  On every second slice, they would leave holes."""
    axis = int(np.argmin(np.abs(places[0][:, :2]).sum(axis=1)))
    planes = np.unique([place[axis, 2] for place in places])
    if len(planes) == 1 or np.diff(planes).min() == 1:
        return True
    measures = _group(groups, "PixelMeasuresSequence")
    declared_mm = measures.get("SpacingBetweenSlices") or measures.get("SliceThickness")
    return declared_mm is not None and 0 < float(declared_mm) < MAX_STEP * image.spacing_mm[axis]


def _binary(seg: Dataset, pixels: Shaped[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"]:
    top = int(seg.MaximumFractionalValue) if seg.get("SegmentationType") == "FRACTIONAL" else 1
    fractions = pixels[(pixels != 0) & (pixels != top)]
    if len(fractions):
        raise RefusedImage("label_values", f"DICOM SEG must hold 0 or {top}, no fractions; got {fractions[0]}")
    return pixels > 0


def _in_map(
    seg: Dataset, pixels: Shaped[np.ndarray, "rows columns"], numbers: Collection[int]
) -> dict[int, Bool[np.ndarray, "rows columns"]]:
    background = int(seg.get("PixelPaddingValue") or 0)
    present = {int(value) for value in np.unique(pixels)} - {background}
    unknown = sorted(present - names(seg).keys())
    if unknown:
        raise RefusedImage(
            "corrupt", f"DICOM SEG must describe every segment in its pixels; it does not describe {unknown[:5]}"
        )
    return {number: pixels == number for number in sorted(present & set(numbers))}


def _extent(seg: Dataset, frames: list[Groups]) -> Volume:
    """A volume that reaches from the first to the last plane, for a message only: its voxels are empty."""
    planes = np.stack([_plane(groups) for groups in frames])
    normal = np.cross(planes[0, :, 0], planes[0, :, 1])
    normal /= np.linalg.norm(normal)
    heights = np.round(planes[:, :, 2] @ normal, 3)
    steps = np.diff(np.unique(heights))
    step = float(steps.min()) if len(steps) else 1.0
    affine = np.eye(4)
    affine[:3] = np.c_[planes[0, :, :2], normal * step, planes[heights.argmin(), :, 2]]
    size = (int(seg.Columns), int(seg.Rows), round(float(np.ptp(heights)) / step) + 1)
    return Volume(np.broadcast_to(np.float32(0), size), affine)
