"""The records that a run writes and exchanges: data facts, a round's entry, and summary.json (schema 1).

They are plain dictionaries, because they travel as JSON; these types say which keys they hold.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from omnifm.statistics import Statistics

Json = dict[str, Any]
"""A JSON object whose keys are somebody else's: a task's or a method's."""


DATA_CHANGED = "the site's data have changed, and the server must hear of it before the site goes on"
"""Why a site that comes back with other data does not train in this round; the server then lets it describe them."""


class ListFacts(TypedDict):
    """A site's list of cases, so that a server that goes on with a run notices that the list has changed."""

    digest: str
    """Of patients, splits and files; the run's id goes into it, so that nobody can look it up."""
    known: bool
    """Whether the site still knows which patients this run has used before."""
    new: int
    """Patients whom this site's earlier list did not hold."""
    gone: int
    changed: int
    """Patients of whom an image, a mask or a class is another one than before."""
    moved: int
    """Patients whom dataset.json now puts into another split; they keep the one that they had in this run."""


class Facts(TypedDict):
    """What a site tells about its data in the stage `describe`."""

    num_train: int
    num_validation: int
    num_test: int
    num_refused: int
    modalities: dict[str, int]
    """Number of cases by DICOM modality code."""
    source: str
    """`demo` (synthetic) or `site` (a hospital's own data)."""
    data: Json
    """The facts that the task asks for: dimensions, channels, spacing, label names."""
    split_by: NotRequired[str]
    """`patient` if every item of dataset.json names its patient, so that none is in two splits; else `image`."""
    list: NotRequired[ListFacts]
    """The state of the list of cases."""


class MetricRecord(TypedDict):
    """One metric of one site on the test split; None where it is undefined."""

    before: float | None
    """Score of the received model."""
    after: float | None
    """Score after local training."""
    support: int
    """Number of cases on which the metric is defined."""
    undefined: int
    """Number of cases on which it is not."""


class SiteRecord(TypedDict):
    """A site's entry in summary.json."""

    num_train: int
    num_validation: int
    num_test: int
    num_refused: int
    modalities: dict[str, int]
    metrics: dict[str, MetricRecord]
    source: NotRequired[str]
    """As in `Facts`."""
    split_by: NotRequired[str]
    """As in `Facts`."""
    units: NotRequired[dict[str, str]]
    """Unit by metric, where it is another one than the metric's name says: pixels, where no spacing is known."""
    statistics: NotRequired[Statistics]
    """Aggregate facts about the test split."""


class SiteRound(TypedDict):
    """One accepted training reply in a round's entry; metrics are of the validation split."""

    train_loss: float | None
    metrics: dict[str, float]
    """Scores after local training."""
    before: dict[str, float]
    """Scores of the received model."""
    num_samples: int
    seconds: float
    bytes_up: int
    bytes_down: int
    norm: float
    """L2 norm of the change of the shared part."""


class RoundEntry(TypedDict):
    """One line of rounds.jsonl."""

    round: int
    sites: dict[str, SiteRound]
    missing: dict[str, str]
    """Reason by site that should have replied and was not accepted."""
    bank: Json
    """State of the knowledge bank; empty if the method has none."""


class Aggregate(TypedDict):
    """One metric over the sites, after local training."""

    mean: float
    std: float
    worst: float
    worst_site: str


class DataChange(TypedDict):
    """A site's data that changed during a run; counts of patients as in `ListFacts`."""

    site: str
    before_round: int
    """The first round that used the changed data."""
    new: int
    gone: int
    changed: int
    moved: int


class Rounds(TypedDict):
    """Number of communication rounds."""

    planned: int
    completed: int


class Summary(TypedDict):
    """summary.json, schema 1."""

    schema: int
    job: str
    task: str
    method: str
    data: NotRequired[str]
    seed: int
    versions: dict[str, str]
    settings: NotRequired[dict[str, Json]]
    """All settings of the run by section of experiment.json, with the defaults."""
    finished: NotRequired[str]
    """When the run ended: date and time in UTC, to the minute."""
    status: str
    """`COMPLETE`, `SUBSET` (a site that should have taken part did not, at any round) or `FAILED`."""
    reason: str | None
    rounds: Rounds
    partition: Json
    """`hash` of the manifest, and number of values by part of the model."""
    init_hash: str
    backbone_hash: NotRequired[str]
    final_hash: str
    data_source: str
    sites: dict[str, SiteRecord]
    aggregate: dict[str, Aggregate]
    higher_is_better: NotRequired[dict[str, bool]]
    """By metric of the task."""
    reference: NotRequired[dict[str, dict[str, dict[str, float | None]]]]
    """Test score after local training by method, site and metric, of runs that differ in nothing but the method."""
    absent: NotRequired[dict[str, str]]
    capped: NotRequired[dict[str, int]]
    data_changes: NotRequired[list[DataChange]]
    """Data that changed after the run had begun; empty if none did."""
    history: list[RoundEntry]
