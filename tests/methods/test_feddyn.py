"""FedDyn against algorithm 1, absent sites included."""

import torch

from omnifm.method import ServerView
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
        own = part(kept(tmp_path, site), "memory/h/")
        close(own, h[site])
        assert all(torch.equal(value, own[name]) for name, value in run.method.h[site].items())


def settled(run, folder, sites=("site-1", "site-2")):
    """Whether every site's h_k is the server's, to the last bit."""
    own = {site: part(kept(folder, site), "memory/h/") for site in sites}
    return all(torch.equal(own[site][n], value) for site in sites for n, value in run.method.h[site].items())


def test_a_lost_reply_is_taken_back(toys, tmp_path):
    """What a site does after it is what it would have done had it not been asked: the optimum stays where it is."""
    changes = {"rounds": 4, "min_sites": 1}
    lost = {(1, "site-1"), (2, "site-2"), (3, "site-2")}
    _, run, network = federate(toys, tmp_path, METHOD, lost=lost, **changes)
    assert {(update.round, update.site) for update in network.updates} == {
        (number, site) for number in range(1, 5) for site in ("site-1", "site-2")
    } - lost
    assert run.method.counted == {"site-1": 4, "site-2": 4}
    assert settled(run, tmp_path)
    model, cases = build(METHOD)[1], batches(network)
    w, zero = parameters(model), {name: torch.zeros_like(value) for name, value in parameters(model).items()}
    h = dict.fromkeys(("site-1", "site-2"), zero)
    for number in range(1, 5):
        ends = {}
        for site in (site for site in h if (number, site) not in lost):
            dynamic = lambda g, now, own=h[site], w=w: {n: g[n] - own[n] + ALPHA * (now[n] - w[n]) for n in g}  # noqa: E731
            ends[site] = descend(loss_on(model, cases[site]), w, correct=dynamic)
            h[site] = {n: h[site][n] - ALPHA * (ends[site][n] - w[n]) for n in w}
        average, everyones = mean(ends), mean(h)
        w = {n: average[n] - everyones[n] / ALPHA for n in w}
    close(run.shared, w)


def test_a_warm_start_takes_no_h_from_the_run_before(toys, tmp_path):
    """The server's are zeros then; FedDyn keeps no part of the model at home, so it is a cold start."""
    first, _, _ = federate(toys, tmp_path, METHOD)
    warm, run, _ = federate(toys, tmp_path, METHOD, warm_start=True)
    assert warm["final_hash"] == first["final_hash"]
    assert settled(run, tmp_path)


def test_h_counts_every_site_by_its_size_of_now():
    """Sites that join change the others' caps: h is a mean, not a sum of what once was counted."""
    method, w = FedDyn(Settings(alpha=0.5)), {"w": torch.zeros(1)}
    method.weights, track = ("w",), []
    for sizes, moves in (({"a": 1, "b": 1, "c": 2}, {"a": 1.0, "b": 3.0}), ({"a": 1, "b": 3, "c": 4}, {"a": 1.0})):
        replies = [
            Update(site, "train", 1, "", shared={"w": w["w"] + move}, num_samples=sizes[site])
            for site, move in moves.items()
        ]
        w = method.aggregate(w, replies, ServerView(1, sizes=sizes))
        track.append(w["w"].item())
    first = 2 + (0.5 + 1.5) / 4 / 0.5  # the mean, minus h / alpha with h_a = -0.5 and h_b = -1.5
    assert track == [first, first + 1 + (1.0 + 3 * 1.5) / 8 / 0.5]  # h_a = -1


def test_gradients_are_clipped(toys, tmp_path):
    """A norm of 1e-3 allows two steps of 0.1 a way of 2e-4, and the server doubles it."""
    _, run, _ = federate(toys, tmp_path, METHOD | {"max_norm": 1e-3}, rounds=1)
    first = parameters(build(METHOD)[1])
    way = torch.stack([((run.shared[n] - w) ** 2).sum() for n, w in first.items()]).sum().sqrt()
    assert 0 < way <= 4e-4 * (1 + 1e-3)
