"""What the server says last."""

import re

import pytest

from omnifm.config import Experiment
from omnifm_flare.aggregator import OmniAggregator
from omnifm_flare.controller import FlareTransport, OmniController, not_started


def prepare(folder, *names):
    for name in names:
        (folder / name).mkdir()
        (folder / name / "dataset.json").touch()


@pytest.mark.parametrize(
    ("prepared", "started", "line"),
    [
        (["site-1", "site-2"], ["site-1", "site-2"], None),
        (["site-1", "site-2", "site-3"], ["site-1", "site-2"], "prepared for site-3, but not started: .* -n 3$"),
        (["a", "b", "c"], ["a"], "prepared for b, c, but not started: .* -c a,b,c$"),
    ],
)
def test_sites_that_were_prepared_and_not_started_are_named(tmp_path, prepared, started, line):
    prepare(tmp_path, *prepared)
    lines = not_started(tmp_path, started)
    assert len(lines) == (line is not None)
    if line:
        assert re.search(line, lines[0])


def test_without_a_folder_nothing_is_said():
    assert not_started(None, ["site-1"]) == []


def test_a_reference_is_refused_before_anything_is_trained(monkeypatch):
    """FLARE runs one method in a job: to drop the key without a word would leave a report without the promised row."""
    controller = OmniController()
    monkeypatch.setattr(controller, "get_component", lambda _: OmniAggregator())
    experiment = Experiment.from_job("seg_fets").changed({"reference": ["local"]})
    with pytest.raises(ValueError, match=r"reference must be empty; got local\. Leave the key out .*omnifm simulate"):
        FlareTransport(controller, experiment)
