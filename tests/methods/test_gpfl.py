"""GPFL against its losses written out, on full batches."""

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from omnifm.methods.gpfl import GPFL, Settings
from omnifm.plugins import load_task
from omnifm.site.stages import Site
from tests.conftest import experiment
from tests.methods.reference import batches, build, close, descend, federate, kept, mean, parameters, part
from tests.methods.test_roster import SPEC

LAM, MU = 0.3, 0.2
METHOD = {"name": "gpfl", "lam": LAM, "mu": MU}
HOME = ("backbone.fc.weight", "backbone.fc.bias")


def valve(model, weights, features, condition):
    """relu((gamma + 1) f + beta)."""
    inner = {name.removeprefix("valve."): value for name, value in weights.items() if name.startswith("valve.")}
    gamma = functional_call(model.valve.gamma, part(inner, "gamma."), (condition,))
    beta = functional_call(model.valve.beta, part(inner, "beta."), (condition,))
    return F.relu((gamma + 1) * features + beta)


def losses(model, batch, received):
    """Cross-entropy of the personal feature; softmax over cosines and squared distance of the global one; L2."""
    labels = batch["label"]
    share = torch.stack([(labels == c).float().mean() for c in range(2)])

    def loss(w):
        encode = functional_call(model.backbone.conv, part(w, "backbone.conv."), (batch["image"],)).tanh()
        mixed = functional_call(model.backbone.mix, part(w, "backbone.mix."), (encode.flatten(2).transpose(1, 2),))
        feature = mixed.mean(1)
        personal = valve(model, w, feature, (share[:, None] * received).sum(0))
        everyones = valve(model, w, feature, received.sum(0) / 2)
        logits = personal @ w["backbone.fc.weight"].T + w["backbone.fc.bias"]
        table = w["embeddings.weight"]
        cosines = (everyones / everyones.norm(dim=1, keepdim=True)) @ (table / table.norm(dim=1, keepdim=True)).T
        guide = -cosines.log_softmax(1)[range(len(labels)), labels].mean()
        pull = ((everyones - received[labels]) ** 2).sum(1).mean()
        penalty = sum((v**2).sum() for n, v in w.items() if n.startswith(("valve.", "embeddings.")))
        return F.cross_entropy(logits, labels) + guide + LAM * pull + MU / 2 * penalty

    return loss


@pytest.mark.parametrize(("others", "rounds"), [("site-2", 3), ("site-3", 2)], ids=["alike", "other frequencies"])
def test_rule(toys, tmp_path, others, rounds):
    """Sites 1 and 2 have as many of each class, and so one condition for all features; site 3 has fewer bright ones."""
    _, run, network = federate(toys, tmp_path, METHOD, sites=["site-1", others], rounds=rounds)
    _, model = build(METHOD)
    first = parameters(model)
    shared = {n: w for n, w in first.items() if n not in HOME}
    heads = {site: {n: first[n] for n in HOME} for site in ("site-1", others)}
    for _ in range(rounds):
        ends = {}
        for site, batch in batches(network).items():
            w = descend(losses(model, batch, shared["embeddings.weight"]), shared | heads[site])
            heads[site], ends[site] = {n: w[n] for n in HOME}, {n: w[n] for n in shared}
        shared = mean(ends)
    close(run.shared, shared)
    for site, head in heads.items():
        close(part(kept(tmp_path, site), "personal/"), head)


@pytest.mark.parametrize("share_buffers", [False, True])
def test_class_frequencies_stay_home_and_are_the_sites_own(toys, tmp_path, share_buffers):
    _, run, network = federate(toys, tmp_path, METHOD | {"share_buffers": share_buffers}, rounds=1)
    assert not [name for name in run.partition.shared if "conditions" in name]
    for site, batch in batches(network).items():
        share = kept(tmp_path, site)["personal/conditions.share"]
        torch.testing.assert_close(share[1], batch["label"].float().mean())


def test_a_site_without_the_last_class_has_none_of_it(toys, tmp_path):
    _, run, network = federate(toys, tmp_path, METHOD, rounds=1)
    local = network.open["site-1"].open_round(network.payloads[0][1])
    local.side_batches = lambda: iter([{"label": torch.zeros(3, dtype=torch.int64)}])
    share = local.model.conditions.share
    share.zero_()
    run.method.receive(local)
    assert share.tolist() == [1, 0]


def test_the_received_model_is_scored_under_its_own_conditions(toys, tmp_path, monkeypatch):
    """Before and after training alike the valve is told the embeddings that were received, and the site's classes."""
    told, scores = [], Site.score

    def noted(site, model, extra, split):
        told.append((split, model.conditions.anchors.clone(), model.conditions.share.sum().item()))
        return scores(site, model, extra, split)

    monkeypatch.setattr(Site, "score", noted)
    _, _, network = federate(toys, tmp_path, METHOD)
    received = [payload.shared["embeddings.weight"] for _, payload in network.payloads for _moment in range(2)]
    assert len(received) == 12
    for (split, anchors, total), embeddings in zip(told, received, strict=False):
        assert (split, total) == ("validation", 1)
        assert torch.equal(anchors, embeddings)


def test_a_task_without_one_class_per_image_is_refused():
    task = load_task(experiment())
    task.configure(SPEC)
    with pytest.raises(ValueError, match="gpfl needs a task with one class per image; got segmentation"):
        GPFL(Settings()).build(task)
