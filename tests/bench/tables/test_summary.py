"""One line per federation, on tables whose numbers are known."""

import json

import pytest

from omnifm.bench.tables.scores import tabulate
from omnifm.bench.tables.summary import summary_table
from tests.bench.tables.test_one_federation import summary


def column(cells, metrics=None, **facts):
    """A column of these runs."""
    metrics = metrics or {"dice": True}
    header = {"metrics": metrics, "shown": list(metrics), "seeds": len(next(iter(cells.values()))), "failed": {}}
    return header | tabulate(cells, metrics) | facts


def scored(scores, **facts):
    """A column of contenders' scores over (seeds, sites), the same before and after."""
    return column({row: [summary(seed, seed) for seed in seeds] for row, seeds in scores.items()}, **facts)


def written(tmp_path, name, columns):
    """The file of a table."""
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps({"table": name, "columns": columns}))
    return file


def table(tmp_path, name, scores, **facts):
    """The file of a table of one column, under its name."""
    return written(tmp_path, name, {name: scored(scores, **facts)})


LOCAL, FEDPER = "Local (matched)", "FedPer (matched)"


def test_the_rival_is_the_best_matched_baseline(tmp_path):
    """Plain FedAvg is better still and does not count; +0.1 at every site and seed excludes zero."""
    file = table(
        tmp_path,
        "one",
        {
            "FedAvg": [[0.9, 0.9]] * 3,
            LOCAL: [[0.3, 0.5], [0.4, 0.6], [0.5, 0.7]],
            FEDPER: [[0.1, 0.1]] * 3,
            "OmniFM": [[0.4, 0.6], [0.5, 0.7], [0.6, 0.8]],
        },
    )
    text = summary_table([file], "OmniFM")
    heads = "| federation | metric | seeds | Local | FedPer | OmniFM | difference [95 % CI] | worst site | verdict |"
    assert heads in text
    assert "| one | dice | 3 | **0.500** | 0.100 | 0.600 | +0.100 [+0.100, +0.100] | 0.400 → 0.500 | wins |" in text
    assert "wins 1, ties 0, loses 0; ahead in mean on 1, worst site worse by more than half the interval on 0." in text


def test_ties_and_losses_are_told(tmp_path):
    tie = table(tmp_path, "tie", {FEDPER: [[0.5, 0.5], [0.5, 0.5]], "OmniFM": [[0.4, 0.4], [0.7, 0.7]]})
    loss = table(tmp_path, "loss", {FEDPER: [[0.5, 0.5], [0.5, 0.5]], "OmniFM": [[0.4, 0.3], [0.4, 0.3]]})
    text = summary_table([tie, loss], "OmniFM")
    assert "| ties |" in text
    assert "| loses |" in text
    assert "wins 0, ties 1, loses 1; ahead in mean on 1, worst site worse by more than half the interval on 1." in text


def test_a_baseline_that_one_table_lacks_leaves_its_cell_empty(tmp_path):
    both = table(tmp_path, "both", {LOCAL: [[0.5]] * 2, FEDPER: [[0.4]] * 2, "OmniFM": [[0.6]] * 2})
    one = table(tmp_path, "one", {FEDPER: [[0.4]] * 2, "OmniFM": [[0.6]] * 2})
    text = summary_table([both, one], "OmniFM")
    assert "| both | dice | 2 | **0.500** | 0.400 | 0.600 |" in text
    assert "| one | dice | 2 |  | **0.400** | 0.600 |" in text


def test_a_table_of_several_columns_has_a_line_for_each(tmp_path):
    columns = dict.fromkeys(("one", "two"), scored({FEDPER: [[0.5], [0.5]], "OmniFM": [[0.6], [0.7]]}))
    text = summary_table([written(tmp_path, "federations", columns)], "OmniFM")
    assert "| one | dice | 2 |" in text and "| two | dice | 2 |" in text
    assert "OmniFM, 2 federations" in text


def test_of_an_error_the_smaller_is_ahead(tmp_path):
    cells = {FEDPER: [summary([0], [0.5], 2.0)] * 2, "OmniFM": [summary([0], [0.5], 1.0)] * 2}
    text = summary_table([written(tmp_path, "t", {"d": column(cells, {"hd95_mm": False})})], "OmniFM")
    assert "-1.000" in text
    assert "ahead in mean on 1" in text
    assert "| wins |" in text


FINE = {FEDPER: [[0.5], [0.5]], "OmniFM": [[0.6], [0.7]]}


def test_without_the_score_of_a_matched_baseline_there_is_no_verdict(tmp_path):
    """Local diverged, which may have been the best: OmniFM would else win."""
    scores = {FEDPER: [[0.5]] * 2, "OmniFM": [[0.6]] * 2}
    file = table(tmp_path, "one", scores, failed={LOCAL: "diverged", "FedProx": "diverged"})
    text = summary_table([file], "OmniFM")
    assert "| one | dice | 2 | 0.500 | failed | 0.600 | – | – | – |" in text
    assert "OmniFM, 0 federations: wins 0, ties 0, loses 0" in text
    assert "Not counted, for want of a score or of a second seed: one." in text


@pytest.mark.parametrize(
    ("scores", "facts"),
    [
        ({FEDPER: [[0.5]] * 2}, {"failed": {"OmniFM": "diverged"}}),
        ({FEDPER: [[0.5]] * 2, "OmniFM": [[float("nan")]] * 2}, {}),
        ({}, {"failed": {FEDPER: "diverged", "OmniFM": "diverged"}}),
        ({FEDPER: [[0.5]], "OmniFM": [[0.6]]}, {}),
    ],
)
def test_a_federation_that_says_nothing_does_not_stop_the_others(tmp_path, scores, facts):
    columns = {"good": scored(FINE), "bad": scored(FINE) | ({"rows": {}} | facts if not scores else {})}
    if scores:
        columns["bad"] = scored(scores, **facts)
    text = summary_table([written(tmp_path, "federations", columns)], "OmniFM")
    assert "OmniFM, 1 federation: " in text
    assert text.endswith("second seed: bad.\n")


def test_demo_data_do_not_count(tmp_path):
    columns = {"good": scored(FINE, source="site"), "made up": scored(FINE, source="demo")}
    text = summary_table([written(tmp_path, "federations", columns)], "OmniFM")
    assert "| made up |" not in text
    assert "OmniFM, 1 federation: " in text
    assert text.endswith("Left out, synthetic demo data: made up.\n")
    with pytest.raises(ValueError, match="all are of synthetic demo data"):
        summary_table([written(tmp_path, "demo", {"made up": columns["made up"]})], "OmniFM")


def test_refuses_by_name_what_is_no_table_and_a_table_without_the_row(tmp_path):
    (tmp_path / "t.json").write_text("[]")
    (tmp_path / "u.json").write_text("no JSON")
    good = table(tmp_path, "good", {FEDPER: [[0.5, 0.5]], "OmniFM": [[0.5, 0.5]]})
    with pytest.raises(ValueError, match=r"t\.json: tables must be"):
        summary_table([good, tmp_path / "t.json"], "OmniFM")
    with pytest.raises(ValueError, match=r"u\.json: tables must be JSON files of .*Expecting value"):
        summary_table([good, tmp_path / "u.json"], "OmniFM")
    with pytest.raises(ValueError, match=r"nowhere\.json: tables must be JSON files of"):
        summary_table([good, tmp_path / "nowhere.json"], "OmniFM")
    for content in ("null", '{"columns": {}, "table": "t"}', '{"data": "d", "metrics": {}, "rows": {}}'):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(ValueError, match=r"t\.json: tables must be"):
            summary_table([tmp_path / "t.json"], "OmniFM")
    for columns in ("[1]", '{"a": {}}', '{"a": 3}', '{"a": {"rows": {}, "failed": {}}}'):
        (tmp_path / "t.json").write_text(f'{{"columns": {columns}, "table": "t"}}')
        with pytest.raises(ValueError, match=r"t\.json: (a must have the form|tables must be)"):
            summary_table([tmp_path / "t.json"], "OmniFM")
    with pytest.raises(ValueError, match=r"d\.json: d must have the row 'OmniFM' and a matched baseline; got"):
        summary_table([table(tmp_path, "d", {FEDPER: [[0.5, 0.5]]})], "OmniFM")


def test_refuses_a_federation_that_would_count_twice(tmp_path):
    """In one file given twice, or in two tables."""
    file = table(tmp_path, "one", FINE)
    with pytest.raises(ValueError, match="'one' is given twice"):
        summary_table([file, tmp_path / ".." / tmp_path.name / "one.json"], "OmniFM")
    with pytest.raises(ValueError, match="'one' is given twice"):
        summary_table([file, written(tmp_path, "routed_parts", {"one": scored(FINE)})], "OmniFM")
