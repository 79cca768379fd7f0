"""One of three sites sends a bad update, in every order of arrival: the model is the mean of the other two."""

import itertools
import json
import math
import re
from dataclasses import replace

import pytest
import torch

from omnifm.config import SiteConfig
from omnifm.federation.server import Federation
from omnifm.federation.transport import Transport
from omnifm.update import Score
from tests.methods.reference import SIZES, Watched, toy_job

BAD, HONEST = "site-2", ("site-1", "site-3")
ORDERS = list(itertools.permutations(SIZES))
METHODS = {"fedavg": {"name": "fedavg"}, "omnifm": {"name": "omnifm", "dim": 8, "num_bands": 8}}


class Replay(Transport):
    """Sites that answer as in an earlier run of one round, in a given order, one of them spoilt."""

    def __init__(self, updates, order, spoil):
        self.updates, self.order, self.spoil = updates, order, spoil

    def sites(self):
        return sorted(SIZES)

    def exchange(self, payloads, accept):
        missing = {}
        for site in (site for site in self.order if site in payloads):
            stage, answers = payloads[site].stage, payloads[site].digest()
            update = replace(self.updates[stage, site], answers=answers)
            reason = accept(self.spoil(update) if site == BAD else update)
            missing |= {site: reason} if reason else {}
        return missing


@pytest.fixture(autouse=True)
def _no_versions(monkeypatch):
    """Looking them up takes longer than such a run."""
    monkeypatch.setattr("omnifm.federation.server.versions", dict)


@pytest.fixture(scope="module")
def recorded():
    return {}


@pytest.fixture
def replies(recorded, toys, tmp_path_factory, name):
    """Every reply of an undisturbed run of one round, by stage and site."""
    if name not in recorded:
        folder, updates = tmp_path_factory.mktemp(name), {}
        job = toy_job(METHODS[name], rounds=1)

        class Recorder(Watched):
            def exchange(self, payloads, accept):
                def keep(update):
                    updates[update.stage, update.site] = update
                    return accept(update)

                return super().exchange(payloads, keep)

        network = Recorder(job, {n: SiteConfig(str(toys / n), str(folder / n), "cpu") for n in SIZES})
        assert Federation(job, folder / "server", folder / "results", network).run()["status"] == "COMPLETE"
        recorded[name] = updates
    return recorded[name]


def replay(replies, tmp_path, name, order, spoil, **train):
    job = toy_job(METHODS[name], rounds=1, **train)
    run = Federation(job, tmp_path / "server", tmp_path / "results", Replay(replies, order, spoil))
    return run.run(), run


def mean(replies, sites, sizes=SIZES):
    """Of the sites' weights, by hand."""
    total = sum(sizes[site] for site in sites)
    sent = {site: replies["train", site].shared for site in sites}
    return {name: sum(sent[s][name].double() * sizes[s] for s in sites) / total for name in sent[sites[0]]}


def audit(tmp_path):
    lines = (tmp_path / "results/audit.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def trained(change):
    """A fault in the training reply alone."""
    return lambda update: change(update) if update.stage == "train" else update


def tensors(change):
    """A fault in the weights: `change(name, value)` of the largest tensor."""

    def spoil(update):
        name = max(update.shared, key=lambda n: update.shared[n].numel())
        return replace(update, shared=change(dict(update.shared), name))

    return trained(spoil)


def put(**where):
    return tensors(lambda shared, name: shared | {name: where["to"](shared[name])})


def poke(number):
    def to(value):
        value = value.clone()
        value.view(-1)[0] = number
        return value

    return put(to=to)


KINDS = {
    "nan": (poke(math.nan), "'.+' must be finite"),
    "infinity": (poke(math.inf), "'.+' must be finite"),
    "one huge value": (poke(3e38), "its change must have norm at most .* most in '.+'"),
    "a million times": (
        trained(lambda u: replace(u, shared={n: v * 1e6 for n, v in u.shared.items()})),
        "its change must have norm at most .* most in '.+'",
    ),
    "other shape": (put(to=lambda v: torch.zeros(7, 7)), r"'.+' must be .* \(7, 7\)"),
    "broadcastable": (put(to=lambda v: torch.ones(1)), r"'.+' must be .* \(1,\)"),
    "double": (put(to=lambda v: v.double()), "'.+' must be .*float64"),
    "integers": (put(to=lambda v: v.long()), "'.+' must be .*int64"),
    "a tensor less": (tensors(lambda shared, name: shared.pop(name) is None or shared), "lacks 1 shared tensors"),
    "a tensor more": (tensors(lambda shared, name: shared | {"head.weight": torch.ones(1)}), "are not shared"),
    "renamed": (tensors(lambda shared, name: shared | {"x": shared.pop(name)}), "lacks 1 shared tensors"),
    "empty": (trained(lambda u: replace(u, shared={})), "lacks .* shared tensors"),
    "an image": (trained(lambda u: replace(u, extra=u.extra | {"image": torch.ones(8, 8)})), "not declared"),
    "count": (trained(lambda u: replace(u, num_samples=10**9)), "num_samples must be positive and as described"),
    "no count": (trained(lambda u: replace(u, num_samples=-5)), "num_samples must be positive and as described"),
    "count of words": (trained(lambda u: replace(u, num_samples=True)), "num_samples must be a positive integer"),
    "loss": (trained(lambda u: replace(u, train_loss=math.nan)), "train_loss must be finite"),
    "score": (trained(lambda u: replace(u, after={"confidence": Score(math.inf, 1)})), "must be finite or None"),
    "replay": (trained(lambda u: replace(u, answers="of the round before")), "it answers another request"),
    "manifest": (trained(lambda u: replace(u, partition="mine")), "partition manifest differs"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
class TestBadUpdates:
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_contained_in_every_order_of_arrival(self, replies, tmp_path, name, kind):
        spoil, rule = KINDS[kind]
        expected, hashes = mean(replies, HONEST), set()
        for number, order in enumerate(ORDERS):
            summary, run = replay(replies, tmp_path / str(number), name, order, spoil)
            entry = summary["history"][0]
            assert (summary["status"], sorted(entry["sites"]), list(entry["missing"])) == ("SUBSET", [*HONEST], [BAD])
            for tensor, value in expected.items():
                torch.testing.assert_close(run.shared[tensor].double(), value, atol=1e-6, rtol=0)
            (line,) = audit(tmp_path / str(number))
            assert (line["site"], line["stage"], line["round"], line["rule"]) == (
                BAD,
                "train",
                1,
                entry["missing"][BAD],
            )
            assert re.search(rule, line["rule"]), line["rule"]
            if name == "omnifm":  # the seed of round 0 alone
                assert entry["bank"]["by_site"] == {"site-1": 2, "site-2": 1, "site-3": 2}
            hashes.add(summary["final_hash"])
        assert len(hashes) == 1

    def test_without_fault_all_three_count(self, replies, tmp_path, name):
        summary, run = replay(replies, tmp_path, name, ORDERS[3], lambda update: update)
        assert (summary["status"], summary["capped"]) == ("COMPLETE", {})
        assert not (tmp_path / "results/audit.jsonl").exists()
        for tensor, value in mean(replies, [*SIZES]).items():
            torch.testing.assert_close(run.shared[tensor].double(), value, atol=1e-6, rtol=0)

    def test_a_claimed_size_counts_at_most_three_times_the_median(self, replies, tmp_path, name):
        def boast(update):
            if update.stage == "describe":
                return replace(update, facts=update.facts | {"num_train": 10**9})
            return replace(update, num_samples=10**9)

        summary, run = replay(replies, tmp_path, name, ORDERS[0], boast)
        assert summary["capped"] == {BAD: 18}  # 3 x the median of 5, 6 and 10^9
        assert summary["history"][0]["sites"][BAD]["num_samples"] == 18
        for tensor, value in mean(replies, [*SIZES], SIZES | {BAD: 18}).items():
            torch.testing.assert_close(run.shared[tensor].double(), value, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("count", [10**400, -5, 1.5, math.nan, True, "many", None])
    def test_a_description_that_cannot_be_is_refused(self, replies, tmp_path, name, count):
        def boast(update):
            if update.stage == "describe":
                return replace(update, facts=update.facts | {"num_train": count})
            return update

        summary, run = replay(replies, tmp_path, name, ORDERS[0], boast)
        assert "facts must hold counts" in summary["absent"][BAD]
        for tensor, value in mean(replies, HONEST).items():
            torch.testing.assert_close(run.shared[tensor].double(), value, atol=1e-6, rtol=0)


def centroids(change):
    """A fault in the contribution to the bank."""

    def spoil(update):
        rows, modalities = change(update.extra["centroids"], update.facts["centroid_modalities"])
        return replace(update, extra=update.extra | {"centroids": rows}, facts={"centroid_modalities": modalities})

    return trained(spoil)


BANK = {
    "nan": (centroids(lambda c, m: (c * math.nan, m)), "finite and of unit length"),
    "width": (centroids(lambda c, m: (c[:, :4], m)), "at most 1 per modality"),
    "norm": (centroids(lambda c, m: (c * 10, m)), "finite and of unit length"),
    "complex": (centroids(lambda c, m: (c.to(torch.complex64), m)), "float32 in rows"),
    "flood": (centroids(lambda c, m: (c.repeat(10000, 1), m * 10000)), "at most 1 per modality"),
    "foreign modalities": (
        centroids(lambda c, m: (c.repeat(500, 1), [str(n) for n in range(500)])),
        "must be of modalities that the site has described; got 500 others",
    ),
    "no modality": (centroids(lambda c, m: (c, None)), "the modality of each centroid"),
}


@pytest.mark.parametrize("name", ["omnifm"])
class TestBadBankContributions:
    @pytest.mark.parametrize("kind", BANK)
    def test_is_dropped_and_the_weights_are_kept(self, replies, tmp_path, name, kind):
        spoil, rule = BANK[kind]
        summary, run = replay(replies, tmp_path, name, ORDERS[5], spoil)
        assert summary["status"] == "COMPLETE"
        assert summary["history"][0]["bank"]["by_site"] == {"site-1": 2, "site-2": 1, "site-3": 2}
        for tensor, value in mean(replies, [*SIZES]).items():
            torch.testing.assert_close(run.shared[tensor].double(), value, atol=1e-6, rtol=0)
        (line,) = audit(tmp_path)
        assert (line["site"], line["stage"]) == (BAD, "train")
        assert re.search(f"^weights kept, the rest dropped: nothing enters the bank: .*{rule}", line["rule"])

    def test_near_duplicates_enter_once(self, replies, tmp_path, name):
        job = METHODS[name] | {"num_centroids": 4}

        def copies(update):
            rows = torch.nn.functional.normalize(update.extra["centroids"].repeat(4, 1) + 1e-4 * torch.eye(4, 8), dim=1)
            return replace(
                update,
                extra=update.extra | {"centroids": rows},
                facts={"centroid_modalities": update.facts["centroid_modalities"] * 4},
            )

        run = Federation(
            toy_job(job, rounds=1),
            tmp_path / "server",
            tmp_path / "results",
            Replay(replies, ORDERS[0], trained(copies)),
        )
        assert run.run()["history"][0]["bank"]["by_site"] == {"site-1": 2, "site-2": 2, "site-3": 2}

    def test_hits_of_another_type_are_dropped(self, replies, tmp_path, name):
        spoil = trained(lambda u: replace(u, extra=u.extra | {"hits": u.extra["hits"].to(torch.complex64)}))
        summary, _ = replay(replies, tmp_path, name, ORDERS[0], spoil)
        assert summary["status"] == "COMPLETE"
        assert "shares, float32" in audit(tmp_path)[0]["rule"]

    @pytest.mark.parametrize("labels", [5, ["ball"], {"1": 5}, {"1": None}])
    def test_odd_label_names_do_not_stop_a_routed_average(self, replies, tmp_path, name, labels):
        """The toy task, like those without labels, does not look at what a site says of them."""

        def odd(update):
            if update.stage == "describe":
                return replace(update, facts=update.facts | {"data": {"labels": labels}})
            known = torch.tensor([0.0] * 8 + [0.5])
            return replace(update, extra={**update.extra, "profile": known}) if update.stage == "seed" else update

        job = toy_job(METHODS[name] | {"reach": 1e12}, rounds=1)
        run = Federation(job, tmp_path / "server", tmp_path / "results", Replay(replies, ORDERS[0], odd))
        assert run.run()["status"] == "COMPLETE"
        assert set(run.method.mixed) == set(SIZES)
        assert set(run.method.profiles) == {BAD}
