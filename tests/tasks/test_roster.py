"""Laws that every task obeys; a new file in omnifm/tasks/ is tested here without being named."""

import json
from pathlib import Path

import pytest
import torch

from omnifm import simulation
from omnifm.config import Experiment
from omnifm.data.datalist import read_datalist
from omnifm.data.demo import demo_site
from omnifm.methods.omnifm import OmniFM, Settings
from omnifm.plugins import load_task, names
from tests.conftest import ROOT

JOBS = [json.loads(file.read_text()) for file in sorted(ROOT.glob("jobs/*/app/config/experiment.json"))]


@pytest.fixture(scope="module", params=names("tasks"))
def setting(request):
    """A task with one prepared training batch of the demo data, and OmniFM's model for it."""
    job = next(job for job in JOBS if job["task"]["name"] == request.param)
    task = load_task(Experiment.from_json(json.dumps(job)))
    datalist = read_datalist(demo_site(request.param, "site-1"), required=task.required)
    cases = [task.read(item, datalist.labels) for item in datalist.training[:3]]
    task.configure(task.agree({"s": task.facts([task.case_facts(c) for c in cases], datalist.labels)}))
    torch.manual_seed(0)
    model = OmniFM(Settings(dim=8)).build(task)
    return task, model, [task.prepare(case) for case in cases]


def batch(task, prepared, num):
    from monai.data import list_data_collate

    augment = task.augment()
    samples = [augment(dict(case)) for case in prepared[:num]]
    return list_data_collate([s for sample in samples for s in (sample if isinstance(sample, list) else [sample])])


EXTRA = {"prototypes": torch.nn.functional.normalize(torch.randn(4, 8), dim=1), "mean": torch.zeros(8)}


class TestRoster:
    @pytest.mark.parametrize("num", [1, 2])
    def test_the_loss_falls(self, setting, num):
        task, model, prepared = setting
        data = batch(task, prepared, num)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        model.train()
        for _ in range(8):
            optimizer.zero_grad()
            loss = task.loss(model(data, EXTRA).prediction, data)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]

    def test_the_head_is_part_of_the_backbone_and_not_all_of_it(self, setting):
        _, model, _ = setting
        everything = {id(p) for p in model.backbone.parameters()}
        head = {id(p) for module in model.backbone.head() for p in module.parameters()}
        assert head
        assert head < everything

    def test_scores_have_the_declared_names(self, setting):
        task, model, prepared = setting
        model.eval()
        with torch.no_grad():
            row = task.score(lambda b: model(b, EXTRA).prediction, prepared[0])
        assert set(row) == set(task.metrics)
        summary = task.summarise([row, row])
        assert all(score.support + score.undefined == 2 for score in summary.values())

    def test_pictures_are_rgb(self, setting):
        task, model, prepared = setting
        model.eval()
        with torch.no_grad():
            pixels = task.picture(lambda b: model(b, EXTRA).prediction, prepared[0])
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3

    def test_saved_and_reloaded_it_predicts_the_same(self, setting, tmp_path):
        task, model, prepared = setting
        from omnifm.state import decode, encode

        data = batch(task, prepared, 1)
        model.eval()
        tensors, _ = decode(encode(model.state_dict(), {}))
        again = OmniFM(Settings(dim=8)).build(task).eval()
        again.load_state_dict(tensors)
        with torch.no_grad():
            assert torch.equal(again(data, EXTRA).prediction, model(data, EXTRA).prediction)

    def test_better_knows_the_metrics_direction(self, setting):
        from omnifm.update import Score

        task = setting[0]
        name, higher = next(iter(task.metrics.items()))
        low, high, none = ({name: Score(value, 1)} for value in (0.1, 0.2, None))
        assert task.better(high, low) == higher
        assert task.better(low, high) != higher
        assert not task.better(low, low)
        assert task.better(low, none)
        assert not task.better(none, low)


def test_simulation_runs_the_demo_data(tmp_path: Path):
    """Every job's experiment, cut to one round, on its own embedded data."""
    for job in JOBS:
        cut = job | {"train": job["train"] | {"num_rounds": 1, "local_epochs": 1}}
        summary = simulation.run(Experiment.from_json(json.dumps(cut)), None, ["site-1", "site-2"])
        assert (summary["status"], summary["data_source"]) == ("COMPLETE", "demo")


def test_simulation_refuses_an_absent_site(tmp_path: Path):
    with pytest.raises(ValueError, match="data_root must hold one folder per site; 'site-1' has none"):
        simulation.run(Experiment.from_json(json.dumps(JOBS[0])), tmp_path, ["site-1"])
