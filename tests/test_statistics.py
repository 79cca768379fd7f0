"""What may leave a site about its test results."""

import pytest

from omnifm.statistics import malformed

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
    ],
)
def test_anything_else_may_not(content):
    assert malformed(content) == f"statistics must have the declared form; {next(iter(content))!r} has not"
