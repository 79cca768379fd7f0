"""The folder of a run: never overwritten, opened again only by the same run."""

import json

import pytest

from omnifm.config import Experiment
from omnifm.run_folder import new_folder, open_run

SITES = ["site-1", "site-2"]


@pytest.fixture
def experiment():
    return Experiment.from_job("seg_fets")


def test_a_new_name_for_every_run(tmp_path):
    assert new_folder("job", tmp_path) == tmp_path / "job"
    (tmp_path / "job").mkdir()
    (tmp_path / "job-2").mkdir()
    assert new_folder("job", tmp_path) == tmp_path / "job-3"


def test_the_same_run_goes_on(tmp_path, experiment):
    folder = open_run(tmp_path / "run", experiment, SITES, "demo")
    (folder.results).mkdir()
    (folder.results / "summary.json").write_text(json.dumps({"status": "FAILED"}))
    assert open_run(tmp_path / "run", experiment, SITES[::-1], "demo") == folder


def test_another_run_is_refused_and_says_what_differs(tmp_path, experiment):
    open_run(tmp_path / "run", experiment, SITES, "demo")
    with pytest.raises(ValueError, match=r"other settings: train\.lr\. Name another folder"):
        open_run(tmp_path / "run", experiment.changed({"train": {"lr": 0.5}}), SITES, "demo")
    with pytest.raises(ValueError, match="other settings: data, sites"):
        open_run(tmp_path / "run", experiment, ["a", "b"], "mine")


@pytest.mark.parametrize("status", ["COMPLETE", "SUBSET"])
def test_a_finished_run_is_never_overwritten(tmp_path, experiment, status):
    folder = open_run(tmp_path / "run", experiment, SITES, "demo")
    folder.results.mkdir()
    (folder.results / "summary.json").write_text(json.dumps({"status": status}))
    with pytest.raises(ValueError, match="finished run, which is never overwritten"):
        open_run(tmp_path / "run", experiment, SITES, "demo")


def test_a_folder_with_other_files_is_refused(tmp_path, experiment):
    (tmp_path / "thesis.txt").write_text("two years of work")
    with pytest.raises(ValueError, match="it holds other files"):
        open_run(tmp_path, experiment, SITES, "demo")
    with pytest.raises(ValueError, match="it holds other files"):
        open_run(tmp_path / "thesis.txt", experiment, SITES, "demo")
