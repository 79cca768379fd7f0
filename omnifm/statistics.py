"""What a site tells the server about its test results besides the scores, for the report.

`Statistics` is the complete list.  Each number describes the whole test split or a group of at least `MIN_CASES` cases
in it, never one case: `for_server` leaves out what rests on fewer.  A site with synthetic demo data sends everything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

MIN_CASES = 5
"""Smallest number of cases behind a number that leaves a hospital."""
MAX_CLASSES = 32
"""Largest number of classes that are told apart in a report."""
MAX_BYTES = 2**16
"""Largest size of a site's statistics as JSON."""
CLOSED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Moment = Literal["before", "after"]
"""Of a model: before (as received) or after the site's local training."""
Name = Annotated[str, Field(max_length=200)]
Count = Annotated[int, Field(ge=0)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
"""Lower and upper end."""


@with_config(CLOSED)
class Checkpoint(TypedDict):
    """Which of a run's models was tested: the one that validation chose."""

    round: Count
    """Round in which the site received it."""
    last: bool
    """Whether it comes from the site's additional training after the last round."""
    metric: Name
    """The metric that chose it."""
    score: float | None
    """Its score on the validation split."""


@with_config(CLOSED)
class Confusion(TypedDict):
    """How often each class was predicted."""

    names: list[Name]
    counts: list[list[Count] | None]
    """A row for each true class: number of its cases by predicted class.  None where the class has too few cases."""


@with_config(CLOSED)
class Bin(TypedDict):
    """The cases whose predicted class has a probability in one range."""

    cases: Count
    confidence: float
    """Mean probability of the predicted class."""
    accuracy: float
    """Share of the cases whose predicted class is right."""


@with_config(CLOSED)
class Reliability(TypedDict):
    """Whether a probability of 80 % is right in 80 % of the cases."""

    ece: float
    """Expected calibration error: mean distance of confidence and accuracy over all cases, in [0, 1]."""
    bins: list[Bin]


@with_config(CLOSED)
class Lesions(TypedDict):
    """Connected parts of the reference masks, over all test cases."""

    cases: Count
    """Number of cases that have one."""
    total: Count
    missed: Count
    """Number of parts that the prediction does not touch."""


@with_config(CLOSED)
class Statistics(TypedDict, total=False):
    """Aggregate facts about the test split; a key is absent where the task has no such fact."""

    checkpoints: dict[Moment, Checkpoint]
    intervals: dict[Moment, dict[Name, Interval]]
    """95 % bootstrap interval over cases, by metric."""
    classes: dict[Name, dict[Name, int | float | None]]
    """By class or label: `cases` that have it, and its scores after local training."""
    confusion: Confusion
    reliability: Reliability
    lesions: Lesions


KEYS = frozenset(Statistics.__annotations__)
_form = TypeAdapter(Statistics)


def malformed(statistics: Mapping[str, Any]) -> str | None:
    """Return why these are not statistics of the declared form, or None if they are.

    >>> malformed({"checkpoints": {}}), malformed({"cases": [1]})
    (None, "statistics must have the declared form; 'cases' has not")
    """
    if len(json.dumps(dict(statistics), default=str)) > MAX_BYTES:
        return f"statistics must have at most {MAX_BYTES} bytes"
    try:
        _form.validate_python(dict(statistics))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]["loc"][0]
        return f"statistics must have the declared form; {str(first)!r:.40} has not"
    return None


def for_server(whole: Statistics) -> Statistics:
    """The part of a site's statistics that may leave it: nothing in it rests on fewer than MIN_CASES cases.

    If exactly one class is too small, the next larger one is left out, too: else the difference of the totals would
    tell its size.

    >>> for_server({"classes": {"a": {"cases": 9}, "b": {"cases": 7}, "c": {"cases": 2}}})["classes"]
    {'a': {'cases': 9}}
    """
    kept = whole.copy()
    hidden = _too_small(whole.get("classes", {}))
    if "classes" in whole:
        kept["classes"] = {name: row for name, row in whole["classes"].items() if name not in hidden}
    if "confusion" in whole:
        table = whole["confusion"]
        pairs = zip(table["names"], table["counts"], strict=True)
        kept["confusion"] = {
            "names": table["names"],
            "counts": [None if name in hidden else row for name, row in pairs],
        }
    if "reliability" in whole:
        bins = [one for one in whole["reliability"]["bins"] if one["cases"] >= MIN_CASES]
        kept["reliability"] = {"ece": whole["reliability"]["ece"], "bins": bins}
    if "lesions" in whole and whole["lesions"]["cases"] < MIN_CASES:
        del kept["lesions"]
    return kept


def _too_small(classes: Mapping[str, Mapping[str, int | float | None]]) -> set[str]:
    """Classes whose numbers stay at the site."""
    sizes = {name: row["cases"] or 0 for name, row in classes.items()}
    occurring = sorted((name for name in sizes if sizes[name]), key=lambda name: sizes[name])
    small = [name for name in occurring if sizes[name] < MIN_CASES]
    return set(occurring[:2]) if len(small) == 1 else set(small)
