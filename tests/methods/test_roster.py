"""Laws that every method obeys; a new file in omnifm/methods/ is tested here without being named."""

import pytest
import torch

from omnifm import simulation
from omnifm.method import Partition
from omnifm.plugins import load_method, load_task, names
from tests.conftest import experiment

SPEC = {
    "dims": 3,
    "channels": 1,
    "labels": {"0": "background", "1": "ball"},
    "spacing_mm": [1.0] * 3,
    "patch": [16] * 3,
}


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    """Drawing plots is slow."""
    monkeypatch.setattr("omnifm.rounds.write_report", lambda *_args: None)


def build(name):
    job = experiment(method={"name": name})
    method, task = load_method(job), load_task(job)
    task.configure(SPEC)
    torch.manual_seed(0)
    return method, method.build(task)


@pytest.mark.parametrize("name", names("methods"))
class TestRoster:
    def test_server_and_site_draw_the_same_model(self, name):
        (_, one), (_, two) = build(name), build(name)
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))

    def test_every_tensor_has_one_owner(self, name):
        method, model = build(name)
        parts = method.partition(model)
        owned = [tensor for part in Partition.parts() for tensor in getattr(parts, part)]
        assert sorted(owned) == sorted(model.state_dict())

    def test_server_state_survives_a_checkpoint(self, name):
        method, model = build(name)
        method.start(method.partition(model).pick(model, "shared"))
        tensors, record = method.server_state()
        again, _ = build(name)
        again.restore(tensors, record)
        assert again.server_state()[1] == record
        assert all(torch.equal(again.server_state()[0][key], tensors[key]) for key in tensors)

    def test_the_order_of_the_sites_names_is_all_that_matters(self, name, federation):
        """Asked in another order, the sites end with the same model."""
        job = experiment(method={"name": name})
        runs = [simulation.run(job, federation, sites) for sites in (["site-1", "site-2"], ["site-2", "site-1"])]
        assert runs[0]["final_hash"] == runs[1]["final_hash"]
        assert runs[0]["aggregate"] == runs[1]["aggregate"]
