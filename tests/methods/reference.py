"""What update rules are checked against: full-batch gradient descent in plain torch, and the run that it explains.

A test writes a method's rule a second time with these few lines; they know no method, no round and no server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from omnifm.config import SiteConfig
from omnifm.federation.server import Federation
from omnifm.plugins import load_method, load_task
from omnifm.simulation import InProcess
from omnifm.state import History
from tests.conftest import experiment

LR, STEPS = 0.1, 2
SIZES = {"site-1": 6, "site-2": 4, "site-3": 5}
Weights = dict[str, Tensor]


class Watched(InProcess):
    """Keeps every accepted training update and every payload; `spoil(payload)` may pull the plug after a reply, and
    replies of `lost`, pairs of round and site, never arrive."""

    def __init__(self, job, configs, spoil=lambda payload: None, lost=()):
        super().__init__(job, configs)
        self.spoil, self.lost, self.updates, self.payloads = spoil, lost, [], []

    def exchange(self, payloads, accept):
        missing = {}
        for name, payload in payloads.items():
            update = self._site(name).reply(payload)
            self.spoil(payload)
            if payload.stage == "train" and (payload.round, name) in self.lost:
                missing[name] = "lost"
                continue
            reason = accept(update)
            missing |= {name: reason} if reason else {}
            if payload.stage == "train":
                self.updates.append(update)
                self.payloads.append((name, payload))
        return missing


def toy_job(method, *, rounds=3, model=None, **train):
    """Two full-batch SGD steps per round and site."""
    settings = {"num_rounds": rounds, "local_epochs": STEPS, "batch_size": 64, "lr": LR, "optimizer": "sgd"} | train
    return replace(experiment(method=method, train=settings), task={"name": "toy"}, model=model or {})


def federate(toys, folder, method, *, sites=2, spoil=lambda payload: None, lost=(), **changes):
    """Run a method over the first sites; returns (summary, Federation, Watched)."""
    job = toy_job(method, **changes)
    names = list(SIZES)[:sites] if isinstance(sites, int) else sites
    network = Watched(job, {n: SiteConfig(str(toys / n), str(folder / n), "cpu") for n in names}, spoil, lost)
    run = Federation(job, folder / "server", folder / "results", network)
    return run.run(), run, network


def build(method, model=None):
    """(method, the model that server and sites start from)."""
    job = toy_job(method, model=model)
    built, task = load_method(job), load_task(job)
    task.configure({"labels": {"0": "dark", "1": "bright"}})
    torch.manual_seed(job.seed)
    return built, built.build(task)


def batches(network):
    """Each site's training cases as one batch."""
    return {name: next(iter(network.open[name].loader.batches(0)())) for name in sorted(network.open)}


def loss_on(model, batch) -> Callable[[Weights], Tensor]:
    """Cross-entropy of a model with other weights."""
    return lambda weights: F.cross_entropy(functional_call(model, weights, (batch, {})).prediction, batch["label"])


def gradient(loss: Callable[[Weights], Tensor], weights: Weights) -> Weights:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
    return dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))


def descend(loss, weights: Weights, steps=STEPS, correct=lambda gradient, weights: gradient, only=lambda _n: True):
    """Gradient descent; `correct` may change the gradient, and what is not `only` stays."""
    for _ in range(steps):
        slopes = correct(gradient(loss, weights), weights)
        weights = {n: w - LR * slopes[n] if only(n) else w for n, w in weights.items()}
    return weights


def mean(weights: dict[str, Weights]) -> Weights:
    """Weighted by the sites' sizes."""
    total = sum(SIZES[site] for site in weights)
    first = next(iter(weights.values()))
    return {n: sum(SIZES[site] * w[n] for site, w in weights.items()) / total for n in first}


def parameters(model) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def kept(folder, site, before=None) -> Weights:
    """A site's own state, the last one or that before a round: `personal/...` and `memory/...`."""
    return History(folder / site / "tiny", "personal").load(before).tensors


def close(got: Weights, expected: Weights, names=None) -> None:
    """Equal to within rounding; the test must not compare nothing with nothing."""
    names = set(expected) if names is None else names
    assert names
    for name in names:
        torch.testing.assert_close(got[name].float(), expected[name].float(), atol=2e-6, rtol=1e-5, msg=name)


def part(tensors: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
