"""Each law broken in a copy of a good table is said, with the row's name; the good table passes."""

import json

import pytest

from omnifm.bench.tables import lint
from omnifm.bench.tables.scores import tabulate

METRICS = {"dice": True, "iou": True}


def run(*dice):
    sites = {
        f"site-{i}": {
            "metrics": {"dice": {"before": d, "after": d}, "iou": dict.fromkeys(("before", "after"), d / (2 - d))}
        }
        for i, d in enumerate(dice, 1)
    }
    return {"sites": sites, "history": [{"sites": {"site-1": {"bytes_up": 10}}, "bank": {}}]}


HEADER = {"rival": "FedAvg", "seeds": 2, "sites": ["site-1", "site-2"], "num_rounds": 3, "failed": {}}
CURVES = {"Local": [0.1, 0.4, 0.5], "FedAvg": [0.3, 0.54, 0.6], "OmniFM": [0.1, None, 0.53]}
ROUNDS = {"Local": None, "FedAvg": 2, "OmniFM": None}


@pytest.fixture
def table():
    cells = {
        "Local": [run(0.4, 0.6), run(0.5, 0.7)],
        "FedAvg": [run(0.5, 0.5), run(0.6, 0.7)],
        "OmniFM": [run(0.6, 0.4), run(0.8, 0.9)],
    }
    column = tabulate(cells, METRICS, "FedAvg") | HEADER | {"metrics": METRICS}
    column["chosen"] = {"OmniFM": {"train": {"lr": 0.03}}}
    column["tried"] = {
        "OmniFM": [
            {"key": "train.lr", "value": 0.01, "validation": 0.5},
            {"key": "train.lr", "value": 0.03, "validation": 0.6},
            {"key": "train.lr", "value": 0.09, "validation": None},
        ]
    }
    for name, row in column["rows"].items():
        row["facts"] = {
            "steps": [8, 8],
            "backbone_hash": ["a", "b"],
            "init_hash": ["c", "d"],
            "partition_hash": "p",
            "num_values": {"shared": 5},
            "values_moved": 2 * 5 * 6,
        }
        row["curve"] = dict.fromkeys(METRICS, CURVES[name])
        row["rounds_to_90"] = dict.fromkeys(METRICS, ROUNDS[name])
    return {"columns": {"polyp": json.loads(json.dumps(column))}}


def test_a_good_table_passes(table):
    assert lint.lint(table) == []


def _set(path, value):
    def change(rows):
        *way, last = path
        for key in way:
            rows = rows[key]
        rows[last] = value

    return change


SCORE = ("OmniFM", "dice", "after")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set((*SCORE, "mean"), 0.7), "OmniFM: dice after: mean must be 0.675"),
        (_set((*SCORE, "worst_site"), 0.7), "OmniFM: dice after: worst_site must be 0.65"),
        (_set((*SCORE, "std_over_seeds"), 0.0), "OmniFM: dice after: std_over_seeds must be"),
        (_set((*SCORE, "std_over_sites"), 0.3), "OmniFM: dice after: std_over_sites must be"),
        (_set((*SCORE, "per_site", 1), 0.7), "OmniFM: dice after: per_site must be the mean over seeds"),
        (_set((*SCORE, "sites_below_local"), 1), "OmniFM: dice after: sites_below_local must be 0; got 1"),
        (_set((*SCORE, "against_rival", "difference"), 0.2), "OmniFM: dice after: difference to the rival must be"),
        (_set((*SCORE, "against_rival", "low"), 0.11), "OmniFM: dice after: the interval must be ["),
        (_set((*SCORE, "against_rival", "high"), 9.0), "OmniFM: dice after: the interval must be ["),
        (_set((*SCORE, "against_rival", "low"), None), "OmniFM: dice after: a difference over several seeds must have"),
        (_set(("OmniFM", "iou", "after", "values", 0, 0), 0.2), "OmniFM: after: mean Dice must lie in [J, 2J / (1 + J"),
        (_set(("OmniFM", "iou", "after", "values", 0, 0), 0.9), "OmniFM: after: mean Dice must lie in [J, 2J / (1 + J"),
        (_set(("OmniFM", "facts", "steps"), [9, 8]), "OmniFM: must have the same local steps as the others"),
        (
            _set(("OmniFM", "facts", "values_moved"), 55),
            "OmniFM: values moved must be 2 x 5 of at most 6 replies",
        ),
        (
            _set(("OmniFM", "facts", "values_moved"), 70),
            "OmniFM: values moved must be 2 x 5 of at most 6 replies",
        ),
        (_set(("OmniFM", "rounds_to_90", "iou"), 3), "OmniFM: iou: rounds to 90 % of the best must be None; got 3"),
        (
            _set(("FedAvg", "rounds_to_90", "dice"), None),
            "FedAvg: dice: rounds to 90 % of the best must be 2; got",
        ),
        (_set(("Local", "curve", "dice"), [0.1, 0.4]), "Local: dice: curve must have 3 rounds; got 2"),
        (_set(("Local", "facts", "backbone_hash"), ["a", "a"]), "Local: must have the same initial backbone"),
        (_set(("OmniFM", "facts", "init_hash"), ["c", "c"]), "OmniFM: must start from the same shared values as Local"),
    ],
)
def test_each_broken_law_is_said(table, change, said):
    change(table["columns"]["polyp"]["rows"])
    assert any(line.startswith(f"polyp: {said}") for line in lint.lint(table)), lint.lint(table)


def test_an_interval_that_was_moved_is_said(table):
    """Of the right width, and still around the difference: a tie that became a win."""
    told = table["columns"]["polyp"]["rows"]["OmniFM"]["dice"]["after"]["against_rival"]
    reach = (told["high"] - told["low"]) / 2
    told.update(low=told["difference"], high=told["difference"] + 2 * reach)
    (line,) = lint.lint(table)
    assert line.startswith("polyp: OmniFM: dice after: the interval must be [")


def _without(*path):
    def change(column):
        *way, last = path
        for key in way:
            column = column[key]
        del column[last]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set(("seeds",), 3), "Local: dice before: must have 3 seeds of 2 sites; got [(2, 2)]"),
        (_set(("sites",), ["site-1", "site-1"]), "sites must be named once each; got ['site-1', 'site-1']"),
        (_set(("sites",), []), "Local: dice before: must have 2 seeds of 0 sites; got [(2, 2)]"),
        (_set(("rows", "OmniFM", "iou", "after", "values"), [[0.6, 0.4]]), "OmniFM: iou after: must have 2 seeds"),
        (_set(("rows", "OmniFM", "iou", "after", "values", 0), [0.6]), "OmniFM: iou after: must have 2 seeds"),
        (_set(("rival",), "FedPer"), "rival must be a row; got 'FedPer'"),
        (_without("rows", "FedAvg"), "rival must be a row; got 'FedAvg'"),
        (_without("rows", "OmniFM", "iou"), "OmniFM: must have every metric; iou lacking"),
        (_without("rows", *SCORE, "against_rival"), "OmniFM: dice after: must have a difference to the rival"),
        (_without("rows", *SCORE, "sites_below_local"), "OmniFM: dice after: sites_below_local must be 0; got None"),
        (_set(("chosen", "OmniFM", "train", "lr"), 0.01), "OmniFM: train.lr must be the best of those tried; got 0.01"),
        (_set(("chosen", "OmniFM", "train", "lr"), 0.09), "OmniFM: train.lr must be the best of those tried; got 0.09"),
        (_without("chosen", "OmniFM"), "OmniFM: train.lr must be the best of those tried; got None"),
    ],
)
def test_what_is_missing_is_said(table, change, said):
    change(table["columns"]["polyp"])
    assert any(line.startswith(f"polyp: {said}") for line in lint.lint(table)), lint.lint(table)


def test_another_architecture_may_start_elsewhere(table):
    table["columns"]["polyp"]["rows"]["OmniFM"]["facts"] |= {"init_hash": ["e", "f"], "partition_hash": "q"}
    assert lint.lint(table) == []


def test_a_row_without_scores_is_said(table):
    table["columns"]["polyp"]["failed"] = {"SCAFFOLD": "train_loss must be finite"}
    assert lint.lint(table) == ["polyp: SCAFFOLD: has no scores, since its run failed: train_loss must be finite"]


def test_undefined_scores_are_left_out_alike(table):
    cells = {"FedAvg": [run(0.5, 0.5), run(0.6, 0.7)], "OmniFM": [run(0.6, 0.4), run(0.8, 0.9)]}
    for one in cells["OmniFM"]:
        one["sites"]["site-2"]["metrics"]["dice"]["after"] = None
    column = tabulate(cells, {"dice": True}, "FedAvg") | HEADER | {"metrics": {"dice": True}}
    assert column["rows"]["OmniFM"]["dice"]["after"]["per_site"] == [pytest.approx(0.7), None]
    assert lint.lint({"columns": {"polyp": column}}) == []


@pytest.mark.parametrize("change", [_set(("rows", *SCORE), "x"), _set(("rows", *SCORE, "values"), [["x", "y"]] * 2)])
def test_what_is_no_table_is_a_finding_and_no_traceback(table, change):
    change(table["columns"]["polyp"])
    (line,) = lint.lint(table)
    assert line.startswith("polyp: must have the form that `bench tables` writes; reading it ends in Type")


@pytest.mark.parametrize("columns", [{}, [1]])
def test_a_table_without_columns_is_a_finding(columns):
    assert lint.lint({"columns": columns}) == ["table must have a column; it has none"]


def test_a_folder_without_a_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match="folder must hold a table's JSON; it holds none"):
        lint.lint_folder(tmp_path)
    (tmp_path / "cut.json").write_text('{"columns"')
    with pytest.raises(ValueError, match=r"cut\.json must be JSON; Expecting"):
        lint.lint_folder(tmp_path)


def test_a_table_of_an_older_version_is_said(tmp_path):
    """Other benchmarks' results beside it are no tables."""
    (tmp_path / "table.json").write_text(json.dumps({"rows": {}, "trivial": {}}))
    (tmp_path / "unseen.json").write_text(json.dumps({"rows": {}}))
    assert lint.lint_folder(tmp_path) == [
        "table: table: must hold scores per seed and site; an older version wrote it without: make it again"
    ]
