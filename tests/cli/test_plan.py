"""`omnifm plan`: what a run would take from the sites' data."""

import json

import pytest

from tests.commands import omnifm
from tests.conftest import write_site


@pytest.fixture
def data(tmp_path):
    for number in (1, 2):
        write_site(tmp_path / f"data/site-{number}", seed=number)
    return tmp_path / "data"


def test_it_says_what_is_planned_and_why(data):
    done = omnifm("plan", "seg_fets", "--data", data, "--set", "task.patch_size=auto", "--set", "model.channels=[4,8]")
    assert done.returncode == 0, done.stderr
    assert "plan from the data of site-1, site-2" in done.stdout
    assert "16 x 16 x 16" in done.stdout


def test_as_json_it_has_the_form_of_plan_json(data):
    done = omnifm("plan", "seg_fets", "--data", data, "--json", "--set", "model.channels=[4,8]")
    rows = {row["what"]: row for row in json.loads(done.stdout)}
    assert rows["Voxel, mm"]["why"] == "median of the sites; 10th percentile of a coarse axis"
    assert float(rows["Memory, GiB"]["value"]) >= 0


def test_a_site_that_cannot_be_read_is_named(data):
    (data / "site-2/dataset.json").write_text("{}")
    done = omnifm("plan", "seg_fets", "--data", data)
    assert done.returncode == 2
    assert done.stderr.startswith("omnifm: site-2: ")
