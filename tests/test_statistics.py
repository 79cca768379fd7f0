"""What may leave a site about its test results."""

import pytest

from omnifm.statistics import MAX_BYTES, for_server, malformed

CHECKPOINT = {"round": 2, "last": False, "metric": "dice", "score": 0.5}


@pytest.mark.parametrize("content", [{}, {"checkpoints": {"after": CHECKPOINT}}])
def test_declared_facts_may_leave(content):
    assert malformed(content) is None


@pytest.mark.parametrize(
    "content",
    [
        {"patients": ["p1"]},
        {"checkpoints": {"later": CHECKPOINT}},
        {"checkpoints": {"after": CHECKPOINT | {"file": "x"}}},
        {"checkpoints": {"after": CHECKPOINT | {"score": float("nan")}}},
        {"checkpoints": {"after": CHECKPOINT | {"round": -1}}},
        {"checkpoints": {"after": CHECKPOINT | {"metric": 201 * "x"}}},
        {"checkpoints": {"after": CHECKPOINT | {"last": 1}}},
        {"intervals": {"after": {"dice": [0.1, 0.2, 0.3]}}},
        {"confusion": {"names": ["a"], "counts": [[-1]]}},
        {"lesions": {"cases": 1, "total": 2, "missed": 1, "of": "p1"}},
    ],
)
def test_anything_else_may_not(content):
    assert malformed(content) == f"statistics must have the declared form; {next(iter(content))!r} has not"


def test_their_size_is_limited():
    content = {"classes": {f"{number} {190 * 'x'}": {"cases": 9} for number in range(MAX_BYTES // 200)}}
    assert malformed(content) == "statistics must have at most 65536 bytes"


def sizes(**cases):
    return {"classes": {name: {"cases": number} for name, number in cases.items()}}


@pytest.mark.parametrize(
    ("cases", "kept"),
    [
        ({"a": 9, "b": 5}, ["a", "b"]),
        ({"a": 9, "b": 4, "c": 3}, ["a"]),
        ({"a": 9, "b": 7, "c": 4}, ["a"]),  # with b, the total would tell c
        ({"a": 9, "c": 4}, []),
        ({"a": 9, "none": 0}, ["a", "none"]),
    ],
)
def test_a_class_of_few_cases_stays_home_and_cannot_be_inferred(cases, kept):
    names = list(cases)
    whole = sizes(**cases) | {"confusion": {"names": names, "counts": [[number] for number in cases.values()]}}
    sent = for_server(whole)
    assert list(sent["classes"]) == kept
    rows = zip(names, sent["confusion"]["counts"], strict=True)
    assert [name for name, row in rows if row is not None] == kept
    assert whole["classes"].keys() == cases.keys()  # the site's own are untouched


def test_a_range_of_confidence_or_lesions_of_few_cases_stay_home():
    bins = [{"cases": number, "confidence": 0.5, "accuracy": 1.0} for number in (4, 5)]
    sent = for_server({"reliability": {"ece": 0.1, "bins": bins}, "lesions": {"cases": 4, "total": 9, "missed": 1}})
    assert sent == {"reliability": {"ece": 0.1, "bins": bins[1:]}}
