"""What a run shows of how far it is."""

import io

from rich.console import Console

from omnifm.cli.progress import RunProgress
from omnifm.config import Experiment
from omnifm.update import Score, Update


def trained(site, score):
    scores = {"before": {"dice": Score(None, 0, 1)}, "after": {"dice": Score(score, 1)}}
    return Update(site, "train", 1, "", num_samples=1, **scores)


def test_a_reference_run_goes_on_showing_its_rounds_and_says_whose_they_are():
    out = io.StringIO()
    experiment = Experiment.from_job("seg_fets").changed({"train": {"num_rounds": 1}})
    with RunProgress(experiment, ["a", "b"], Console(file=out)) as progress:
        for begin in (lambda: None, lambda: progress.reference_begins("local")):
            begin()
            assert progress.bar.tasks[0].completed == 0
            for site, score in (("a", 0.5), ("b", 0.7)):
                progress.asks("train", 1, site)
                progress.replied(trained(site, score))
            progress.round_ended(1)
            assert progress.bar.tasks[0].completed == 4
    lines = [line.split("  ")[:2] for line in out.getvalue().splitlines()]
    assert lines == [
        ["round 1/1", "validation dice – -> 0.600"],
        ["reference local: round 1/1", "validation dice – -> 0.600"],
    ]
