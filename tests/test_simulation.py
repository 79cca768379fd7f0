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
