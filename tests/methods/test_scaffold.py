"""SCAFFOLD against algorithm 1 with option II, absent sites included."""

from dataclasses import replace

import pytest
import torch

from omnifm.config import SiteConfig
from omnifm.federation.server import Federation
from omnifm.method import ServerView
from omnifm.methods.scaffold import Scaffold, Settings
from omnifm.update import Update
from tests.methods.reference import (
    LR,
    SIZES,
    STEPS,
    Watched,
    batches,
    build,
    close,
    descend,
    federate,
    kept,
    loss_on,
    mean,
    parameters,
    toy_job,
)

METHOD = {"name": "scaffold"}


def test_rule_with_absent_sites(toys, tmp_path):
    """c_k <- c_k - c + (x - y) / (K eta), which for SGD is the mean gradient that the method notes."""
    summary, run, network = federate(toys, tmp_path, METHOD, sites=3, rounds=4, participation=0.7)
    _, model = build(METHOD)
    x, cases = parameters(model), batches(network)
    zero = {name: torch.zeros_like(value) for name, value in x.items()}
    controls, total = dict.fromkeys(SIZES, zero), sum(SIZES.values())
    drawn = [sorted(entry["sites"]) for entry in summary["history"]]
    assert {len(sites) for sites in drawn} == {2}
    for sites in drawn:
        c = {name: sum(SIZES[s] * controls[s][name] for s in SIZES) / total for name in x}
        ends = {}
        for site in sites:
            own = controls[site]
            shift = lambda g, _w, own=own, c=c: {n: g[n] - own[n] + c[n] for n in g}  # noqa: E731
            ends[site] = descend(loss_on(model, cases[site]), x, correct=shift)
            controls[site] = {n: own[n] - c[n] + (x[n] - ends[site][n]) / (STEPS * LR) for n in x}
        x = mean(ends)
    close(run.shared, x)
    for site in SIZES:
        memory = kept(tmp_path, site).get("memory/control", torch.zeros(0))
        expected = torch.cat([controls[site][name].flatten() for name in x])
        torch.testing.assert_close(memory, expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(run.method.controls.get(site, torch.zeros(0)), memory)


def test_c_counts_what_each_site_sent_last_by_the_sizes_of_now():
    """Sites that join change the others' caps: c is the mean over all, not a sum of what once was counted."""
    method = Scaffold(Settings())
    method.num_weights = 1

    def after(sizes, **controls):
        view = ServerView(1, sizes=sizes)
        replies = [
            Update(site, "train", 1, "", shared={"w": torch.zeros(1)}, extra={"control": torch.tensor([value])})
            for site, value in controls.items()
        ]
        method.aggregate({"w": torch.zeros(1)}, replies, view)
        assert method.payload("a", {}, view)[1]["control"].shape == (1,)
        return method.payload("a", {}, view)[1]["control"].item()

    assert after({"a": 1, "b": 1, "c": 2}, a=1.0, b=5.0) == pytest.approx((1 + 5) / 4)
    assert after({"a": 1, "b": 1, "c": 6}, c=-1.0) == pytest.approx((1 + 5 - 6) / 8)
    assert after({"a": 1, "b": 1, "c": 6}, a=2.0, b=0.0) == pytest.approx((2 - 6) / 8)
    view = ServerView(1, sizes={"a": 1, "b": 1, "c": 6, "late": 8})
    assert method.payload("late", {}, view)[1]["control"].item() == pytest.approx((2 - 6) / 16)


@pytest.mark.parametrize("lost", [0, 2], ids=["accepted", "lost on its way"])
def test_a_late_sites_first_reply_is_like_the_others_and_made_good_if_lost(toys, tmp_path, lost):
    """At a small step gradients hardly change from round to round: changes of c_k would be tiny, but for the first."""

    class Late(Watched):
        def sites(self):
            return [*SIZES][: 3 if run.round else 2]

    job = toy_job(METHOD, lr=1e-4)
    configs = {name: SiteConfig(str(toys / name), str(tmp_path / name), "cpu") for name in SIZES}
    run = Federation(job, tmp_path / "server", tmp_path / "results", Late(job, configs, lost={(lost, "site-3")}))
    assert [[*entry["missing"]] for entry in run.run()["history"]] == [[], ["site-3"] if lost else [], []]
    own = {site: kept(tmp_path, site)["memory/control"] for site in SIZES}
    c = sum(SIZES[site] * own[site] for site in SIZES) / sum(SIZES.values())
    torch.testing.assert_close(run.method.payload("site-1", {}, run.view)[1]["control"], c)


def test_a_warm_start_takes_no_control_from_the_run_before(toys, tmp_path):
    """The server's c counts none; SCAFFOLD keeps no part of the model at home, so it is a cold start."""
    first, _, _ = federate(toys, tmp_path, METHOD)
    assert federate(toys, tmp_path, METHOD, warm_start=True)[0]["final_hash"] == first["final_hash"]


def test_the_mean_gradient_is_over_steps_not_epochs(toys, tmp_path):
    """Six cases, two at a time: (x - y) / (K eta) with K = 6 in two epochs."""
    _, _, network = federate(toys, tmp_path, METHOD, rounds=1, batch_size=2)
    first, (update, *_) = parameters(build(METHOD)[1]), network.updates
    way = torch.cat([(value - update.shared[name]).flatten() for name, value in first.items()])
    torch.testing.assert_close(update.extra["control"], way / (STEPS * 3 * LR), atol=1e-5, rtol=1e-4)


def test_control_variates_do_not_depend_on_the_optimiser(toys, tmp_path):
    """Adam's steps are not gradients; the control variate still is the mean gradient."""
    federate(toys, tmp_path, METHOD, rounds=1, optimizer="adam", lr=1e-9)
    federate(toys, tmp_path / "sgd", METHOD, rounds=1, lr=1e-9)
    adam, sgd = (kept(folder, "site-1")["memory/control"] for folder in (tmp_path, tmp_path / "sgd"))
    torch.testing.assert_close(adam, sgd, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda extra: {},
        lambda extra: {"control": extra["control"][1:]},
        lambda extra: {"control": extra["control"].double()},
        lambda extra: {"control": extra["control"] * float("nan")},
    ],
    ids=["none", "short", "double", "nan"],
)
def test_a_malformed_control_variate_is_refused(toys, tmp_path, spoil):
    _, run, network = federate(toys, tmp_path, METHOD, rounds=1)
    update = network.updates[0]
    assert run.method.undeclared(update, run.task.metrics) is None
    reason = run.method.undeclared(replace(update, extra=spoil(update.extra)), run.task.metrics)
    assert reason == f"control must be {run.method.num_weights} finite float32 numbers"
