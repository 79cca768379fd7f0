"""What a site tells the server about its test results besides the scores, for the report.

`Statistics` is the complete list.  Each number describes the whole test split or a group of at least `MIN_CASES` cases
in it, never one case: `for_server` leaves out what rests on fewer.  A site with synthetic demo data sends everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

MIN_CASES = 5
"""Smallest number of cases behind a number that leaves a hospital."""
MAX_NAMES = 256
"""Largest number of labels or metrics of one site."""
CLOSED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Moment = Literal["before", "after"]
"""Of a model: before (as received) or after the site's local training."""
Name = Annotated[str, Field(max_length=200)]
Count = Annotated[int, Field(ge=0)]


class Checkpoint(TypedDict):
    """Which of a run's models was tested: the one that validation chose."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]
    round: Count
    """Round in which the site received it."""
    last: bool
    """Whether it comes from the site's additional training after the last round."""
    metric: Name
    """The metric that chose it."""
    score: float | None
    """Its score on the validation split."""


class Statistics(TypedDict, total=False):
    """Aggregate facts about the test split; a key is absent where the task has no such fact."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]
    checkpoints: dict[Moment, Checkpoint]


KEYS = frozenset(Statistics.__annotations__)
_form = TypeAdapter(Statistics)


def malformed(statistics: Mapping[str, Any]) -> str | None:
    """Return why these are not statistics of the declared form, or None if they are.

    >>> malformed({"checkpoints": {}}), malformed({"cases": [1]})
    (None, "statistics must have the declared form; 'cases' has not")
    """
    try:
        _form.validate_python(dict(statistics))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]["loc"][0]
        return f"statistics must have the declared form; {str(first)!r:.40} has not"
    return None
