"""`omnifm compare`: several methods from the same start, in one table."""

import json

import pytest

from omnifm.bench.tables import chosen
from omnifm.bench.tables.page import page
from omnifm.cli.compare import section_of
from omnifm.config import Experiment
from tests.cli.test_simulate import TINY
from tests.commands import omnifm
from tests.conftest import write_site


@pytest.mark.slow
def test_it_prints_a_table_writes_a_page_and_names_methods_that_are_the_same(tmp_path, monkeypatch):
    for number in (1, 2):
        write_site(tmp_path / f"data/site-{number}", seed=number)
    out = tmp_path / "out"
    command = ("compare", "seg_fets", "--data", tmp_path / "data", "--out", out, "--seeds", 1, *TINY)
    methods = [part for name in ("fedavg", "fedbn", "local") for part in ("--method", name)]
    done = omnifm(*command, *methods)
    assert done.returncode == 0, done.stdout + done.stderr
    starts = [line.split("  ")[0] for line in done.stdout.splitlines()]
    assert {"fedavg", "fedbn", "Local"} <= set(starts)
    assert "fedbn is the same as fedavg in this model" in done.stdout
    assert f"Page:    {out}/comparison.html" in done.stdout
    assert "fedbn is the same as fedavg in this model" in (out / "comparison.html").read_text()
    told = json.loads((out / "comparison.json").read_text())
    (column,) = told["columns"].values()
    assert list(column["rows"]) == ["fedavg", "fedbn", "Local"]
    assert len({str(row["facts"]["backbone_hash"]) for row in column["rows"].values()}) == 1
    assert "1 seed · real data" in (out / "comparison.html").read_text()
    chosen.say_demo(told)
    as_demo = page(told["title"], told["caption"], told["columns"]).decode()
    assert "SYNTHETIC DEMO DATA" in as_demo
    assert "real data<" not in as_demo
    monkeypatch.setattr("omnifm.simulation.run", lambda *_a, **_k: pytest.fail("a finished run was repeated"))
    assert omnifm(*command, *methods).returncode == 0


def test_a_method_with_its_settings():
    assert section_of("fedprox:mu=0.1,capacity=matched") == {"name": "fedprox", "mu": 0.1, "capacity": "matched"}
    rows = chosen.rows_of(Experiment.from_job("seg_fets"), [{"name": "fedavg"}, {"name": "fedprox", "mu": 0.1}])
    assert rows == {"fedavg": {"name": "fedavg"}, "fedprox (mu=0.1)": {"name": "fedprox", "mu": 0.1}}


def test_the_jobs_own_settings_hold_for_the_jobs_own_method():
    job = Experiment.from_job("seg_fets").changed({"method": {"name": "fedprox", "mu": 0.3}})
    rows = chosen.rows_of(job, [{"name": "fedprox"}, {"name": "fedavg"}])
    assert rows["fedprox"] == {"name": "fedprox", "mu": 0.3}


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["fedavg"], "at least two methods; got fedavg. Add another one, for example --method local;"),
        (["fedavg", "fedavg"], "given twice"),
        (["fedavg", "fedpox"], "did you mean 'fedprox'"),
        (["fedavg", "fedprox:muu=1"], "did you mean 'mu'"),
        (["fedavg", "fedprox:mu"], "must be KEY=VALUE"),
    ],
)
def test_wrong_methods_are_refused(methods, message):
    done = omnifm("compare", "seg_fets", *(part for name in methods for part in ("--method", name)))
    assert done.returncode == 2
    assert message in done.stderr
