"""The in-process driver: sites that are closed and opened again change nothing."""

import pytest

from omnifm import simulation
from tests.conftest import experiment, write_site


@pytest.mark.slow
def test_sites_beyond_the_limit_are_read_again_to_the_same_result(tmp_path, monkeypatch):
    for number in range(3):
        write_site(tmp_path / f"s{number}", seed=number)
    sites = ["s0", "s1", "s2"]
    whole = simulation.run(experiment(), tmp_path, sites)
    opened = []
    site = simulation.Site
    monkeypatch.setattr(simulation, "MAX_OPEN", 1)
    monkeypatch.setattr(simulation, "Site", lambda *args: opened.append(args[1]) or site(*args))
    assert simulation.run(experiment(), tmp_path, sites)["final_hash"] == whole["final_hash"]
    assert len(opened) > 2 * len(sites)


def test_training_alone_is_run_with_the_same_splits_and_capacity_and_changes_nothing(tmp_path, monkeypatch):
    """The summary holds its scores, and the run itself is the same without them."""
    asked, federation = [], simulation.Federation
    monkeypatch.setattr(
        simulation, "Federation", lambda job, *rest, **named: asked.append(job) or federation(job, *rest, **named)
    )
    for number in range(2):
        write_site(tmp_path / f"s{number}", seed=number)
    job = experiment(reference=["local"], train={"num_rounds": 1})
    summary = simulation.run(job, tmp_path, ["s0", "s1"])
    assert [one.method for one in asked] == [job.method, {"name": "local", "capacity": "matched"}]
    assert [(one.seed, one.train, one.task) for one in asked] == [(job.seed, job.train, job.task)] * 2
    assert sorted(summary["reference"]["local"]) == ["s0", "s1"]
    assert set(summary["reference"]["local"]["s0"]) == {"dice", "iou", "hd95_mm"}
    assert job.hash() == experiment(train={"num_rounds": 1}).hash()
