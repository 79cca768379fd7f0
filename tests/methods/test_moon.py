"""MOON against cross-entropy plus eq. 3 by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from omnifm.methods.moon import contrastive
from omnifm.update import clean
from tests.methods.reference import batches, build, close, descend, federate, kept, loss_on, mean, parameters, part

METHOD = {"name": "moon", "mu": 2.0, "temperature": 0.3}


def test_contrast_golden():
    """cos(z, theirs) = 1 and cos(z, before) = 0 at tau = 0.5: -log(e^2 / (e^2 + 1)) = 0.126928."""
    z, other = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    expected = -np.log(np.exp(2) / (np.exp(2) + 1))
    assert abs(float(contrastive(z, z, other, 0.5)) - expected) < 1e-6


def seen(model, weights, batch):
    return functional_call(model, weights, (batch, {})).token


def by_hand(z, theirs, before):
    """Eq. 3 as printed."""
    near, far = (torch.exp((z * o).sum(1) / z.norm(dim=1) / o.norm(dim=1) / 0.3) for o in (theirs, before))
    return -torch.log(near / (near + far)).mean()


def test_rule_with_absent_sites(toys, tmp_path):
    """The model that a site trained last is its own last, however long ago."""
    summary, run, network = federate(toys, tmp_path, METHOD, sites=3, rounds=4, participation=0.7)
    _, model = build(METHOD)
    w, cases, last = parameters(model), batches(network), {}
    for entry in summary["history"]:
        ends = {}
        for site in sorted(entry["sites"]):
            batch, plain = cases[site], loss_on(model, cases[site])
            loss = plain
            if site in last:
                theirs, before = seen(model, w, batch), seen(model, last[site], batch)
                loss = lambda now, p=plain, b=batch, o=(theirs, before): (  # noqa: E731
                    p(now) + 2.0 * by_hand(seen(model, now, b), *o)
                )
            ends[site] = last[site] = descend(loss, w)
        w = mean(ends)
    close(run.shared, w)
    for site, own in last.items():
        close(part(kept(tmp_path, site), "memory/"), own)


def test_the_two_fixed_models_keep_their_statistics_at_rest(toys, tmp_path):
    """They see as they were, whatever else is in the batch, and the trained model counts its own two batches."""
    _, run, network = federate(toys, tmp_path, METHOD, rounds=3, model={"norm": "batch"})
    local = network.open["site-1"].open_round(network.payloads[-2][1])
    run.method.begin(local)
    before = [clean(value) for backbone in local.scratch["fixed"] for value in backbone.state_dict().values()]
    run.method.train(local)
    after = [value for backbone in local.scratch["fixed"] for value in backbone.state_dict().values()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert kept(tmp_path, "site-1")["personal/backbone.adn.0.num_batches_tracked"] == 6


@pytest.mark.parametrize("share_buffers", [True, False])
def test_the_model_before_has_the_statistics_that_it_was_trained_with(toys, tmp_path, share_buffers):
    method = METHOD | {"share_buffers": share_buffers}
    _, run, network = federate(toys, tmp_path, method, rounds=2, model={"norm": "batch"})
    trained = network.open["site-1"].build_model(network.payloads[-2][1].spec)[0]
    trained.load_state_dict(network.updates[-2].shared | part(kept(tmp_path, "site-1"), "personal/"))
    local = network.open["site-1"].open_round(replace(network.payloads[-2][1], stage="evaluate"))
    run.method.begin(local)
    before = local.scratch["fixed"][1].state_dict()
    assert any("running" in name for name in before)
    assert all(torch.equal(value, trained.backbone.state_dict()[name]) for name, value in before.items())
