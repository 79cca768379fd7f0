"""FedRep against two descents in turn: the head's, then the rest's."""

import torch

from tests.methods.reference import (
    STEPS,
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

METHOD = {"name": "fedrep", "head_epochs": 3}


def is_head(name):
    return ".fc." in name


def test_rule(toys, tmp_path):
    _, run, network = federate(toys, tmp_path, METHOD)
    _, model = build(METHOD)
    first = parameters(model)
    body = {n: w for n, w in first.items() if not is_head(n)}
    heads = {site: {n: w for n, w in first.items() if is_head(n)} for site in ("site-1", "site-2")}
    for _ in range(3):
        ends = {}
        for site, batch in batches(network).items():
            loss = loss_on(model, batch)
            w = descend(loss, body | heads[site], steps=3, only=is_head)
            heads[site] = {n: v for n, v in w.items() if is_head(n)}
            w = descend(loss, w, steps=STEPS, only=lambda name: not is_head(name))
            ends[site] = {n: v for n, v in w.items() if not is_head(n)}
        body = mean(ends)
    close(run.shared, body)
    for site, head in heads.items():
        close(part(kept(tmp_path, site), "personal/"), head)


def test_the_heads_turn_leaves_the_bodys_statistics(toys, tmp_path):
    """However long the head is trained, the statistics have seen `local_epochs` batches."""
    federate(toys, tmp_path, METHOD, rounds=1, model={"norm": "batch"})
    assert kept(tmp_path, "site-1")["personal/backbone.adn.0.num_batches_tracked"] == STEPS


def test_each_part_is_at_rest_while_the_other_is_trained(toys, tmp_path, monkeypatch):
    """Three passes of the head, then two of the rest: (head, rest) in training mode."""
    _, run, network = federate(toys, tmp_path, METHOD, rounds=1)
    local = network.open["site-1"].open_round(network.payloads[0][1])
    modes, net = [], local.model.backbone
    monkeypatch.setattr(run.method, "step", lambda *_: modes.append((net.fc.training, net.conv.training)) or 0.0)
    run.method.train(local)
    assert modes == [(True, False)] * 3 + [(False, True)] * STEPS


def test_what_was_frozen_in_turn_is_free_again_and_the_rest_stays_frozen(toys, tmp_path):
    _, run, network = federate(toys, tmp_path, METHOD, rounds=1, model={"lora": True})
    local = network.open["site-1"].open_round(network.payloads[0][1])
    free = [name for name, p in local.model.named_parameters() if p.requires_grad]
    run.method.train(local)
    assert [name for name, p in local.model.named_parameters() if p.requires_grad] == free
    fixed = build(METHOD, {"lora": True})[1].backbone.mix.weight
    assert torch.equal(local.model.backbone.mix.weight, fixed)


def test_a_head_that_its_backbone_froze_for_a_while_is_passed_over(toys, tmp_path):
    _, run, network = federate(toys, tmp_path, METHOD, rounds=1)
    local = network.open["site-1"].open_round(network.payloads[0][1])
    local.model.backbone.fc.requires_grad_(False)
    head = local.model.backbone.fc.weight.detach().clone()
    assert run.method.train(local) > 0
    assert torch.equal(local.model.backbone.fc.weight, head)
