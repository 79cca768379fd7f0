"""The panel of a site's classes, and the page of a site's own test."""

import re

from omnifm.config import Experiment
from omnifm.report.classes import class_panel
from omnifm.report.site_page import site_page
from tests.report.test_run import CHECKPOINTS, FETCHES, HOSTILE, PNG, Page

STATISTICS = {
    "checkpoints": CHECKPOINTS,
    "intervals": {"before": {"dice": [0.3, 0.5]}, "after": {"dice": [0.55, 0.8]}},
    "classes": {"liver": {"cases": 8, "dice": 0.7}, "rare": {"cases": 0, "dice": None}},
    "confusion": {"names": ["x", "y", "never"], "counts": [[5, 2, 0], None, [0, 0, 0]]},
    "reliability": {"ece": 0.1, "bins": [{"cases": 6, "confidence": 0.75, "accuracy": 0.5}]},
    "lesions": {"cases": 7, "total": 12, "missed": 3},
}
SCORES = {
    "dice": {"before": 0.4, "after": 0.7, "support": 8, "undefined": 1},
    "hd95_mm": {"before": None, "after": 5.0, "support": 8, "undefined": 0},
    "dice_prior": {"before": 0.1, "after": 0.2, "support": 8, "undefined": 0},
}


def page(statistics=STATISTICS, pictures=None, site="site-1"):
    record = {"source": "site", "metrics": SCORES, "units": {"hd95_mm": "pixels"}, "statistics": statistics}
    html = site_page(site, Experiment.from_job("seg_fets"), record, pictures or {}).decode()
    return Page(html), html


def test_what_did_not_occur_is_left_out():
    panel = class_panel("site-1", STATISTICS)
    assert panel.classes.rows == [["liver", "8", "0.700"]]
    assert panel.confusion.headers[1:] == ["x", "y"]
    assert [row[0] for row in panel.confusion.rows] == ["x"]
    assert panel.lesions == "3 of 12 lesions missed, in 7 cases."
    assert class_panel("site-1", {}).is_empty


def test_the_diagram_says_its_dots():
    diagram = class_panel("site-1", STATISTICS).diagram
    assert [(dot.x, dot.y) for dot in diagram.dots] == [("150.0", "100.0")]  # right and down from the upper left
    assert diagram.dots[0].words == "confidence 0.75, right 0.50, 6 cases"
    assert "0.100" in diagram.alt


def test_the_page_of_a_site():
    shown, _ = page(pictures={"test case 1 of 2, the worst: Dice 0.312": PNG})
    assert shown.row("Dice") == ["Dice", "0.400 [0.300, 0.500]", "0.700 [0.550, 0.800]", "8 1 undefined", "prior 0.200"]
    assert shown.row("HD95 (pixels)") == ["HD95 (pixels)", "–", "5.000", "8", "–"]
    assert shown.row("After local training") == [
        "After local training",
        "additional training after the last round",
        "0.700",
    ]
    for words in ("stays at the site", "not a medical device", "3 of 12 lesions missed", "Reviewed by", "the worst"):
        assert words in shown.text


def test_the_page_of_a_site_is_safe_and_bare():
    statistics = STATISTICS | {"classes": {HOSTILE: {"cases": 8, HOSTILE: 0.7}}}
    shown, text = page(statistics, {HOSTILE: PNG}, HOSTILE)
    assert "<script" not in text
    assert not any("onload" in attrs for _, attrs in shown.tags)
    assert not re.search(FETCHES, text)
    assert "The test split is empty" in page({})[0].text
    assert "Classes" not in page({})[0].text
