"""The slices of DICOM files: a classic file is one slice, and a multi-frame file holds many.

A multi-frame file keeps some elements of a classic header in functional groups, for each frame or for all frames.
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
"""Element -> the functional group in which a multi-frame file keeps it."""
MUST_AGREE = (
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
"""Elements that are equal in all slices of one volume and may differ between volumes."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One frame: its place in the patient and the meaning of its stored values.

    Attributes:
        file: the file that holds it.
        frame: its number in the file, counted from 0.
        position_mm: centre of its first pixel (LPS); None if it has no place in a patient.
        orientation: unit vectors (LPS) in which the column and the row increase; None if it has no place.
        spacing_mm: distance between rows, and distance between columns.
        thickness_mm: distance to the next slice as the header gives it, used where there is no next slice.
        slope, intercept: stored value -> unit of the modality; None if the header does not give them.
        rescale_type: the unit as the header names it, or "".
        facts: the values of `MUST_AGREE`, and the kind of image (magnitude, phase, ...).
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
    """The slices of one file, in their order in the file.

    Raises:
        RefusedImage: `several_volumes` for frames without a place in space, `corrupt`, `non_finite`.
    """
    header = file.header
    frames = num_frames(header)
    if "PerFrameFunctionalGroupsSequence" not in header:
        if frames > 1:
            raise RefusedImage("several_volumes", f"a picture must be one frame; got {frames}, a film or a gated scan")
        return [_slice(file, 0, [header])]
    groups = header["PerFrameFunctionalGroupsSequence"].value
    if len(groups) != frames:
        raise RefusedImage(
            "corrupt", f"the number of frames must be that of their descriptions; got {frames}, {len(groups)}"
        )
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    return [_slice(file, index, [group, *shared, header]) for index, group in enumerate(groups)]


def num_frames(header: Dataset) -> int:
    """Number of frames that a header promises; 1 if it does not say.

    Raises:
        RefusedImage: `corrupt`.
    """
    frames = number(header, "NumberOfFrames")
    frames = 1.0 if frames is None else frames
    if frames < 1 or frames != int(frames):
        raise RefusedImage("corrupt", f"NumberOfFrames must be a whole number >= 1; got {frames:g}")
    return int(frames)


def check_one_volume(slices: list[Slice]) -> None:
    """Refuse slices of different series, echoes, times, diffusion weightings or kinds of image.

    Raises:
        RefusedImage: `several_volumes`, or `bad_geometry` if slices differ in size.
    """
    for fact in slices[0].facts:
        num_values = len({piece.facts[fact] for piece in slices})
        if num_values > 1:
            raise RefusedImage(
                "several_volumes", f"slices must agree in {fact}; got {num_values} values: keep one volume per folder"
            )
    sizes = {
        tuple(text(piece.file.header, side) for side in ("Rows", "Columns", "SamplesPerPixel")) for piece in slices
    }
    if len(sizes) > 1:
        raise RefusedImage("bad_geometry", f"slices must have one size; got {len(sizes)} sizes")


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
        facts={key: "/".join(texts(where(key), key)) for key in MUST_AGREE} | {"ImageType": "/".join(kind)},
    )


def _holder(groups: list[Dataset], keyword: str) -> Dataset:
    """The dataset that holds an element: the frame's group, else the group shared by all frames, else the header."""
    name = GROUP_OF.get(keyword)
    for group in groups[:-1]:
        items = group.get(name) if name else None
        if items and keyword in items[0]:
            return items[0]
    return groups[-1]
