"""The arithmetic of a comparison, on summaries whose numbers are known, and one small real run."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from omnifm.bench import tables
from tests.conftest import experiment

METRICS = {"dice": True, "hd95_mm": False}


def summary(before, after, distance=1.0):
    sites = {
        f"site-{n}": {
            "metrics": {"dice": {"before": b, "after": a}, "hd95_mm": {"before": distance, "after": distance}}
        }
        for n, (b, a) in enumerate(zip(before, after, strict=True), 1)
    }
    return {"sites": sites, "history": [{"sites": {"site-1": {"bytes_up": 10}}, "bank": {}}]}


def test_golden():
    """Two seeds, two sites; matched is 0.1 and 0.2 better in the mean over sites."""
    cells = {
        "Local": [summary([0, 0], [0.4, 0.6]), summary([0, 0], [0.4, 0.6])],
        "FedPer (matched)": [summary([0, 0], [0.5, 0.5]), summary([0, 0], [0.6, 0.6])],
        "OmniFM": [summary([0, 0], [0.6, 0.6]), summary([0, 0], [0.8, 0.8])],
    }
    row = tables.tabulate(cells, METRICS)["rows"]["OmniFM"]["dice"]["after"]
    assert row["mean"] == pytest.approx(0.7)
    assert row["std_over_seeds"] == pytest.approx(0.1)
    assert row["per_site"] == pytest.approx([0.7, 0.7])
    assert row["sites_below_local"] == 0
    assert row["against_rival"]["difference"] == pytest.approx(0.15)
    half = stats.t.ppf(0.975, 1) * np.std([0.1, 0.2], ddof=1) / np.sqrt(2)
    assert row["against_rival"]["high"] == pytest.approx(0.15 + half)
    matched = tables.tabulate(cells, METRICS)["rows"]["FedPer (matched)"]["dice"]["after"]
    assert matched["sites_below_local"] == 1


@pytest.mark.parametrize(("names", "lost"), [(["Local", "Local (matched)"], 0), (["Local (matched)"], 2)])
def test_where_local_is_missing_sites_are_held_against_local_of_equal_capacity(names, lost):
    """Local is worse than OmniFM everywhere, Local (matched) better everywhere."""
    scores = {"Local": [0.1, 0.1], "Local (matched)": [0.9, 0.9], "OmniFM": [0.5, 0.5]}
    cells = {name: [summary([0, 0], scores[name])] for name in (*names, "OmniFM")}
    rows = tables.tabulate(cells, METRICS)["rows"]
    assert rows["OmniFM"]["dice"]["after"]["sites_below_local"] == lost


def test_a_rival_that_the_task_scores_has_its_own_row():
    """`dice_blank` is 0.1 everywhere: 0.4 below the matched rival's Dice."""
    cells = {name: [summary([0, 0], [0.5, 0.5]) for _ in range(2)] for name in ("Local", "FedPer (matched)", "OmniFM")}
    for run in (run for runs in cells.values() for run in runs):
        for site in run["sites"].values():
            site["metrics"]["dice_blank"] = {"before": 0.1, "after": 0.1}
    metrics = METRICS | {"dice_blank": True}
    table = tables.tabulate(cells, metrics)
    row = table["trivial"]["blank"]["dice"]["after"]
    assert (row["mean"], row["sites_below_local"]) == (pytest.approx(0.1), 2)
    assert row["against_rival"]["difference"] == pytest.approx(-0.4)
    header = {"data": "d", "sites": ["a", "b"], "num_rounds": 1, "local_epochs": 1, "seeds": 2}
    assert "| *blank* | 0.100" in tables.markdown(header, table, "dice")


def test_worst_follows_the_metrics_direction():
    cells = {"OmniFM": [summary([0, 0], [0.2, 0.6], distance=3.0)]}
    row = tables.tabulate(cells, METRICS)["rows"]["OmniFM"]
    assert row["dice"]["after"]["worst_site"] == 0.2
    assert row["hd95_mm"]["after"]["worst_site"] == 3.0


def test_an_undefined_score_is_left_out_not_counted_as_zero():
    cells = {"OmniFM": [summary([0, 0], [0.6, 0.6], distance=None), summary([0, 0], [0.6, 0.6], distance=4.0)]}
    assert tables.tabulate(cells, METRICS)["rows"]["OmniFM"]["hd95_mm"]["after"]["mean"] == 4.0


def test_runs_and_resumes(tmp_path: Path, federation, monkeypatch):
    """Every side starts from the same seed, finished cells are not run again, and the table names every method."""
    monkeypatch.setattr("omnifm.rounds.write_report", lambda *_args: None)
    monkeypatch.setattr(tables, "ABLATIONS", {})
    monkeypatch.setattr(tables, "MAIN", {k: tables.MAIN[k] for k in ("Local", "FedPer (matched)", "OmniFM")})
    monkeypatch.setattr(tables, "CONTENDERS", tables.MAIN)
    job = tmp_path / "job"
    (job / "app/config").mkdir(parents=True)
    tiny = experiment()
    record = {
        "job": tiny.job,
        "task": tiny.task,
        "model": tiny.model,
        "method": tiny.method,
        "data": {"name": "tiny"},
        "train": {"num_rounds": 1, "local_epochs": 1, "batch_size": 2, "lr": 0.01},
    }
    (job / "app/config/experiment.json").write_text(json.dumps(record))
    tables.run(federation, tmp_path / "out", job=job, num_seeds=2)
    text = (tmp_path / "out/table.md").read_text()
    assert all(f"| {name} |" in text for name in ("Local", "FedPer (matched)", "OmniFM"))
    assert len(list((tmp_path / "out/cells").iterdir())) == 6
    monkeypatch.setattr(tables.simulation, "run", lambda *_a, **_k: pytest.fail("ran again"))
    tables.run(federation, tmp_path / "out", job=job, num_seeds=2)
    assert (tmp_path / "out/table.md").read_text() == text
