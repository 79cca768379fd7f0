"""FedAvg, Local and FedPer against each other and against ten lines of torch."""

import pytest
import torch
from torch import nn

from omnifm.config import SiteConfig
from omnifm.federation.server import Federation
from omnifm.methods.fedavg import FedAvg
from omnifm.methods.fedper import FedPer, Settings
from omnifm.methods.local import Local
from omnifm.model import Capacity, MatchedModel, PlainModel
from omnifm.plugins import load_method, load_task, names, plugin
from omnifm.simulation import InProcess
from tests.conftest import experiment
from tests.methods.test_roster import SPEC


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    monkeypatch.setattr("omnifm.federation.journal.write_report", lambda *_args: None)


def federate(federation, tmp_path, **changes):
    job = experiment(**changes)
    configs = {site: SiteConfig(str(federation / site), str(tmp_path / site), "cpu") for site in ("site-1", "site-2")}
    transport = InProcess(job, configs)
    run = Federation(job, tmp_path / "server", tmp_path / "results", transport)
    return run.run(), run, transport


def test_fedavg_is_ten_lines_of_torch(federation, tmp_path):
    """Two sites, one round: train copies of the same model on the same batches, average with weights n_k / N."""
    changes = {"method": {"name": "fedavg"}, "train": {"num_rounds": 1, "optimizer": "sgd", "lr": 0.05}}
    _, run, transport = federate(federation, tmp_path / "ours", **changes)
    job = experiment(**changes)
    method, task = load_method(job), load_task(job)
    task.configure(run.spec)
    total, expected = 0, {}
    for name, site in sorted(transport.open.items()):
        torch.manual_seed(job.seed)
        model = method.build(task)
        from omnifm.site.training import seed_everything

        for batch in site.loader.batches(seed_everything(job.seed, name, "train", 1))():
            loss = task.loss(model(batch, {}).prediction, batch)
            for parameter, gradient in zip(
                model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                parameter.data -= 0.05 * gradient
        n = len(site.datalist.training)
        total += n
        for key, value in model.state_dict().items():
            expected[key] = expected.get(key, 0) + n * value.double()
    for key, value in run.shared.items():
        torch.testing.assert_close(value.double(), expected[key] / total, atol=1e-6, rtol=1e-5)


class TestPartitions:
    def parts(self, method, norm="batch"):
        task = load_task(experiment(model={"norm": norm}))
        task.configure(SPEC)
        model = method.build(task)
        return method.partition(model), model

    def test_fedavg_shares_everything_but_counters(self):
        parts, _ = self.parts(FedAvg(FedAvg.Settings()))
        assert parts.personal == ()
        assert all(name.endswith("num_batches_tracked") for name in parts.buffers)

    def test_local_shares_nothing(self):
        parts, model = self.parts(Local(Local.Settings()))
        assert parts.shared == ()
        assert sorted(parts.personal) == sorted(name for name, _ in model.named_parameters())

    @pytest.mark.parametrize("capacity", ["paper", "matched"])
    def test_fedper_keeps_the_head_and_the_statistics(self, capacity):
        parts, model = self.parts(FedPer(Settings(capacity=capacity)))
        home = {
            id(p)
            for part in model.personal()
            for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())
        }
        assert {id(dict(model.named_parameters())[name]) for name in parts.personal} == home
        assert not [name for name in parts.shared if "running" in name]

    def test_matched_keeps_exactly_what_omnifm_keeps(self):
        """The fair rival has the same personal capacity, to the last parameter."""
        task = load_task(experiment())
        task.configure(SPEC)
        omni = load_method(experiment())
        matched = FedPer(Settings(capacity="matched"))
        ours = omni.partition(omni.build(task))
        theirs = matched.partition(matched.build(task))
        assert ours.personal == theirs.personal
        assert ours.count("personal") == theirs.count("personal")
        extra = set(ours.shared) - set(theirs.shared)
        assert {name.split(".")[0] for name in extra} == {"tokenizer", "fusion"}


@pytest.mark.parametrize("name", names("methods"))
def test_baselines_come_in_two_capacities(name):
    """With the matched head a baseline trains what OmniFM does, less the spectral parts (algorithm.md 7)."""
    kind = plugin("methods", name)
    if not issubclass(kind.Settings, Capacity):
        pytest.skip(f"{name} has a model of its own")
    task = load_task(experiment())
    task.configure(SPEC)
    assert isinstance(kind(kind.Settings()).build(task), PlainModel)
    assert isinstance(kind(kind.Settings(capacity="matched")).build(task), MatchedModel)


def test_local_sites_do_not_touch_each_other(federation, tmp_path):
    """With another neighbour a site ends where it did."""
    both, _, _ = federate(federation, tmp_path / "a", method={"name": "local"})
    assert both["partition"]["shared"] == 0
    job = experiment(method={"name": "local"}, train={"min_sites": 1})
    configs = {"site-1": SiteConfig(str(federation / "site-1"), str(tmp_path / "s"), "cpu")}
    alone = Federation(job, tmp_path / "b", tmp_path / "r", InProcess(job, configs)).run()
    assert alone["sites"]["site-1"]["metrics"] == both["sites"]["site-1"]["metrics"]


def test_personal_heads_differ_after_training(federation, tmp_path):
    _, run, transport = federate(federation, tmp_path, method={"name": "fedper"})
    from omnifm.state import History

    heads = [History(tmp_path / site / "tiny", "personal").load().tensors for site in transport.open]
    name = f"personal/{run.partition.personal[0]}"
    assert not torch.equal(heads[0][name], heads[1][name])
