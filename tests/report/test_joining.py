"""Who gains and who loses by joining."""

import pytest

from omnifm.report.joining import joining
from omnifm.report.run import write_report
from tests.report.test_run import HOSTILE, Page, summary


def against(alone, **changes):
    return summary(reference={"local": {site: {"dice": score} for site, score in alone.items()}}, **changes)


def test_gains_and_losses():
    """Joined, a has 0.7 and b 0.6."""
    found = joining(against({"a": 0.5, "b": 0.7}, higher_is_better={"dice": True}), "dice")
    assert found.table.rows == [["a", "0.500", "0.700", "+0.200", "gains"], ["b", "0.700", "0.600", "-0.100", "loses"]]
    assert found.verdict == "Of 2 sites 1 gain by joining, 1 lose."
    assert [(bar.left, bar.width, bar.is_better) for bar in found.changes] == [
        ("50.0", "50.0", True),
        ("25.0", "25.0", False),
    ]


def test_lower_may_be_better():
    found = joining(against({"a": 0.5, "b": 0.7}, higher_is_better={"dice": False}), "dice")
    assert [row[-1] for row in found.table.rows] == ["loses", "gains"]
    assert [bar.is_better for bar in found.changes] == [False, True]


def test_an_unknown_or_equal_score():
    found = joining(against({"a": 0.7, "b": None, "c": 0.1}), "dice")
    assert [row[-1] for row in found.table.rows] == ["no change", "unknown", "unknown"]
    assert found.verdict == "Of 3 sites 0 gain by joining, 0 lose, 1 do not change, 2 are unknown."
    assert [bar.width for bar in found.changes] == ["0.0"]


@pytest.mark.parametrize("content", [summary(), against({})])
def test_without_a_reference_there_is_nothing(content):
    assert joining(content, "dice") is None


def test_on_the_page(tmp_path):
    write_report(against({"a": 0.5, HOSTILE: 0.7}), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.row("a", "0.500") == ["a", "0.500", "0.700", "+0.200", "gains"]
    assert page.row(HOSTILE)[1] == "0.700"
    assert "Who gains and who loses by joining Of 3 sites 1 gain by joining, 0 lose, 2 are unknown." in page.text
    assert not any("onload" in attrs for _, attrs in page.tags)
