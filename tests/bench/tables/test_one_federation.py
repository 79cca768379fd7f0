"""The arithmetic of a comparison, on summaries whose numbers are known, and one small real run."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from omnifm.bench import cells
from omnifm.bench.tables import lint
from omnifm.bench.tables import one_federation as tables
from omnifm.bench.tables.page import spread
from omnifm.bench.tables.scores import tabulate
from omnifm.plugins import plugin
from tests.conftest import ROOT, experiment

METRICS = {"dice": True, "hd95_mm": False}


def summary(before, after, distance=1.0):
    sites = {
        f"site-{n}": {
            "metrics": {"dice": {"before": b, "after": a}, "hd95_mm": {"before": distance, "after": distance}}
        }
        for n, (b, a) in enumerate(zip(before, after, strict=True), 1)
    }
    return {"sites": sites, "history": [{"sites": {"site-1": {"bytes_up": 10}}, "bank": {}}]}


def test_one_seed_has_no_spread():
    cells = {"OmniFM": [summary([0, 0], [0.6, 0.7])]}
    row = tabulate(cells, METRICS)["rows"]["OmniFM"]["dice"]["after"]
    assert row["std_over_seeds"] is None
    assert spread(row) == "0.650"


def test_golden():
    """Two seeds, two sites; matched is 0.1 and 0.2 better in the mean over sites."""
    cells = {
        "Local": [summary([0, 0], [0.4, 0.6]), summary([0, 0], [0.4, 0.6])],
        "FedPer (matched)": [summary([0, 0], [0.5, 0.5]), summary([0, 0], [0.6, 0.6])],
        "OmniFM": [summary([0, 0], [0.6, 0.6]), summary([0, 0], [0.8, 0.8])],
    }
    row = tabulate(cells, METRICS)["rows"]["OmniFM"]["dice"]["after"]
    assert row["mean"] == pytest.approx(0.7)
    assert row["std_over_seeds"] == pytest.approx(0.1)
    assert row["per_site"] == pytest.approx([0.7, 0.7])
    assert row["sites_below_local"] == 0
    assert row["against_rival"]["difference"] == pytest.approx(0.15)
    half = stats.t.ppf(0.975, 1) * np.std([0.1, 0.2], ddof=1) / np.sqrt(2)
    assert row["against_rival"]["high"] == pytest.approx(0.15 + half)
    matched = tabulate(cells, METRICS)["rows"]["FedPer (matched)"]["dice"]["after"]
    assert matched["sites_below_local"] == 1


@pytest.mark.parametrize(("names", "lost"), [(["Local", "Local (matched)"], 0), (["Local (matched)"], 2)])
def test_where_local_is_missing_sites_are_held_against_local_of_equal_capacity(names, lost):
    """Local is worse than OmniFM everywhere, Local (matched) better everywhere."""
    scores = {"Local": [0.1, 0.1], "Local (matched)": [0.9, 0.9], "OmniFM": [0.5, 0.5]}
    cells = {name: [summary([0, 0], scores[name])] for name in (*names, "OmniFM")}
    rows = tabulate(cells, METRICS)["rows"]
    assert rows["OmniFM"]["dice"]["after"]["sites_below_local"] == lost


def test_a_rival_that_the_task_scores_has_its_own_row():
    """`dice_blank` is 0.1 everywhere: 0.4 below the matched rival's Dice."""
    cells = {name: [summary([0, 0], [0.5, 0.5]) for _ in range(2)] for name in ("Local", "FedPer (matched)", "OmniFM")}
    for run in (run for runs in cells.values() for run in runs):
        for site in run["sites"].values():
            site["metrics"]["dice_blank"] = {"before": 0.1, "after": 0.1}
    metrics = METRICS | {"dice_blank": True}
    table = tabulate(cells, metrics)
    row = table["trivial"]["blank"]["dice"]["after"]
    assert (row["mean"], row["sites_below_local"]) == (pytest.approx(0.1), 2)
    assert row["against_rival"]["difference"] == pytest.approx(-0.4)


def test_worst_follows_the_metrics_direction():
    cells = {"OmniFM": [summary([0, 0], [0.2, 0.6], distance=3.0)]}
    row = tabulate(cells, METRICS)["rows"]["OmniFM"]
    assert row["dice"]["after"]["worst_site"] == 0.2
    assert row["hd95_mm"]["after"]["worst_site"] == 3.0


def test_an_undefined_score_is_left_out_not_counted_as_zero():
    cells = {"OmniFM": [summary([0, 0], [0.6, 0.6], distance=None), summary([0, 0], [0.6, 0.6], distance=4.0)]}
    assert tabulate(cells, METRICS)["rows"]["OmniFM"]["hd95_mm"]["after"]["mean"] == 4.0


def test_a_rival_that_hangs_on_the_model_is_named_after_it():
    """Without OmniFM, the first contender's; scored alike for all, it belongs to nobody."""
    runs = {name: [summary([0, 0], [0.5, 0.5])] for name in ("Local", "FedAvg")}
    for name, score in (("Local", 0.1), ("FedAvg", 0.3)):
        for site in runs[name][0]["sites"].values():
            site["metrics"]["dice_blank"] = {"before": score, "after": score}
            site["metrics"]["dice_prior"] = {"before": 0.2, "after": 0.2}
    found = tabulate(runs, METRICS | {"dice_blank": True, "dice_prior": True})["trivial"]
    assert {name: row["dice"]["after"]["mean"] for name, row in found.items()} == {
        "blank of Local": pytest.approx(0.1),
        "prior": pytest.approx(0.2),
    }


def fake_run(score, source="site"):
    """A simulation whose every score is `score(experiment, data)`; None fails."""

    def run(experiment, data, sites, device="cpu", watcher=None):
        value = score(experiment, data)
        if value is None:
            return {"status": "FAILED", "reason": "train_loss must be finite"}
        metrics = plugin("tasks", experiment.task["name"]).metrics
        entry = {"metrics": dict.fromkeys(metrics, value), "bytes_up": 1, "bytes_down": 1}
        return {
            "status": "COMPLETE",
            "reason": None,
            "data_source": source,
            "init_hash": "i",
            "backbone_hash": "b",
            "partition": {"hash": "p", "shared": 1, "personal": 1, "frozen": 0},
            "sites": {
                site: {"num_train": 8, "metrics": {m: {"before": value, "after": value} for m in metrics}}
                for site in sites
            },
            "history": [{"sites": dict.fromkeys(sites, entry), "bank": {}}] * experiment.train.num_rounds,
        }

    return run


@pytest.fixture
def folder(tmp_path):
    """A federation of two sites, of which `fake_run` reads nothing."""
    for site in ("site-1", "site-2"):
        (tmp_path / "data" / site).mkdir(parents=True)
        (tmp_path / "data" / site / "dataset.json").write_text("{}")
    return tmp_path / "data"


@pytest.mark.slow
class TestRun:
    """What `run` writes, whatever the simulation returns."""

    @staticmethod
    def run(folder, monkeypatch, score, source="site", **options):
        monkeypatch.setattr(cells.simulation, "run", fake_run(score, source))
        options = {"num_seeds": 2, "ablations": False} | options
        out = options.pop("out", folder.parent / "out")
        findings = tables.run(folder, out, job=ROOT / "jobs/seg_fets", **options)
        return findings, json.loads((out / "table.json").read_text())["columns"]["data"]

    def test_a_run_that_fails_leaves_the_others_their_table(self, folder, monkeypatch):
        """FedAvg diverges at seed 1: its row would be of fewer seeds than the others'."""

        def score(one, _):
            return None if one.method["name"] == "fedavg" and one.seed else 0.5

        findings, column = self.run(folder, monkeypatch, score)
        assert "FedAvg" not in column["rows"] and "Local" in column["rows"]
        assert column["failed"]["FedAvg"].endswith("got FAILED, train_loss must be finite")
        assert any("FedAvg: has no scores" in line for line in findings)
        assert "FedAvg failed:" in (folder.parent / "out/table.md").read_text()

    @pytest.mark.parametrize("source", ["site", "demo"])
    def test_demo_data_are_named(self, folder, monkeypatch, source):
        _, column = self.run(folder, monkeypatch, lambda *_: 0.5, source, rows=[*tables.MAIN][:2])
        assert column["source"] == source
        for name in ("table.md", "table.html"):
            text = (folder.parent / "out" / name).read_text()
            assert ("Synthetic demo data: what is better here" in text) is (source == "demo")

    def test_when_all_fail_it_says_why(self, folder, monkeypatch):
        with pytest.raises(ValueError, match="train_loss must be finite"):
            self.run(folder, monkeypatch, lambda *_: None)

    def test_what_was_cut_off_holds_whole_seeds_alone(self, folder, monkeypatch):
        """Interrupted in the second seed: the table is of the first."""

        def score(one, _):
            if one.seed and one.method["name"] != "local":
                raise KeyboardInterrupt
            return 0.5

        with pytest.raises(KeyboardInterrupt):
            self.run(folder, monkeypatch, score)
        document = json.loads((folder.parent / "out/table.json").read_text())
        assert document["columns"]["data"]["seeds"] == 1
        assert "1 seed" in document["caption"][1]
        assert lint.lint(document) == []

    def test_a_row_that_is_added_waits_for_all_its_seeds(self, folder, monkeypatch):
        """Cut off in its second seed, beside one of two: means of other seeds are not comparable."""

        def score(one, _):
            if one.seed and one.method["name"] == "omnifm":
                raise KeyboardInterrupt
            return 0.5

        self.run(folder, monkeypatch, score, rows=["Local"])
        with pytest.raises(KeyboardInterrupt):
            self.run(folder, monkeypatch, score, rows=["OmniFM"])
        column = json.loads((folder.parent / "out/table.json").read_text())["columns"]["data"]
        assert (list(column["rows"]), column["seeds"]) == (["Local"], 2)

    def test_one_row_is_added_to_those_that_were_finished(self, folder, monkeypatch):
        """Rows of fewer seeds than are asked for now stay away."""
        score = lambda *_: 0.5  # noqa: E731
        self.run(folder, monkeypatch, score, rows=["Local"])
        self.run(folder, monkeypatch, score, rows=["FedAvg"], num_seeds=1)
        _, column = self.run(folder, monkeypatch, score, rows=["OmniFM"])
        assert list(column["rows"]) == ["Local", "OmniFM"]

    def test_without_the_rival_nothing_is_compared_with_it(self, folder, monkeypatch):
        findings, column = self.run(folder, monkeypatch, lambda *_: 0.5, rows=["Local", "OmniFM"])
        assert (findings, column["rival"]) == ([], None)
        out = folder.parent / "out"
        assert "FedPer" not in (out / "table.md").read_text() + (out / "table.html").read_text()

    def test_other_data_under_the_same_name_run_anew(self, folder, monkeypatch):
        """One score for each dataset.json."""
        rows = {"rows": ["Local"]}
        assert self.run(folder, monkeypatch, lambda *_: 0.9, **rows)[1]["rows"]["Local"]["dice"]["after"]["mean"] == 0.9
        _, column = self.run(folder, monkeypatch, lambda *_: 0.1, **rows)
        assert column["rows"]["Local"]["dice"]["after"]["mean"] == 0.9
        (folder / "site-2/dataset.json").write_text('{"training": []}')
        _, column = self.run(folder, monkeypatch, lambda *_: 0.1, **rows)
        assert column["rows"]["Local"]["dice"]["after"]["mean"] == 0.1

    @pytest.mark.parametrize("content", ['{"sites": {', "[]", "null"])
    def test_a_damaged_cell_is_made_anew_and_said(self, folder, monkeypatch, caplog, content):
        """It is not taken for a run that failed, which would drop it from the table for good."""
        rows = {"rows": ["Local"], "num_seeds": 1}
        self.run(folder, monkeypatch, lambda *_: 0.9, **rows)
        (file,) = (folder.parent / "out/cells").iterdir()
        file.write_text(content)
        _, column = self.run(folder, monkeypatch, lambda *_: 0.9, **rows)
        assert column["rows"]["Local"]["dice"]["after"]["mean"] == 0.9
        assert f"cells/{file.name} is damaged and is made anew" in caplog.text
        assert json.loads(file.read_text())["status"] == "COMPLETE"

    def test_data_that_change_during_a_run_end_it_and_nothing_is_kept(self, folder, monkeypatch):
        """Half of what was trained on may have been the other data."""

        def score(*_):
            (folder / "site-2/dataset.json").write_text('{"training": []}')
            return 0.5

        with pytest.raises(ValueError, match=r"data must stay as they are .* a dataset\.json changed during a run"):
            self.run(folder, monkeypatch, score, rows=["Local"])
        assert not (folder.parent / "out/cells").exists()

    def test_the_folder_for_results_is_asked_for_first(self, folder, monkeypatch):
        (folder.parent / "out").write_text("")
        with pytest.raises(ValueError, match="out must be a folder that can be written to; it cannot be: File exists"):
            self.run(folder, monkeypatch, lambda *_: pytest.fail("ran"), rows=["Local"])

    def test_a_federation_has_its_own_name_wherever_one_stands(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        findings, _ = self.run(Path(), monkeypatch, lambda *_: 0.5, rows=["Local"], out=folder.parent / "out")
        assert findings == []


@pytest.mark.slow
def test_runs_and_resumes(tmp_path: Path, federation, monkeypatch):
    """Every side starts from the same seed, finished cells are not run again, and the table names every method."""
    monkeypatch.setattr("omnifm.federation.journal.write_report", lambda *_args: None)
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
    monkeypatch.setattr(cells.simulation, "run", lambda *_a, **_k: pytest.fail("ran again"))
    tables.run(federation, tmp_path / "out", job=job, num_seeds=2)
    assert (tmp_path / "out/table.md").read_text() == text
