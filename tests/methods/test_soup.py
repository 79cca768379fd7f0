"""A site's own validation decides how much of what it trained it keeps; what leaves is what it trained."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from omnifm.method import LocalRound, Partition
from omnifm.methods._soup import mix_with_received
from omnifm.plugins import names, plugin
from omnifm.update import Score
from tests.methods.reference import federate

TASK = SimpleNamespace(better=lambda new, old: new["x"].mean > old["x"].mean)


def local(score, **parts):
    """A site that received 0 and 0, trained 1 and 2, and scores its model by `score(weight)`."""
    model = nn.Linear(1, 1)
    nn.init.ones_(model.weight)
    nn.init.constant_(model.bias, 2.0)
    site = object.__new__(LocalRound)  # of the round only this matters
    site.model, site.task, site.partition = model, TASK, Partition.of(model, **parts)
    site.received = {name: torch.zeros_like(model.state_dict()[name]) for name in site.partition.shared}
    site.validate = lambda: {"x": Score(score(model.weight.item()), 1, 0)}
    return site


class TestStir:
    @pytest.mark.parametrize(
        ("score", "share"),
        [(lambda w: w, 1.0), (lambda w: -w, 0.0), (lambda w: -abs(w - 0.5), 0.5), (lambda w: 1.0, 1.0)],
        ids=["trained", "received", "between", "a tie keeps what was trained"],
    )
    def test_the_best_share_is_kept(self, score, share):
        site = local(score)
        assert mix_with_received(site) == share
        assert (site.model.weight.item(), site.model.bias.item()) == (share, 2 * share)

    def test_what_is_personal_stays_as_trained(self):
        site = local(lambda w: -w)
        site.partition = Partition.of(site.model, personal=[site.model.bias])
        mix_with_received(site)
        assert (site.model.weight.item(), site.model.bias.item()) == (0, 2)

    def test_where_nothing_is_shared_nothing_is_scored(self):
        site = local(lambda w: 1 / 0, only=())
        assert mix_with_received(site) == 1
        assert site.model.weight.item() == 1


SOUPS = [name for name in names("methods") if "soup" in plugin("methods", name).Settings.__dataclass_fields__]


@pytest.mark.slow
@pytest.mark.parametrize("method", [*({"name": name} for name in SOUPS), {"name": "omnifm", "share": "all"}], ids=str)
def test_the_federation_goes_on_as_without_it_and_a_site_is_never_worse_on_validation(toys, tmp_path, method):
    runs = {
        soup: federate(toys, tmp_path / str(soup), method | {"soup": soup}, model={"lora": True})
        for soup in (False, True)
    }
    (plain, _, sites), (summary, _, mixing) = runs.values()
    assert (summary["status"], summary["final_hash"]) == ("COMPLETE", plain["final_hash"])
    pairs = zip(mixing.updates, sites.updates, strict=True)
    scores = [[next(iter(update.after.values())).mean for update in pair] for pair in pairs]
    assert all(mixed >= trained for mixed, trained in scores)


def test_a_site_keeps_the_mixture_and_sends_what_it_trained(toys, tmp_path, monkeypatch):
    monkeypatch.setattr("omnifm.methods._soup.SHARES", (0.0,))  # all that was trained is given up again
    summary, _, network = federate(toys, tmp_path, {"name": "fedavg", "capacity": "matched", "soup": True})
    assert all(update.after == update.before for update in network.updates)
    for update, (_, payload) in zip(network.updates, network.payloads, strict=True):
        assert any((update.shared[name] != payload.shared[name]).any() for name in update.shared)
    metrics = [score for site in summary["sites"].values() for score in site["metrics"].values()]
    assert metrics
    assert all(score["before"] == score["after"] for score in metrics)
