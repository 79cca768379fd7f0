"""The papers' tables: the registry is whole, tuning sees validation alone, and one small table runs end to end."""

import json
import math
import subprocess
from dataclasses import replace

import pytest

from omnifm import plugins
from omnifm.bench import cells
from omnifm.bench.tables import course, lint, paper_tables, papers
from omnifm.bench.tables.comparison import Row, Scale
from omnifm.bench.tables.papers import SCALES, TABLES
from omnifm.bench.tables.tuning import grid, tune
from omnifm.config import Experiment
from tests.bench.tables.test_one_federation import fake_run
from tests.conftest import ROOT, experiment
from tests.processes import BIN

CELLS = [(name, column) for name, table in TABLES.items() for column in table.columns]


def job(column, scale="paper"):
    bench = paper_tables._Bench(ROOT, scale, SCALES[scale], None, ROOT / "jobs")
    return bench._experiment(column, demo=False)


class TestRegistry:
    def test_every_table_of_the_issue_is_there(self):
        omnifm = [f"omnifm_{number}" for number in range(1, 9)]
        fedsca = [f"fedsca_{number}" for number in range(1, 6)]
        assert set(TABLES) == {*omnifm, "omnifm_figure_5", *fedsca, "federations", "routed_parts"}

    def test_every_method_is_in_some_table(self):
        used = {row.method["name"] for table in TABLES.values() for row in table.rows}
        assert used == set(plugins.names("methods"))

    @pytest.mark.parametrize("name", TABLES)
    def test_names_agree(self, name):
        table = TABLES[name]
        columns, rows = [c.name for c in table.columns], [r.name for r in table.rows]
        assert len(set(columns)) == len(columns) and len(set(rows)) == len(rows)
        assert table.rival in rows
        assert table.smoke and set(table.smoke) <= set(columns)
        assert set(table.smoke_rows) <= set(rows)
        assert not table.smoke_rows or table.rival in table.smoke_rows
        assert all(set(row.only) <= set(columns) for row in table.rows)

    @pytest.mark.slow
    @pytest.mark.parametrize("scale", SCALES)
    @pytest.mark.parametrize(("name", "column"), CELLS, ids=lambda value: getattr(value, "name", value))
    def test_every_cell_parses(self, name, column, scale):
        """Job, preset and changes, every row's section, every value of its grid; a metric to show."""
        base = job(column, scale)
        assert any(metric in plugins.load_task(base).metrics for metric in TABLES[name].metrics)
        for row in TABLES[name].rows:
            one = replace(base, method=dict(row.method))
            for key, values in grid(row, SCALES["cpu"], one).items():
                section, setting = key.split(".")
                for value in values:
                    plugins.load_method(one.changed({section: {setting: value}}))

    def test_the_papers_numbers(self):
        """Rounds, epochs and participation of table 1; LoRA in table 3; scale 8 in table 2."""
        column = next(c for c in TABLES["omnifm_1"].columns if c.name == "3 extra, 20%")
        train = job(column).train
        assert (train.num_rounds, train.local_epochs, train.participation) == (100, 5, 0.2)
        assert job(TABLES["omnifm_3"].columns[0]).model["tuning"] == "connector"
        assert job(TABLES["omnifm_2"].columns[-1]).task == {"name": "super_resolution", "scale": 8, "patch_size": 384}

    def test_a_budget_holds_at_scale_cpu_alone(self):
        column = next(c for c in TABLES["federations"].columns if c.name == "seg_hippocampus")
        budgets = {scale: job(column, scale).train for scale in SCALES}
        assert (budgets["cpu"].num_rounds, budgets["cpu"].local_epochs) == (6, 2)
        assert budgets["paper"].num_rounds > 6 and budgets["smoke"].num_rounds < 6

    @pytest.mark.parametrize(("apart", "tuned_in"), [(True, "second"), (False, "first")])
    def test_where_a_column_is_tuned(self, apart, tuned_in):
        """Two columns of one network: each on its own data, or both in the first."""
        columns = tuple(replace(papers.POLYP, name=name) for name in ("first", "second"))
        table = replace(TABLES["fedsca_4"], columns=columns, tuned_apart=apart)
        bench = paper_tables._Bench(ROOT, "cpu", SCALES["cpu"], None, ROOT / "jobs")
        assert bench._tuned_in(table, columns[1]).name == tuned_in


class TestTuning:
    def test_one_constant_after_the_other(self):
        """The score is best at lr 0.03 and, there, at mu 0.1."""
        row = Row("FedProx", {"name": "fedprox"}, {"mu": (0.01, 0.1)})
        base = replace(experiment(train={"lr": 0.03}), method=dict(row.method))
        seen = []

        def score(one: Experiment) -> float:
            seen.append((one.train.lr, one.method.get("mu")))
            return -abs(one.train.lr - 0.03) - abs(one.method.get("mu", 1.0) - 0.1)

        chosen, tried = tune(base, grid(row, SCALES["cpu"], base), score, True)
        assert chosen == {"train": {"lr": 0.03}, "method": {"mu": 0.1}}
        assert seen == [(0.01, None), (0.03, None), (0.09, None), (0.03, 0.01), (0.03, 0.1)]
        assert [point["value"] for point in tried] == [0.01, 0.03, 0.09, 0.01, 0.1]

    @pytest.mark.parametrize(
        ("best", "beyond", "chosen"),
        [
            (0.03, [], 0.03),
            (0.1, [0.27], 0.09),
            (0.3, [0.27, 0.81], 0.27),
            (9.0, [0.27, 0.81], 0.81),
            (0.001, [0.0033, 0.0011], 0.0011),
        ],
    )
    def test_an_edge_is_followed(self, best, beyond, chosen):
        """From 0.01, 0.03 and 0.09 outwards, until the best is inside or two are tried."""
        rates = {"train.lr": [0.01, 0.03, 0.09]}
        found, tried = tune(experiment(), rates, lambda e: -abs(math.log(e.train.lr / best)), True)
        assert [point["value"] for point in tried[3:]] == beyond
        assert found == {"train": {"lr": chosen}}

    def test_a_failed_step_beyond_the_edge_ends_the_search(self):
        """Lower is better, and 0.09 diverges."""
        rates = {"train.lr": [0.01, 0.03]}
        found, tried = tune(experiment(), rates, lambda e: None if e.train.lr > 0.05 else -e.train.lr, False)
        assert [point["value"] for point in tried] == [0.01, 0.03, 0.09]
        assert found == {"train": {"lr": 0.03}}

    def test_other_constants_keep_their_grid(self):
        values = {"method.mu": [0.1, 1.0]}
        row = replace(experiment(), method={"name": "fedprox"})
        assert [point["value"] for point in tune(row, values, lambda e: e.method["mu"], True)[1]] == [0.1, 1.0]

    def test_what_failed_is_never_chosen(self):
        chosen, _ = tune(experiment(), {"train.lr": [0.1, 0.01]}, lambda e: None if e.train.lr > 0.05 else 0.0, True)
        assert chosen == {"train": {"lr": 0.01}}

    def test_scores_are_of_validation(self):
        """Sites' best rounds are 0.4 and 0.6; test scores are not looked at."""
        history = [
            {"sites": {"a": {"metrics": {"dice": 0.4}}, "b": {"metrics": {"dice": 0.6}}}},
            {"sites": {"a": {"metrics": {"dice": 0.2}}}},
        ]
        assert course.validation({"history": history}, "dice", True) == pytest.approx(0.5)


def test_rounds_to_90_percent_of_the_best_of_all():
    assert course.rounds_to_best({"a": [0.5, 0.95, 1.0], "b": [0.3, None, 0.8]}, True) == {"a": 2, "b": None}
    assert course.rounds_to_best({"a": [3.0, 1.0], "b": [1.1, 2.0]}, False) == {"a": 2, "b": 1}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Two rows of super-resolution on demo data: the whole way from registry to page."""
    out = tmp_path_factory.mktemp("tables")
    table = replace(TABLES["omnifm_2"], rows=(papers.LOCAL, papers.MATCHED), smoke_rows=())
    scale = SCALES["smoke"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_tables, "TABLES", {"small": table})
        patch.setattr(paper_tables, "SCALES", {"smoke": Scale(**(vars(scale) | {"num_seeds": 2}))})
        findings = paper_tables.run(out, "smoke", names=("small",), jobs=ROOT / "jobs")
        before = (out / "small.json").read_bytes()
        patch.setattr("omnifm.simulation.run", lambda *_a, **_k: pytest.fail("ran again"))
        paper_tables.run(out, "smoke", jobs=ROOT / "jobs")
    return out, findings, before


@pytest.mark.slow
class TestSmallTable:
    def test_its_arithmetic_is_right(self, smoke):
        out, findings, _ = smoke
        assert findings == []
        assert lint.lint_folder(out) == []

    def test_it_resumes_to_the_same_table(self, smoke):
        out, _, before = smoke
        assert (out / "small.json").read_bytes() == before

    def test_it_holds_what_a_comparison_needs(self, smoke):
        column = json.loads((smoke[0] / "small.json").read_text())["columns"]["x2, scenario 1"]
        row = column["rows"]["Local"]
        assert row["psnr"]["after"]["against_rival"].keys() == {"difference", "low", "high"}
        assert row["facts"]["steps"] == column["rows"]["FedPer (matched)"]["facts"]["steps"] == [2, 2]
        assert len(set(row["facts"]["backbone_hash"])) == 2  # one per seed
        assert row["facts"]["backbone_hash"] == column["rows"]["FedPer (matched)"]["facts"]["backbone_hash"]
        assert row["rounds_to_90"]["psnr"] == 1
        assert column["source"] == "demo"

    def test_pages_name_every_row_and_say_that_data_are_synthetic(self, smoke):
        text = (smoke[0] / "small.md").read_text()
        page = (smoke[0] / "small.html").read_text()
        for name in ("Local", "FedPer (matched)", "bicubic", "sr_breakhis_1", "2 seeds"):
            assert name in text and name in page
        assert "SYNTHETIC DEMO DATA" in page
        assert page.count("<svg") == 2  # one round makes no curve


@pytest.mark.slow
class TestColumns:
    """Two real federations of which `fake_run` reads nothing, at scale cpu."""

    @staticmethod
    def run(root, monkeypatch, *columns, score=lambda *_: 0.5, **options):
        for site in (f"{name}/{site}" for name in ("cls_blood", "cls_derma") for site in ("site-1", "site-2")):
            (root / "data" / site).mkdir(parents=True, exist_ok=True)
            (root / "data" / site / "dataset.json").write_text("{}")
        monkeypatch.setattr(cells.simulation, "run", fake_run(score))
        options = {"names": ("federations",), "data": root / "data", "jobs": ROOT / "jobs"} | options
        findings = paper_tables.run(root, "cpu", columns=columns, **options)
        return findings, json.loads((root / "federations.json").read_text())

    def test_a_column_is_added_to_those_that_were_there(self, tmp_path, monkeypatch):
        """In the table's order, with a caption of both."""
        self.run(tmp_path, monkeypatch, "cls_derma")
        findings, document = self.run(tmp_path, monkeypatch, "cls_blood")
        assert list(document["columns"]) == ["cls_blood", "cls_derma"]
        left = next(line for line in document["caption"] if line.startswith("Left out here"))
        assert "cls_derma" not in left and "cls_polyp" not in left and "seg_polyp" in left
        assert findings == []

    def test_what_another_process_wrote_meanwhile_stays(self, tmp_path, monkeypatch):
        """Two columns at a time on two cores: whoever writes last has read what the other wrote."""
        self.run(tmp_path, monkeypatch, "cls_derma")
        other = json.loads((tmp_path / "federations.json").read_text())

        def score(*_):
            (tmp_path / "federations.json").write_text(json.dumps(other))
            return 0.5

        (tmp_path / "federations.json").unlink()
        assert list(self.run(tmp_path, monkeypatch, "cls_blood", score=score)[1]["columns"]) == [
            "cls_blood",
            "cls_derma",
        ]

    @pytest.mark.parametrize("content", ["[]", "{", '{"scale": "cpu", "columns": [1]}'])
    def test_other_content_in_a_tables_place_is_refused_before_anything_runs(self, tmp_path, monkeypatch, content):
        (tmp_path / "federations.json").write_text(content)
        with pytest.raises(ValueError, match=r"federations\.json in out must be a table of `bench tables`; it holds"):
            self.run(tmp_path, monkeypatch, "cls_blood", score=lambda *_: pytest.fail("ran"))
        assert (tmp_path / "federations.json").read_text() == content

    def test_a_federation_of_one_site_is_not_replaced_by_demo_data(self, tmp_path, monkeypatch):
        site = tmp_path / "data/seg_fundus/site-1"
        site.mkdir(parents=True)
        (site / "dataset.json").write_text("{}")
        with pytest.raises(ValueError, match=r"data must hold at least 2 sites .* in seg_fundus; got 1"):
            self.run(tmp_path, monkeypatch, "cls_blood", "seg_fundus")

    def test_columns_of_another_scale_are_not_kept(self, tmp_path, monkeypatch):
        (tmp_path / "federations.json").write_text('{"scale": "paper", "columns": {"cls_derma": {}}}')
        assert list(self.run(tmp_path, monkeypatch, "cls_blood")[1]["columns"]) == ["cls_blood"]

    def test_a_best_at_the_edge_is_marked(self, tmp_path, monkeypatch):
        """Local is the better the higher the rate, FedAvg best at the job's; Local's pages say so."""

        def score(one, _):
            return one.train.lr if one.method["name"] == "local" else -abs(one.train.lr - 0.001)

        findings, _ = self.run(tmp_path, monkeypatch, "cls_blood", score=score)
        text = (tmp_path / "federations.md").read_text()
        costs = {line.split(" | ")[0]: line for line in text.splitlines() if "lr 0." in line}
        assert "lr 0.027 (edge) |" in costs["| Local (matched)"]
        assert "lr 0.001 |" in costs["| FedAvg (matched)"]
        assert "chosen on validation balanced_accuracy" in text
        assert "lr 0.027 (edge)" in (tmp_path / "federations.html").read_text()
        assert findings == []

    def test_a_table_without_any_column_asked_for_is_refused(self, tmp_path, monkeypatch):
        with pytest.raises(ValueError, match=r"table 'fedsca_3' must have a column that was asked for; it has none"):
            self.run(tmp_path, monkeypatch, "cls_blood", names=("federations", "fedsca_3"))

    @pytest.mark.slow
    def test_where_nothing_is_tuned_nothing_is_chosen(self, smoke):
        column = json.loads((smoke[0] / "small.json").read_text())["columns"]["x2, scenario 1"]
        assert set(map(json.dumps, column["chosen"].values())) == {"{}"}
        assert "lr " not in (smoke[0] / "small.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "huge"}, r"scale must be one of smoke, cpu, paper; got 'huge'"),
        ({"scale": "smoke", "names": ("omnifm_9",)}, r"table must be one of federations, .*; got 'omnifm_9'"),
        (
            {"scale": "smoke", "names": ("fedsca_2",), "columns": ("Fed",)},
            r"column must be one of Fed-P.*; got 'Fed'",
        ),
        (
            {"scale": "cpu", "names": ("fedsca_2",), "columns": ("Fed-Fundus",)},
            r"column 'Fed-Fundus' is tuned in 'Fed-Polyp', which must be asked for too",
        ),
        ({"scale": "smoke", "names": ("federations",), "data": ROOT / "jobs"}, r"data must be a folder that holds one"),
        ({"scale": "smoke", "data": ROOT / "nowhere"}, r"data must be a folder of federation folders"),
        ({"scale": "smoke", "jobs": ROOT / "nowhere"}, r"job must be a job folder .*; 'cls_medmnist' is neither"),
    ],
)
def test_refusals(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        paper_tables.run(tmp_path, **({"jobs": ROOT / "jobs"} | arguments))


@pytest.mark.slow
def test_paper_tables_of_every_task_can_be_made(tmp_path):
    """The command itself, with a table of each task and of each paper."""
    chosen = ("federations", "omnifm_1", "omnifm_2", "omnifm_5", "omnifm_7", "fedsca_1")
    tables = [word for name in chosen for word in ("--table", name)]
    command = [BIN / "omnifm", "bench", "tables", "--scale", "smoke", "--out", tmp_path, *tables]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.endswith("lint: 0 findings\n")
    assert {page.stem for page in tmp_path.glob("*.html")} == set(chosen)
