"""The report of a data check, as `omnifm check --json` prints it."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class LabelCount(TypedDict):
    """How often one label occurs in a split."""

    cases: int
    voxels: NotRequired[int]
    """Only of masks."""
    share: NotRequired[float]
    """Share of all voxels of the split's masks, in [0, 1]."""


class SplitReport(TypedDict):
    """One split: training, validation or test."""

    cases: int
    """Cases that can be used."""
    patients: int
    """0 if dataset.json names no patient."""
    modalities: dict[str, int]
    """Number of images by DICOM modality code."""
    labels: dict[str, LabelCount]
    refused: NotRequired[int]
    """Cases that cannot be used."""


class Spread(TypedDict):
    """Smallest value, median and largest value along each axis."""

    min: list[float]
    median: list[float]
    max: list[float]


class Histogram(TypedDict):
    """Number of sampled intensities in bins of equal width from `low` to `high`."""

    low: float
    high: float
    counts: list[int]


class ImagesReport(TypedDict):
    """All images of one modality."""

    num_images: int
    dims: dict[str, int]
    """Number of images that are `2-D` and `3-D`."""
    channels: dict[str, int]
    """Number of images by number of channels."""
    shape: Spread
    """Voxels."""
    spacing_mm: Spread
    intensity: dict[str, float]
    """Intensity by percentile, in the modality's unit."""
    histogram: Histogram


class PlaceRecord(TypedDict):
    """Where a case stands in dataset.json."""

    split: NotRequired[str]
    list: str
    position: int
    """Counted from 0."""


class Duplicates(TypedDict):
    """Groups of equal images."""

    across_splits: list[list[PlaceRecord]]
    within_a_split: list[list[PlaceRecord]]


class RefusalRecord(TypedDict):
    """A case that cannot be used; the fields are those of `quarantine.Refusal`."""

    split: str
    position: int
    reason: str
    message: str


class Advice(TypedDict):
    """Something that somebody should look at."""

    name: str
    """A key of `things.THINGS`, or `one_patient`, `unpainted`, `leaked`, `repeated`."""
    what: str
    advice: str
    """What to do next."""


class CheckReport(TypedDict):
    """The whole report, schema 2."""

    schema: int
    task: str | None
    usable: bool
    problems: list[str]
    """Why the site cannot train; empty if it can."""
    warnings: list[str]
    look_at: list[Advice]
    """Things to look at; the first words of most of them stand in `warnings`, too."""
    labels: dict[str, str]
    """Name by label value."""
    splits: dict[str, SplitReport]
    images: dict[str, ImagesReport]
    """By modality."""
    duplicates: Duplicates
    odd: dict[str, list[PlaceRecord]]
    """Cases that somebody should look at, by a key of `things.THINGS`."""
    refusals: list[RefusalRecord]
