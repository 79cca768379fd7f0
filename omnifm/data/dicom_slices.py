"""The slices of DICOM files: a classic file is one, a multi-frame file holds many.

What a classic header says once, a multi-frame file says per frame or for all frames, in functional groups.
"""

from dataclasses import dataclass

from pydicom.dataset import Dataset

from omnifm.data.dicom_file import File, number, numbers, text, texts
from omnifm.data.refusal import RefusedImage

GROUP_OF = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "EffectiveEchoTime": "MREchoSequence",
    "InversionTimes": "MRModifierSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "StackID": "FrameContentSequence",
}
"""In which functional group a multi-frame file keeps an element."""
SAME = (
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "PhotometricInterpretation",
    "Units",
    "EchoTime",
    "EchoNumbers",
    "InversionTime",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "EffectiveEchoTime",
    "InversionTimes",
    "TemporalPositionIndex",
    "StackID",
)
"""What tells one volume from the next: its slices agree in all of these."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One frame: where it lies and what its numbers mean.

    Attributes:
        file: it stands in this file
        frame: as this frame, from 0.
        position_mm: centre of its first pixel; left, posterior, superior (LPS).  None: it knows no place.
        orientation: directions of increasing column and of increasing row, LPS.
        spacing_mm: between rows, between columns.
        thickness_mm: to the next slice where there is no next slice to measure.
        slope, intercept: stored value -> unit of the modality; None where the header gives neither.
        facts: the values of `SAME`, and which kind of image it is (magnitude, phase, ...).
    """

    file: File
    frame: int
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, ...] | None
    thickness_mm: float | None
    slope: float | None
    intercept: float | None
    rescale_type: str
    facts: dict[str, str]


def slices_of(file: File) -> list[Slice]:
    """The slices of one file, in its order.

    Raises:
        RefusedImage: `several_volumes` for frames without a place of their own, `corrupt`, `non_finite`.
    """
    header = file.header
    frames = num_frames(header)
    if "PerFrameFunctionalGroupsSequence" not in header:
        if frames > 1:
            raise RefusedImage("several_volumes", f"a picture must be one frame; got {frames}, a film or a gated scan")
        return [_slice(file, 0, [header])]
    groups = header["PerFrameFunctionalGroupsSequence"].value
    if len(groups) != frames:
        raise RefusedImage("corrupt", f"frames must be as many as their descriptions; got {frames}, {len(groups)}")
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    return [_slice(file, index, [group, *shared, header]) for index, group in enumerate(groups)]


def num_frames(header: Dataset) -> int:
    """How many frames a header promises.

    Raises:
        RefusedImage: `corrupt`.
    """
    frames = number(header, "NumberOfFrames")
    frames = 1.0 if frames is None else frames
    if frames < 1 or frames != int(frames):
        raise RefusedImage("corrupt", f"NumberOfFrames must be a whole number >= 1; got {frames:g}")
    return int(frames)


def check_one_volume(slices: list[Slice]) -> None:
    """Refuse slices of different series, echoes, times, diffusion weightings or kinds.

    Raises:
        RefusedImage: `several_volumes`, or `bad_geometry` for slices of different size.
    """
    for fact in slices[0].facts:
        num_values = len({piece.facts[fact] for piece in slices})
        if num_values > 1:
            raise RefusedImage("several_volumes", f"slices must agree in {fact}; got {num_values} values")
    sizes = {
        tuple(text(piece.file.header, side) for side in ("Rows", "Columns", "SamplesPerPixel")) for piece in slices
    }
    if len(sizes) > 1:
        raise RefusedImage("bad_geometry", f"slices must have one size; got {len(sizes)}")


def _slice(file: File, index: int, groups: list[Dataset]) -> Slice:
    def where(keyword: str) -> Dataset:
        return _holder(groups, keyword)

    spacing = number(where("SpacingBetweenSlices"), "SpacingBetweenSlices")
    thickness = number(where("SliceThickness"), "SliceThickness")
    kind = texts(file.header, "ImageType")[2:3]
    return Slice(
        file,
        index,
        position_mm=numbers(where("ImagePositionPatient"), "ImagePositionPatient", 3),
        orientation=numbers(where("ImageOrientationPatient"), "ImageOrientationPatient", 6),
        spacing_mm=numbers(where("PixelSpacing"), "PixelSpacing", 2),
        thickness_mm=spacing if spacing is not None else thickness,
        slope=number(where("RescaleSlope"), "RescaleSlope"),
        intercept=number(where("RescaleIntercept"), "RescaleIntercept"),
        rescale_type=text(where("RescaleType"), "RescaleType"),
        facts={key: "/".join(texts(where(key), key)) for key in SAME} | {"ImageType": "/".join(kind)},
    )


def _holder(groups: list[Dataset], keyword: str) -> Dataset:
    """Where an element stands: in the frame's group, in the group shared by all, else in the header itself."""
    name = GROUP_OF.get(keyword)
    for group in groups[:-1]:
        items = group.get(name) if name else None
        if items and keyword in items[0]:
            return items[0]
    return groups[-1]
