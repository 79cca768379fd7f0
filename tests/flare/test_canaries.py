"""A real FLARE run prints, logs and writes none of the patient names that `tests/test_canaries.py` plants."""

from __future__ import annotations

import pytest

from tests.flare.conftest import Simulator, write_job
from tests.test_canaries import BORN, NAME, bad_site, found, good_site, leaks


@pytest.mark.timeout(600)
def test_a_run_says_and_keeps_no_name(tmp_path_factory, tmp_path, tidy):
    """Two sites train, a third refuses its data."""
    root = tmp_path_factory.mktemp("data") / f"{NAME} {BORN}"
    for number in (1, 2):
        good_site(root / f"site-{number}", number)
    bad_site(root / "site-3")
    simulator = Simulator(write_job(tmp_path / "job"), tmp_path / "ws", "-n", "3", "-t", "3", OMNIFM_DATA=root)
    tidy.append(simulator)
    summary = simulator.summary()
    assert summary["status"] == "SUBSET"
    assert "site-3" in str(summary["reason"])
    assert found(simulator.console().encode()) == []
    assert leaks(tmp_path / "ws") == []
