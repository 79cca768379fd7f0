"""Job folders through FLARE's Recipe API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nvflare.recipe import ProdEnv, SimEnv

from omnifm import simulation
from omnifm.config import Experiment
from omnifm_flare.recipe import OmniFMRecipe
from tests.conftest import ROOT
from tests.flare.conftest import write_job

JOB = ROOT / "jobs/seg_fets"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestExport:
    def test_is_the_folder_itself(self, tmp_path):
        OmniFMRecipe(JOB).export(str(tmp_path), env=SimEnv(num_clients=2))
        assert files(tmp_path / "seg_fets") == files(JOB)

    def test_is_sealed_for_hospitals(self, tmp_path):
        (tmp_path / "kit").mkdir()
        OmniFMRecipe(JOB).export(str(tmp_path), env=ProdEnv(str(tmp_path / "kit")))
        expected = {name: data for name, data in files(JOB).items() if not name.startswith("app/custom")}
        assert files(tmp_path / "seg_fets") == expected

    def test_refuses_what_a_job_folder_cannot_take(self, tmp_path):
        recipe = OmniFMRecipe(JOB)
        recipe.add_server_config({"timeout": 1})
        recipe.add_client_config({"timeout": 1})
        with pytest.raises(ValueError, match=r"must be changed in its experiment.json only; components were added"):
            recipe.export(str(tmp_path))


def test_refuses_another_folder(tmp_path):
    with pytest.raises(ValueError, match=r"folder must be a job folder, which holds meta.json and app/"):
        OmniFMRecipe(tmp_path)


@pytest.mark.slow
def test_simulated_it_gives_the_result_of_one_process(tmp_path, federation, monkeypatch):
    """The same law as for `nvflare simulator` in tests/flare/test_simulator.py."""
    job = write_job(tmp_path / "job")
    monkeypatch.setenv("OMNIFM_DATA", str(federation))
    run = OmniFMRecipe(job).run(SimEnv(num_clients=2, workspace_root=str(tmp_path / "ws")))
    results = Path(run.get_result()) / "server/simulate_job/results"
    summary = json.loads((results / "summary.json").read_text())
    experiment = Experiment.from_job(job)
    alone = simulation.run(experiment, federation, ["site-1", "site-2"])
    assert (summary["status"], summary["final_hash"]) == ("COMPLETE", alone["final_hash"])
