"""The slices of DICOM files: a classic file is one slice, and a multi-frame file holds many.

A multi-frame file keeps some elements of a classic header in functional groups, for each frame or for all frames.
"""

from dataclasses import dataclass

from pydicom.dataset import Dataset

from omnifm.data.dicom_file import File, number, numbers, text, texts
from omnifm.data.dicom_kinds import check_one_kind, decimals_of, facts_of, holder
from omnifm.data.refusal import RefusedImage


@dataclass(frozen=True, eq=False)
class Slice:
    """One frame: its place in the patient and the meaning of its stored values.

    Attributes:
        file: the file that holds it.
        frame: its number in the file, counted from 0.
        position_mm: centre of its first pixel (LPS); None if it has no place in a patient.
        rounding_mm: half of the last digit with which the position is written, > 0.
        orientation: unit vectors (LPS) in which the column and the row increase; None if it has no place.
        spacing_mm: distance between rows, and distance between columns.
        thickness_mm: SliceThickness; None if the header does not give it.
        gap_mm: distance to the next slice as the header gives it (SpacingBetweenSlices), > 0; None if it does not.
        slope, intercept: stored value -> unit of the modality; None if the header does not give them.
        rescale_type: the unit as the header names it, or "".
        facts: what all slices of a volume share, see `dicom_kinds.facts_of`.
        order: numbers by which slices at one place are ordered: acquisition, instance, frame.
    """

    file: File
    frame: int
    position_mm: tuple[float, ...] | None
    rounding_mm: float
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, ...] | None
    thickness_mm: float | None
    gap_mm: float | None
    slope: float | None
    intercept: float | None
    rescale_type: str
    facts: dict[str, str]
    order: tuple[float, ...]


def slices_of(file: File) -> list[Slice]:
    """The slices of one file, in their order in the file.

    Raises:
        RefusedImage: `several_volumes` for frames without a place in space, `corrupt`, `non_finite`.
    """
    header = file.header
    frames = num_frames(header)
    if "PerFrameFunctionalGroupsSequence" not in header:
        if frames > 1:
            raise RefusedImage("several_volumes", _several_frames(header, frames))
        return [_slice(file, 0, [header])]
    groups = header["PerFrameFunctionalGroupsSequence"].value
    if len(groups) != frames:
        raise RefusedImage(
            "corrupt", f"the number of frames must be that of their descriptions; got {frames}, {len(groups)}"
        )
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    return [_slice(file, index, [group, *shared, header]) for index, group in enumerate(groups)]


def _several_frames(header: Dataset, frames: int) -> str:
    """What a file with several frames is that says of no frame where it lies, and what to do with it."""
    if text(header, "Modality") == "NM":
        kinds = set(texts(header, "ImageType"))
        what = "slices of a SPECT reconstruction" if "RECON TOMO" in kinds else "frames of a nuclear medicine scan"
        return f"every slice must say where it lies; here are {frames} {what} that do not: convert it to NIfTI"
    if text(header, "Modality") in ("CT", "MR", "PT"):
        what = f"here are {frames} frames without a description of each"
        return f"every slice must say where it lies; {what}: export it as a classic or an enhanced series"
    return f"an image must be one frame; here are {frames}, a film or a stack of pages: export one frame of it"


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
    facts = [piece.facts for piece in slices]
    if _have_own_series(slices):
        facts = [{**own, "SeriesInstanceUID": ""} for own in facts]
    check_one_kind(facts)
    sizes = {
        tuple(text(piece.file.header, side) for side in ("Rows", "Columns", "SamplesPerPixel")) for piece in slices
    }
    if len(sizes) > 1:
        raise RefusedImage("bad_geometry", f"slices must have one size; got {len(sizes)} sizes")


def _have_own_series(slices: list[Slice]) -> bool:
    """Whether a scanner gave every slice of one numbered series a UID of its own, as some Canon scanners do."""
    shared = {
        (text(piece.file.header, "StudyInstanceUID"), text(piece.file.header, "SeriesNumber")) for piece in slices
    }
    series = {piece.facts["SeriesInstanceUID"] for piece in slices}
    return len(series) == len(slices) and len(shared) == 1 and all(next(iter(shared)))


def _slice(file: File, index: int, groups: list[Dataset]) -> Slice:
    def where(keyword: str) -> Dataset:
        return holder(groups, keyword)

    position = texts(where("ImagePositionPatient"), "ImagePositionPatient")
    gap = number(where("SpacingBetweenSlices"), "SpacingBetweenSlices")
    order = [number(where(key), key) for key in ("AcquisitionNumber", "FrameAcquisitionNumber", "InstanceNumber")]
    return Slice(
        file,
        index,
        position_mm=numbers(where("ImagePositionPatient"), "ImagePositionPatient", 3),
        rounding_mm=decimals_of(position),
        orientation=numbers(where("ImageOrientationPatient"), "ImageOrientationPatient", 6),
        spacing_mm=numbers(where("PixelSpacing"), "PixelSpacing", 2),
        thickness_mm=number(where("SliceThickness"), "SliceThickness"),
        gap_mm=abs(gap) if gap else None,  # some scanners write a negative one for slices in descending order
        slope=number(where("RescaleSlope"), "RescaleSlope"),
        intercept=number(where("RescaleIntercept"), "RescaleIntercept"),
        rescale_type=text(where("RescaleType"), "RescaleType"),
        facts=facts_of(groups),
        order=(*(-1.0 if value is None else value for value in order), float(index)),
    )
