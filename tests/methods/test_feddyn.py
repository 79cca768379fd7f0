"""FedDyn against algorithm 1, absent sites included."""

import torch

from omnifm.methods.feddyn import FedDyn, Settings
from omnifm.update import Update
from tests.methods.reference import (
    SIZES,
    batches,
    build,
    close,
    descend,
    federate,
    kept,
    loss_on,
    mean,
    parameters,
    part,
)

ALPHA = 0.5
METHOD = {"name": "feddyn", "alpha": ALPHA, "max_norm": 1e6}


def test_rule_with_absent_sites(toys, tmp_path):
    summary, run, network = federate(toys, tmp_path, METHOD, sites=3, rounds=4, participation=0.7)
    _, model = build(METHOD)
    w, cases = parameters(model), batches(network)
    zero = {name: torch.zeros_like(value) for name, value in w.items()}
    h = dict.fromkeys(SIZES, zero)
    drawn = [sorted(entry["sites"]) for entry in summary["history"]]
    assert {len(sites) for sites in drawn} == {2}
    for sites in drawn:
        ends = {}
        for site in sites:
            own = h[site]
            dynamic = lambda g, now, own=own, w=w: {n: g[n] - own[n] + ALPHA * (now[n] - w[n]) for n in g}  # noqa: E731
            ends[site] = descend(loss_on(model, cases[site]), w, correct=dynamic)
            h[site] = {n: own[n] - ALPHA * (ends[site][n] - w[n]) for n in w}
        average, everyones = mean(ends), mean(h)
        w = {n: average[n] - everyones[n] / ALPHA for n in w}
    close(run.shared, w)
    for site in SIZES:
        own = part(kept(tmp_path, site), "memory/")
        close(own, h[site])
        assert all(torch.equal(value, own[name]) for name, value in run.method.h[site].items())


def test_h_counts_every_site_by_its_size_of_now():
    """Sites that join change the others' caps: h is a mean, not a sum of what once was counted."""
    method, w = FedDyn(Settings(alpha=0.5)), {"w": torch.zeros(1)}
    method.weights, track = ("w",), []
    for sizes, moves in (({"a": 1, "b": 1, "c": 2}, {"a": 1.0, "b": 3.0}), ({"a": 1, "b": 3, "c": 4}, {"a": 1.0})):
        method.sizes = sizes
        replies = [
            Update(site, "train", 1, "", shared={"w": w["w"] + move}, num_samples=sizes[site])
            for site, move in moves.items()
        ]
        w = method.aggregate(w, replies, 1)
        track.append(w["w"].item())
    first = 2 + (0.5 + 1.5) / 4 / 0.5  # the mean, minus h / alpha with h_a = -0.5 and h_b = -1.5
    assert track == [first, first + 1 + (1.0 + 3 * 1.5) / 8 / 0.5]  # h_a = -1


def test_gradients_are_clipped(toys, tmp_path):
    """A norm of 1e-3 allows two steps of 0.1 a way of 2e-4, and the server doubles it."""
    _, run, _ = federate(toys, tmp_path, METHOD | {"max_norm": 1e-3}, rounds=1)
    first = parameters(build(METHOD)[1])
    way = torch.stack([((run.shared[n] - w) ** 2).sum() for n, w in first.items()]).sum().sqrt()
    assert 0 < way <= 4e-4 * (1 + 1e-3)
