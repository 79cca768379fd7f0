"""A site's own validation decides how much of its own model it keeps."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from omnifm.method import LocalRound
from omnifm.soup import stir
from omnifm.update import Score
from tests.methods.reference import federate

TASK = SimpleNamespace(better=lambda new, old: new["x"].mean > old["x"].mean)


def local(score):
    """A site that received 0 and 0 and scores its model by `score(weight)`."""
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    received = {name: value.clone() for name, value in model.state_dict().items()}
    validate = lambda: {"x": Score(score(model.weight.item()), 1, 0)}  # noqa: E731
    site = object.__new__(LocalRound)  # of the round only this matters
    site.model, site.received, site.task, site.validate = model, received, TASK, validate
    return site


OWN = {"weight": torch.ones(1, 1), "bias": torch.full((1,), 2.0)}


class TestStir:
    @pytest.mark.parametrize(
        ("score", "share"),
        [(lambda w: w, 1.0), (lambda w: -w, 0.0), (lambda w: -abs(w - 0.5), 0.5), (lambda w: 1.0, 0.0)],
        ids=["own", "received", "between", "a tie keeps what was received"],
    )
    def test_the_best_share_is_kept(self, score, share):
        site = local(score)
        assert stir(site, OWN, ["weight", "bias"]) == share
        assert (site.model.weight.item(), site.model.bias.item()) == (share, 2 * share)

    def test_only_the_named_weights_are_mixed(self):
        site = local(lambda w: w)
        stir(site, OWN, ["weight"])
        assert (site.model.weight.item(), site.model.bias.item()) == (1, 0)

    def test_in_the_first_round_there_is_nothing_to_mix(self):
        site = local(lambda w: w)
        assert stir(site, {}, ["weight"]) == 0
        assert site.model.weight.item() == 0


def test_in_a_federation_it_runs_and_changes_what_is_learned(toys, tmp_path):
    method = {"name": "omnifm", "dim": 8, "num_bands": 8, "share": "all"}
    finals = {}
    for soup in (False, True):
        summary, _, network = federate(toys, tmp_path / str(soup), method | {"soup": soup})
        assert summary["status"] == "COMPLETE"
        assert not [name for update in network.updates for name in update.extra if "own" in name]
        finals[soup] = summary["final_hash"]
    assert finals[True] != finals[False]
