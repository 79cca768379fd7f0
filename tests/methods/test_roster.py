"""Laws that every method obeys; a new file in omnifm/methods/ is tested here without being named."""

import pytest
import torch
from torch import nn

from omnifm.method import Partition
from omnifm.plugins import names, plugin
from tests.methods.reference import build, close, federate, kept, mean, part

SPEC = {
    "dims": 3,
    "channels": 1,
    "labels": {"0": "background", "1": "ball"},
    "spacing_mm": [1.0] * 3,
    "patch": [16] * 3,
}
MODEL = {"norm": "batch", "lora": True}
"""Whatever a method may treat in its own way: statistics, LoRA, frozen weights."""
SITES = ["site-1", "site-2", "site-3"]
RUN = {"model": MODEL, "participation": 0.7, "rounds": 3, "batch_size": 3, "local_epochs": 1}
"""Two of three sites take part in each round."""


class Power(Exception):
    """Somebody pulled the plug."""


def batches_of(name, toys, folder):
    """The pictures of each step, by the seed of the site's round."""
    seen, kind = {}, plugin("methods", name)
    step = kind.step

    def noted(self, local, batches, optimizer):
        seen.setdefault(local.seed, []).extend(batch["image"] for batch in batches)
        return step(self, local, batches, optimizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "step", noted)
        federate(toys, folder, {"name": name}, sites=SITES, **RUN)
    return seen


def trained(toys, folder, name, **changes):
    """All weights after a run: those of the federation, and the first site's own."""
    _, run, _ = federate(toys, folder, {"name": name}, **changes)
    return run.shared | kept(folder, "site-1")


@pytest.fixture(scope="module")
def undisturbed():
    return {}


@pytest.fixture
def whole(undisturbed, toys, tmp_path_factory, name):
    """The method's run, made once for all laws: (summary, Federation, Watched, folder)."""
    if name not in undisturbed:
        folder = tmp_path_factory.mktemp(name)
        undisturbed[name] = (*federate(toys, folder, {"name": name}, sites=SITES, **RUN), folder)
    return undisturbed[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", names("methods"))
class TestRoster:
    def test_server_and_site_draw_the_same_model(self, name):
        one, two = (build({"name": name}, MODEL)[1].state_dict() for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one.values(), two.values(), strict=True))

    def test_every_tensor_has_one_owner(self, name):
        method, model = build({"name": name}, MODEL)
        parts = method.partition(model)
        owned = [tensor for part in Partition.parts() for tensor in getattr(parts, part)]
        assert sorted(owned) == sorted(model.state_dict())

    def test_it_completes_and_trains(self, name, whole):
        summary, _, network, folder = whole
        assert (summary["status"], summary["reason"]) == ("COMPLETE", None)
        assert {tuple(sorted(entry["sites"])) for entry in summary["history"]} != {tuple(SITES)}
        _, model = build({"name": name}, MODEL)
        before = model.state_dict()
        after = network.updates[-1].shared | part(kept(folder, network.updates[-1].site), "personal/")
        moved = [n for n, p in model.named_parameters() if p.requires_grad and not torch.equal(after[n], before[n])]
        assert len(moved) > len(list(model.parameters())) / 2

    def test_server_state_survives_a_checkpoint(self, name, whole):
        """A server that comes back sends every site what the old one would have sent."""
        _, run, _, _ = whole
        again, model = build({"name": name}, MODEL)
        again.start(again.partition(model).pick(model, "shared"))
        tensors, record = run.method.server_state()
        again.restore({key: value.clone() for key, value in tensors.items()}, record)
        for site in SITES:
            for new, old in zip(
                again.payload(site, run.shared, run.view), run.method.payload(site, run.shared, run.view), strict=True
            ):
                assert list(new) == list(old)
                assert all(torch.equal(new[key], old[key]) for key in old)

    def test_killed_and_resumed_with_the_sites_in_another_order_it_ends_the_same(self, name, whole, toys, tmp_path):
        def plug(payload):  # dies when one site has already trained and saved round 3
            if payload.stage == "train" and payload.round == 3:
                raise Power

        changes = {"sites": SITES[::-1], **RUN}
        with pytest.raises(Power):
            federate(toys, tmp_path, {"name": name}, spoil=plug, **changes)
        summary, run, network = federate(toys, tmp_path, {"name": name}, **changes)
        assert {update.round for update in network.updates} == {3}
        assert (summary["final_hash"], summary["sites"]) == (whole[0]["final_hash"], whole[0]["sites"])
        for key, value in whole[1].method.server_state()[0].items():
            assert torch.equal(run.method.server_state()[0][key], value)

    def test_statistics_are_averaged_or_stay_and_are_never_stepped(self, name, whole):
        summary, run, network, _ = whole
        _, model = build({"name": name}, MODEL)
        statistics = {
            f"{path}.{buffer}"
            for path, module in model.named_modules()
            if isinstance(module, nn.BatchNorm2d)
            for buffer in ("running_mean", "running_var")
        }
        last = {u.site: u.shared for u in network.updates if u.round == len(summary["history"])}
        if travel := statistics & set(run.partition.shared):
            close(run.shared, mean(last), travel)
        assert statistics <= set(run.partition.shared) | set(run.partition.buffers)

    def test_what_rests_travels_and_stays_unchanged(self, name, toys, tmp_path):
        """All but the head rests from round 4 of 6 on: what a site receives and keeps of it remains the same."""
        changes = RUN | {"rounds": 6, "model": MODEL | {"staged": True}}
        _, run, network = federate(toys, tmp_path, {"name": name}, sites=SITES, **changes)
        resting = [n for n in run.partition.shared if n.startswith(("backbone.conv", "backbone.mix"))]
        first = build({"name": name}, MODEL)[1].state_dict()
        assert name == "local" or any(not torch.equal(first[n], run.shared[n]) for n in resting)
        for site in SITES:
            rounds = {p.round: p.shared for receiver, p in network.payloads if receiver == site}
            last, _ = run.method.payload(site, run.shared, run.view)
            late = [number for number in rounds if number > 3]
            assert all(torch.equal(rounds[number][n], last[n]) for number in late for n in resting), site
            own = [part(kept(tmp_path, site, number + 1), "personal/") for number in late]
            home = [n for n in own[-1] if "backbone.conv" in n or "backbone.mix" in n]
            assert all(torch.equal(state[n], own[-1][n]) for state in own for n in home), site

    def test_it_trains_on_the_same_batches_as_fedavg(self, name, undisturbed, toys, tmp_path):
        """Rows of a table differ by method, not by luck; what FedRep takes more comes after them."""
        if "batches" not in undisturbed:
            undisturbed["batches"] = batches_of("fedavg", toys, tmp_path / "fedavg")
        expected, found = undisturbed["batches"], batches_of(name, toys, tmp_path)
        assert found.keys() == expected.keys()
        for seed, batches in expected.items():
            assert len(batches) == len(found[seed]) or name == "fedrep"
            assert all(torch.equal(own, theirs) for own, theirs in zip(found[seed], batches, strict=False))

    def test_accumulated_batches_are_one_batch(self, name, toys, tmp_path):
        """Three batches of two cases make the step of one batch of six; what a method adds acts once per step."""
        if name == "fedala":
            pytest.skip("FedALA learns its mixing weights in steps of one batch each, which are not accumulated")
        changes = {"model": {"lora": True}, "rounds": 2, "local_epochs": 2}
        one, three = (
            trained(
                toys, tmp_path / str(accumulate), name, batch_size=6 // accumulate, accumulate=accumulate, **changes
            )
            for accumulate in (1, 3)
        )
        close(three, one)

    def test_it_trains_in_half_precision(self, name, toys, tmp_path):
        """The weights stay fp32 and lie near those of full precision, but are not the same."""
        changes = {"model": {"lora": True}, "rounds": 2}
        half, full = (trained(toys, tmp_path / kind, name, precision=kind, **changes) for kind in ("bf16", "fp32"))
        assert any(not torch.equal(value, full[key]) for key, value in half.items())
        for key, value in half.items():  # GPFL's valves see the rounding of all layers before them
            torch.testing.assert_close(value, full[key], atol=0.1, rtol=0.1, msg=key)

    def test_nothing_undeclared_or_personal_leaves(self, name, whole):
        _, run, network, folder = whole
        for update in network.updates:
            assert set(update.extra) <= run.method.sends
            assert set(update.facts) <= run.method.says
            assert set(update.shared) == set(run.partition.shared)
        for site in SITES:
            assert not set(part(kept(folder, site), "personal/")) & set(run.partition.shared)


@pytest.mark.parametrize(
    "name", [n for n in names("methods") if hasattr(plugin("methods", n).Settings, "share_buffers")]
)
def test_share_buffers_says_whether_statistics_travel(name):
    for share in (True, False):
        method, model = build({"name": name, "share_buffers": share}, MODEL)
        travel = [n for n in method.partition(model).shared if n.endswith(("running_mean", "running_var"))]
        assert bool(travel) is share


FULL = {"sites": 2, "rounds": 2}
EXACT = [
    ({"name": "fedprox", "mu": 0.0}, {"name": "fedavg"}, {}),
    ({"name": "fedprox", "mu": 0.0, "share_buffers": False}, {"name": "fedavg", "share_buffers": False}, {}),
    ({"name": "moon", "mu": 0.0}, {"name": "fedavg"}, {}),
    ({"name": "fedavgm", "momentum": 0.0}, {"name": "fedavg"}, {}),
    ({"name": "ditto"}, {"name": "fedavg"}, {}),  # the shared model
    ({"name": "scaffold"}, {"name": "fedavg"}, {"rounds": 1}),  # before there is any control variate
    ({"name": "fedbn"}, {"name": "fedavg"}, {"model": {"norm": "none"}}),
    (
        {"name": "fedsca", "num_layers": None, "aggregation": "mean", "beta": 0.0},
        {"name": "fedavg"},
        {"model": {"norm": "none"}},
    ),
]
NEAR = [
    ({"name": "fedadam", "beta1": 0.0, "beta2": 1.0, "tau": 0.5, "lr": 1.0}, {"name": "fedavg"}, {}),
    ({"name": "fedyogi", "beta1": 0.0, "beta2": 1.0, "tau": 0.5, "lr": 1.0}, {"name": "fedavg"}, {}),
    ({"name": "fedala", "eta": 1e-30}, {"name": "fedavg"}, {}),
    (
        {"name": "fedsca", "num_layers": None, "alpha": 0.0, "beta": 0.0},
        {"name": "fedavg"},
        {"model": {"norm": "none"}},
    ),
]


def pair(toys, tmp_path, methods, changes):
    changes = {"model": {"norm": "batch"}, **FULL, **changes}
    return [federate(toys, tmp_path / str(i), method, **changes) for i, method in enumerate(methods)]


def label(value):
    return ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None


@pytest.mark.slow
class TestEdges:
    @pytest.mark.parametrize(("edge", "plain", "changes"), EXACT, ids=label)
    def test_is_the_simpler_method_to_the_last_bit(self, toys, tmp_path, edge, plain, changes):
        (one, _, _), (two, _, _) = pair(toys, tmp_path, (edge, plain), changes)
        assert one["init_hash"] != one["final_hash"] == two["final_hash"]

    @pytest.mark.parametrize(("edge", "plain", "changes"), NEAR, ids=label)
    def test_is_the_simpler_method_but_for_rounding(self, toys, tmp_path, edge, plain, changes):
        (_, one, _), (_, two, _) = pair(toys, tmp_path, (edge, plain), changes)
        close(one.shared, two.shared)

    def test_ditto_without_pull_is_local(self, toys, tmp_path):
        ditto, local = pair(toys, tmp_path, ({"name": "ditto", "lam": 0.0}, {"name": "local"}), {})
        assert ditto[0]["sites"] == local[0]["sites"]
        for site in ("site-1", "site-2"):
            theirs = part(kept(tmp_path / "1", site), "personal/")
            ours = part(kept(tmp_path / "0", site), "personal/own.")
            assert all(torch.equal(ours[name], value) for name, value in theirs.items())

    def test_feddyn_starts_as_fedprox_taken_twice_as_far(self, toys, tmp_path):
        """With h = 0 a site's objective is FedProx's, and the server adds the mean step once more."""
        methods = ({"name": "feddyn", "alpha": 0.3}, {"name": "fedprox", "mu": 0.3})
        (_, dyn, _), (_, prox, _) = pair(toys, tmp_path, methods, {"rounds": 1, "model": {}})
        first = build({"name": "fedprox"})[1].state_dict()
        close(dyn.shared, {name: 2 * value - first[name] for name, value in prox.shared.items()})


@pytest.mark.parametrize("name", ["deer", "fedsa_lora"])
def test_lora_methods_refuse_a_model_without(toys, tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name} needs a model with LoRA .*; this one has none"):
        federate(toys, tmp_path, {"name": name})
