"""Laws that every task obeys; a new file in omnifm/tasks/ is tested here without being named."""

import json

import numpy as np
import pytest
import torch
from monai.data import list_data_collate

from omnifm import simulation
from omnifm.config import Experiment
from omnifm.data.datalist import read_datalist
from omnifm.data.demo import demo_site
from omnifm.data.prediction import Prediction
from omnifm.methods.omnifm import OmniFM, Settings
from omnifm.plugins import load_method, load_task, names
from omnifm.state import decode, encode
from omnifm.update import Score
from tests.conftest import ROOT

JOBS = {
    job["job"]: job
    for job in (json.loads(file.read_text()) for file in sorted(ROOT.glob("jobs/*/app/config/experiment.json")))
}
DIFFERENT_JOBS = list(
    {
        json.dumps([job[key] for key in ("task", "model", "method", "train")]): name for name, job in JOBS.items()
    }.values()
)
"""One of each group of jobs that train the same on demo data: they differ in the name of their data and in presets."""
EXTRA = {"prototypes": torch.nn.functional.normalize(torch.randn(4, 8), dim=1), "mean": torch.zeros(8)}


class Setting:
    """A task that has seen some cases of its demo data, and OmniFM's model for it."""

    def __init__(self, name):
        job = next((job for job in JOBS.values() if job["task"]["name"] == name), None)
        assert job, f"the task {name!r} needs a job in jobs/"
        self.task = load_task(Experiment.from_json(json.dumps(job)))
        self.datalist = read_datalist(demo_site(name, "site-1"), required=self.task.required)
        self.task.observe(self.datalist.training)
        self.cases = [self.task.read(item, self.datalist.labels) for item in self.datalist.training[:3]]
        self.facts = self.task.facts([self.task.case_facts(case) for case in self.cases], self.datalist.labels)
        self.task.configure(self.task.agree({"s": self.facts}))
        self.prepared = [self.task.prepare(case) for case in self.cases]
        self.method = OmniFM(Settings(dim=8))
        self.model = self.build()

    def build(self):
        torch.manual_seed(0)
        return self.method.build(self.task)

    def batch(self, num):
        augment = self.task.augment()
        samples = [augment(dict(case)) for case in self.prepared[:num]]
        return list_data_collate([s for sample in samples for s in (sample if isinstance(sample, list) else [sample])])

    def predict(self, batch):
        return self.model(batch, EXTRA).prediction

    def score(self, case):
        self.model.eval()
        with torch.no_grad():
            return self.task.score(self.predict, case)


@pytest.fixture(scope="module", params=names("tasks"))
def setting(request):
    return Setting(request.param)


class TestRoster:
    @pytest.mark.slow
    @pytest.mark.parametrize("num", [1, 2])
    def test_the_loss_falls(self, setting, num):
        """Also with a batch of one, as a split of 2 n + 1 cases ends."""
        setting.model = setting.build().train()
        data = setting.batch(num)
        trained = [parameter for parameter in setting.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=3e-4)
        losses = []
        for _ in range(8):
            optimizer.zero_grad()
            loss = setting.task.loss(setting.predict(data), data)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert min(losses[1:]) < losses[0]
        assert np.isfinite(losses).all()

    def test_the_head_stays_home_and_the_rest_of_the_backbone_travels(self, setting):
        parts, backbone = setting.method.partition(setting.model), setting.model.backbone
        head = {id(p) for module in backbone.head() for p in module.parameters()}
        rest = {id(p) for p in backbone.parameters() if p.requires_grad} - head
        owner = {id(p): name for name, p in setting.model.named_parameters()}
        assert head and rest
        assert head <= set(map(id, backbone.parameters()))
        assert {owner[p] for p in head if p in owner} <= {*parts.personal, *parts.frozen}
        assert {owner[p] for p in rest} <= set(parts.shared)

    def test_scores_have_the_declared_names_and_count_every_case(self, setting):
        rows = [setting.score(case) for case in setting.prepared]
        summary = setting.task.summarise(rows)
        assert list(summary) == list(setting.task.metrics)
        assert all(score.support + score.undefined == len(rows) for score in summary.values())
        assert all(score.mean is None or np.isfinite(score.mean) for score in summary.values())
        assert all((score.mean is None) == (score.support == 0) for score in summary.values())

    def test_an_empty_split_has_no_score(self, setting):
        assert setting.task.summarise([]) == {name: Score(None, 0) for name in setting.task.metrics}

    def test_images_of_odd_sizes_are_scored(self, setting):
        """Rows and columns that no network can halve."""

        def cut(value):
            image = isinstance(value, np.ndarray) and value.ndim >= 2 and min(value.shape[:2]) >= 24
            return value[: -(value.shape[0] - 23) or None, :-3] if image else value

        case = {key: cut(value) for key, value in setting.cases[0].items()}
        assert setting.task.summarise([setting.score(setting.task.prepare(case))])

    def test_facts_can_travel(self, setting):
        """They and the specification are JSON and survive it unchanged."""
        assert json.loads(json.dumps(setting.facts)) == setting.facts
        assert json.loads(json.dumps(setting.task.spec)) == setting.task.spec

    def test_the_view_is_fixed_and_finite(self, setting):
        first, second = (setting.task.view(setting.task.prepare(setting.cases[0])) for _ in range(2))
        assert torch.equal(first, second)
        assert torch.isfinite(first).all()
        assert first.ndim in (3, 4)

    def test_augmentation_leaves_the_prepared_case_alone(self, setting):
        """It is cached: what one epoch did to it would be seen by the next."""
        case = setting.prepared[0]
        before = {key: value.clone() for key, value in case.items() if isinstance(value, torch.Tensor)}
        setting.task.augment()(dict(case))
        assert all(torch.equal(case[key], value) for key, value in before.items())

    def test_pictures_are_rgb(self, setting):
        setting.model.eval()
        with torch.no_grad():
            pixels = setting.task.picture(setting.predict, setting.prepared[0])
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3

    def test_a_case_without_its_truth_is_predicted_as_with_it(self, setting):
        item, given = setting.datalist.training[0], setting.task.given
        assert set(given) <= set(setting.task.required)
        setting.model.eval()
        with torch.no_grad():
            bare, whole = (setting.task.infer(setting.predict, case) for case in ({k: item[k] for k in given}, item))
        assert isinstance(bare, Prediction)
        for name, value in vars(bare).items():
            np.testing.assert_array_equal(value, getattr(whole, name))

    def test_saved_and_reloaded_it_predicts_the_same(self, setting):
        data, model = setting.batch(1), setting.build().eval()
        with torch.no_grad():
            for value in model.state_dict().values():  # no tensor is as it was drawn
                value += 0.01 if value.is_floating_point() else 0
            before = model(data, EXTRA).prediction
            again = setting.build().eval()
            assert not torch.equal(again(data, EXTRA).prediction, before)
            again.load_state_dict(decode(encode(model.state_dict(), {}))[0])
            assert torch.equal(again(data, EXTRA).prediction, before)

    def test_better_knows_the_metrics_direction(self, setting):
        task = setting.task
        name, higher = next(iter(task.metrics.items()))
        low, high, none = ({name: Score(value, 1)} for value in (0.1, 0.2, None))
        assert task.better(high, low) == higher
        assert task.better(low, high) != higher
        assert not task.better(low, low)
        assert task.better(low, none)
        assert not task.better(none, low)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENT_JOBS)
def test_simulation_runs_the_demo_data(name):
    """A job's experiment, cut to one round, on its own embedded data, in two modalities."""
    job = JOBS[name]
    cut = job | {"train": job["train"] | {"num_rounds": 1, "local_epochs": 1}}
    summary = simulation.run(Experiment.from_json(json.dumps(cut)), None, ["site-1", "site-2"])
    assert (summary["status"], summary["data_source"]) == ("COMPLETE", "demo")
    assert all(np.isfinite(site["train_loss"]) for entry in summary["history"] for site in entry["sites"].values())


@pytest.mark.parametrize("name", JOBS)
def test_every_preset_is_valid(name):
    for preset in (None, *JOBS[name]["presets"]):
        experiment = Experiment.from_json(json.dumps(JOBS[name] | {"preset": preset}))
        load_task(experiment)
        load_method(experiment)
    assert "paper" in JOBS[name]["presets"]


def test_simulation_refuses_an_absent_site(tmp_path):
    with pytest.raises(ValueError, match="data_root must hold one folder per site; 'site-1' has none"):
        simulation.run(Experiment.from_json(json.dumps(JOBS["seg_fets"])), tmp_path, ["site-1"])
