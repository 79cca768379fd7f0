"""FedALA against algorithm 1 on full batches."""

import pytest
import torch

from omnifm.methods import fedala
from omnifm.methods.fedala import FedALA, Settings
from tests.methods.reference import (
    batches,
    build,
    close,
    descend,
    federate,
    gradient,
    kept,
    loss_on,
    mean,
    parameters,
    part,
)

UPPER = ("backbone.fc.weight", "backbone.fc.bias")
METHOD = {"name": "fedala", "share": 1.0, "max_epochs": 12, "eta": 4.0}


def learn(loss, w, own, mix, epochs):
    """W <- clip(W - eta * dL/dw * (w - w_k), 0, 1), pass after pass."""
    losses = []
    for _ in range(epochs):
        now = w | {n: own[n] + (w[n] - own[n]) * mix[n] for n in UPPER}
        losses.append(float(loss(now)))
        slopes = gradient(loss, now)
        mix = {n: (mix[n] - 4.0 * slopes[n] * (w[n] - own[n])).clamp(0, 1) for n in UPPER}
        if len(losses) > 10 and torch.tensor(losses[-10:]).std(correction=0) < 0.1:
            break
    return w | {n: own[n] + (w[n] - own[n]) * mix[n] for n in UPPER}, mix


def test_rule(toys, tmp_path):
    _, run, network = federate(toys, tmp_path, METHOD, rounds=4)
    _, model = build(METHOD)
    w, own, mix = parameters(model), {}, {}
    for number in range(4):
        ends = {}
        for site, batch in batches(network).items():
            loss, start = loss_on(model, batch), w
            if number:
                first = mix.get(site, {n: torch.ones_like(w[n]) for n in UPPER})
                start, mix[site] = learn(loss, w, own[site], first, 12 if number == 1 else 1)
            ends[site] = own[site] = descend(loss, start)
        w = mean(ends)
    close(run.shared, w)
    for site in own:
        close(part(kept(tmp_path, site), "memory/mix/"), mix[site])
        assert any((value < 1).any() for value in mix[site].values())


@pytest.mark.parametrize("capacity", ["paper", "matched"])
def test_layers_are_counted_from_the_prediction(capacity):
    method, _ = build({"name": "fedala", "num_layers": 2, "capacity": capacity}, {"norm": "batch"})
    assert method.upper == ["backbone.mix.weight", "backbone.mix.bias", *UPPER]


def test_what_to_take_over_is_learnt_on_a_share_of_the_batches(toys, tmp_path, monkeypatch):
    """Of three batches a half are two, whichever order they come in; training sees them all."""
    seen, slopes = [], fedala._slopes
    monkeypatch.setattr(fedala, "_slopes", lambda *told: seen.append(1) or slopes(*told))
    method = METHOD | {"share": 0.5, "max_epochs": 1}
    federate(toys, tmp_path, method, sites=["site-1", "site-2"], rounds=2, batch_size=2)
    assert len(seen) == 2 * (2 + 1)  # two of site-1's three, one of site-2's two; in round 2 and at the evaluation


def test_the_share_of_batches_is_never_none():
    for share, num, expected in ((0.8, 5, 4), (0.8, 1, 1), (0.1, 3, 1), (1.0, 7, 7)):
        some = FedALA(Settings(share=share))._some(iter([{"n": n} for n in range(num)]))
        assert len(list(some)) == expected
