"""What makes slices one volume: they are of one kind, and no slice that the headers declare is missing.

Numbers are compared as numbers.  A header holds them as text, and programs write one number in several ways: 2.46 and
2.460 are equal, and so are 2.46 and 2.4600001, of which the first is the second rounded.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from decimal import Decimal, InvalidOperation
from functools import lru_cache

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from omnifm.data.dicom_diffusion import b_value
from omnifm.data.dicom_file import File, number, text, texts
from omnifm.data.refusal import RefusedImage

TEXTS = (
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "PhotometricInterpretation",
    "Units",
    "ConvolutionKernel",
    "PatientPosition",
    "StackID",
)
NUMBERS = (
    "EchoTime",
    "EchoNumbers",
    "EffectiveEchoTime",
    "InversionTime",
    "InversionTimes",
    "FlipAngle",
    "KVP",
    "SliceThickness",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
)
B_VALUE = "b value"
"""Elements, and the diffusion weighting, that are equal in all slices of one volume and may differ between volumes."""
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
    "FlipAngle": "MRTimingAndRelatedParametersSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "ConvolutionKernel": "CTReconstructionSequence",
    "KVP": "CTXRayDetailsSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "StackID": "FrameContentSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "DimensionIndexValues": "FrameContentSequence",
}
"""Element -> the functional group in which a multi-frame file keeps it."""
FRAME_TYPES = "FrameTypeSequence"
"""How the names of the functional groups end that hold FrameType, e.g. MRImageFrameTypeSequence."""
IN_FRAME_TYPES = ("FrameType", "PixelPresentation", "VolumetricProperties", "ComplexImageComponent")
PLACE_POINTERS = frozenset(
    Tag(keyword)
    for keyword in (
        "InStackPositionNumber",
        "ImagePositionPatient",
        "PlanePositionSequence",
        "SliceLocation",
        "FrameAcquisitionNumber",
        "FrameAcquisitionDateTime",
        "FrameReferenceDateTime",
    )
)
"""Dimensions along which the slices of one volume differ; in all others they agree."""
MAX_ROUNDING = 0.02
"""Largest relative difference that is taken for rounding."""
FLOAT32 = 1e-6
"""Relative difference between a number and its text after it was stored in single precision."""


def holder(groups: list[Dataset], keyword: str) -> Dataset:
    """The dataset that holds an element: the frame's group, else the group shared by all frames, else the header."""
    name = GROUP_OF.get(keyword)
    for group in groups[:-1]:
        items = group.get(name) if name else None
        if items and keyword in items[0]:
            return items[0]
    return groups[-1]


def facts_of(groups: list[Dataset]) -> dict[str, str]:
    """The elements of one slice that all slices of its volume share; "" stands for an absent one.

    Args:
        groups: the frame's functional groups, those of all frames, and last the header.
    """
    facts = {keyword: "/".join(texts(holder(groups, keyword), keyword)) for keyword in (*TEXTS, *NUMBERS)}
    facts[B_VALUE] = b_value(groups, holder(groups, "DiffusionBValue"))
    facts["ImageType"] = "/".join(texts(groups[-1], "ImageType")).rstrip("/")
    facts["FrameType"] = _frame_type(groups)
    facts["DimensionIndexValues"] = _dimensions(groups)
    return facts


def _frame_type(groups: list[Dataset]) -> str:
    found = []
    for group in groups[:-1]:
        for element in group:
            if element.VR == "SQ" and element.keyword.endswith(FRAME_TYPES) and element.value:
                found += [value for keyword in IN_FRAME_TYPES for value in texts(element.value[0], keyword)]
    return "/".join(found)


def _dimensions(groups: list[Dataset]) -> str:
    """The numbers of a frame along every dimension but that of its place."""
    values = texts(holder(groups, "DimensionIndexValues"), "DimensionIndexValues")
    pointers = [item.get("DimensionIndexPointer") for item in groups[-1].get("DimensionIndexSequence") or []]
    if len(values) != len(pointers):
        return ""
    return "/".join(value for value, to in zip(values, pointers, strict=True) if to not in PLACE_POINTERS)


def check_one_kind(facts: list[dict[str, str]]) -> None:
    """Refuse slices of different series, echoes, times, diffusion weightings, kernels or kinds of image.

    Raises:
        RefusedImage: `several_volumes`.
    """
    for fact in sorted(facts[0]):
        values = {slice_facts[fact] for slice_facts in facts}
        if len(values) == 1 or (fact in (*NUMBERS, B_VALUE) and all_equal(values)):
            continue
        if fact == "SeriesInstanceUID" and len(values) == len(facts) > 1:
            rule = f"got {len(values)} slices, each under a series of its own"
            todo = "prepare the whole export with `omnifm prepare dicom`, which joins them where the headers allow it"
            raise RefusedImage("several_volumes", f"slices must be of one series; {rule}: {todo}")
        some = "; some slices do not say it" if "" in values else ""
        rule = f"slices of one volume must agree in {fact}; got {len(values)} values{some}"
        raise RefusedImage("several_volumes", f"{rule}: export each volume as a series of its own")


def all_equal(values: Collection[str]) -> bool:
    """Whether texts are one number, or one list of numbers, written with more or fewer digits.

    >>> all_equal({"2.46", "2.460", "2.4600001"}), all_equal({"1", "2"}), all_equal({"0", "0.4"})
    (True, False, False)
    """
    rows = [[_parsed(part) for part in value.split("/")] for value in values]
    if any(part is None for row in rows for part in row) or len({len(row) for row in rows}) > 1:
        return False
    return all(_one_number([part for part in column if part is not None]) for column in zip(*rows, strict=True))


def _one_number(parts: list[Decimal]) -> bool:
    finest = min(parts, key=half_unit)
    return all(_is_rounded(part, finest) for part in parts)


def _is_rounded(coarse: Decimal, fine: Decimal) -> bool:
    """Whether the first is the second, rounded to the digits that the first has."""
    size = max(abs(float(coarse)), abs(float(fine)))
    difference = abs(float(coarse - fine))
    return difference <= max(FLOAT32 * size, min(half_unit(coarse) * (1 + FLOAT32), MAX_ROUNDING * size))


@lru_cache(maxsize=4096)
def _parsed(value: str) -> Decimal | None:
    try:
        parsed = Decimal(value)
    except InvalidOperation:
        return None
    return parsed if parsed.is_finite() and abs(parsed.adjusted()) < 300 else None


def half_unit(value: Decimal) -> float:
    """Half of a number's last digit, which is how far rounding moves it.

    >>> half_unit(Decimal("2.46"))
    0.005
    """
    exponent = value.as_tuple().exponent
    return 0.5 * 10.0 ** max(-300, min(int(exponent), 300))


def decimals_of(values: Iterable[str]) -> float:
    """Half of the last digit of the number with the most digits; infinity if there is no number."""
    return min((half_unit(found) for value in values if (found := _parsed(value)) is not None), default=float("inf"))


def check_count(files: list[File], places: int) -> None:
    """Refuse a series in which fewer images arrived than its headers declare.

    Headers of derived images often keep the number of the images that they were computed from, so that number counts
    for original images only.

    Args:
        files: all files of the series.
        places: number of different places of their slices.

    Raises:
        RefusedImage: `missing_slices`.
    """
    acquisitions = Counter(text(file.header, "AcquisitionNumber") for file in files)
    for file in files:
        header = file.header
        original = text(header, "ImageType") != "DERIVED" and "PerFrameFunctionalGroupsSequence" not in header
        declared = (number(header, "ImagesInAcquisition") or 0) if original else 0
        got = max(acquisitions[text(header, "AcquisitionNumber")], places)
        if len(files) < declared and got < declared:
            _refuse_missing("ImagesInAcquisition", declared, got)
        slices = number(header, "NumberOfSlices") or 0
        if text(header, "Modality") == "PT" and places < slices:
            _refuse_missing("NumberOfSlices", slices, places)


def check_parts(files: list[File]) -> None:
    """Refuse multi-frame files of which other parts are missing.

    Raises:
        RefusedImage: `missing_slices`.
    """
    parts = Counter(text(file.header, "ConcatenationUID") for file in files)
    for file in files:
        got, declared = parts[text(file.header, "ConcatenationUID")], number(file.header, "InConcatenationTotalNumber")
        if declared is not None and text(file.header, "ConcatenationUID") and got < declared:
            _refuse_missing("InConcatenationTotalNumber", declared, got)


def _refuse_missing(keyword: str, declared: float, got: int) -> None:
    rule = f"a series must hold all images that its header declares; {keyword} is {declared:g}, and it holds {got}"
    raise RefusedImage("missing_slices", f"{rule}: export the whole series again")
