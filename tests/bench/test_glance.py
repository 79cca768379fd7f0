"""One line per federation, on tables whose numbers are known."""

import json

import pytest

from omnifm.bench import tables
from omnifm.bench.glance import glance
from tests.bench.test_tables import summary


def table(tmp_path, name, scores, metrics=None):
    """Contender -> its scores over (seeds, sites); the same before and after."""
    cells = {row: [summary(seed, seed) for seed in seeds] for row, seeds in scores.items()}
    folder = tmp_path / name
    folder.mkdir()
    metrics = metrics or {"dice": True}
    (folder / "table.json").write_text(json.dumps({"data": name, "metrics": metrics} | tables.tabulate(cells, metrics)))
    return folder / "table.json"


LOCAL, FEDPER = "Local (matched)", "FedPer (matched)"


def test_the_rival_is_the_best_matched_baseline(tmp_path):
    """Plain FedAvg is better still and does not count; +0.1 at every site and seed excludes zero."""
    file = table(tmp_path, "one", {
        "FedAvg": [[0.9, 0.9]] * 3, LOCAL: [[0.3, 0.5], [0.4, 0.6], [0.5, 0.7]], FEDPER: [[0.1, 0.1]] * 3,
        "OmniFM": [[0.4, 0.6], [0.5, 0.7], [0.6, 0.8]],
    })  # fmt: skip
    text = glance([file], "OmniFM")
    heads = "| federation | metric | seeds | Local | FedPer | OmniFM | difference [95 % CI] | worst site | verdict |"
    assert heads in text
    assert "| one | dice | 3 | **0.500** | 0.100 | 0.600 | +0.100 [+0.100, +0.100] | 0.400 → 0.500 | wins |" in text
    assert "wins 1, ties 0, loses 0; ahead in mean on 1, worst site worse by more than half the interval on 0." in text


def test_ties_and_losses_are_told(tmp_path):
    tie = table(tmp_path, "tie", {FEDPER: [[0.5, 0.5], [0.5, 0.5]], "OmniFM": [[0.4, 0.4], [0.7, 0.7]]})
    loss = table(tmp_path, "loss", {FEDPER: [[0.5, 0.5], [0.5, 0.5]], "OmniFM": [[0.4, 0.3], [0.4, 0.3]]})
    text = glance([tie, loss], "OmniFM")
    assert "| ties |" in text
    assert "| loses |" in text
    assert "wins 0, ties 1, loses 1; ahead in mean on 1, worst site worse by more than half the interval on 1." in text


def test_a_baseline_that_one_table_lacks_leaves_its_cell_empty(tmp_path):
    both = table(tmp_path, "both", {LOCAL: [[0.5]], FEDPER: [[0.4]], "OmniFM": [[0.6]]})
    one = table(tmp_path, "one", {FEDPER: [[0.4]], "OmniFM": [[0.6]]})
    text = glance([both, one], "OmniFM")
    assert "| both | dice | 1 | **0.500** | 0.400 | 0.600 |" in text
    assert "| one | dice | 1 |  | **0.400** | 0.600 |" in text


def test_a_table_of_several_columns_has_a_line_for_each(tmp_path):
    scores = {FEDPER: [[0.5], [0.5]], "OmniFM": [[0.6], [0.7]]}
    content = json.loads(table(tmp_path, "one", scores).read_text())
    columns = dict.fromkeys(("one", "two"), content)  # two ways to run one federation
    file = tmp_path / "federations.json"
    file.write_text(json.dumps({"columns": columns}))
    text = glance([file], "OmniFM")
    assert "| one | dice | 2 |" in text and "| two | dice | 2 |" in text
    assert "OmniFM, 2 federations" in text


def test_of_an_error_the_smaller_is_ahead(tmp_path):
    cells = {FEDPER: [summary([0], [0.5], 2.0)] * 2, "OmniFM": [summary([0], [0.5], 1.0)] * 2}
    metrics = {"hd95_mm": False}
    file = tmp_path / "table.json"
    file.write_text(json.dumps({"data": "d", "metrics": metrics} | tables.tabulate(cells, metrics)))
    text = glance([file], "OmniFM")
    assert "-1.000" in text
    assert "ahead in mean on 1" in text
    assert "| wins |" in text


def test_refuses_by_name_what_is_no_table_and_a_table_without_the_row(tmp_path):
    (tmp_path / "t.json").write_text("[]")
    (tmp_path / "u.json").write_text("no JSON")
    good = table(tmp_path, "good", {FEDPER: [[0.5, 0.5]], "OmniFM": [[0.5, 0.5]]})
    with pytest.raises(ValueError, match=r"t\.json: tables must be"):
        glance([good, tmp_path / "t.json"], "OmniFM")
    with pytest.raises(ValueError, match=r"u\.json: Expecting value"):
        glance([good, tmp_path / "u.json"], "OmniFM")
    for content in ("null", '{"columns": {"a": []}}', '{"columns": {}}', '{"data": "d", "metrics": {}, "rows": {}}'):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(ValueError, match=r"t\.json: tables must be"):
            glance([tmp_path / "t.json"], "OmniFM")
    with pytest.raises(ValueError, match=r"dice must be defined for every row of n; it is not for \['OmniFM'\]"):
        glance([table(tmp_path, "n", {FEDPER: [[0.5]], "OmniFM": [[float("nan")]]})], "OmniFM")
    with pytest.raises(ValueError, match=r"d.table\.json: a table must have the row 'OmniFM' and a matched baseline"):
        glance([table(tmp_path, "d", {FEDPER: [[0.5, 0.5]]})], "OmniFM")


def test_refuses_a_table_that_would_count_twice(tmp_path):
    file = table(tmp_path, "one", {FEDPER: [[0.5, 0.5]], "OmniFM": [[0.5, 0.5]]})
    with pytest.raises(ValueError, match="given twice"):
        glance([file, file.parent / ".." / "one" / "table.json"], "OmniFM")
