"""OmniFM's two halves: what a site uploads, what the server sends back, and every switch."""

import functools
import json
from dataclasses import replace

import pytest
import torch

from omnifm import simulation
from omnifm.config import SiteConfig
from omnifm.federation.intake import remove_refused
from omnifm.federation.server import Federation
from omnifm.method import ServerView
from omnifm.methods._contribution import centroids_of
from omnifm.methods.omnifm import OmniFM, Settings
from omnifm.plugins import load_task
from omnifm.site.stages import Site
from omnifm.update import Payload, Update
from tests.conftest import experiment, write_site
from tests.methods.reference import SIZES, Watched, federate, toy_job
from tests.methods.test_roster import SPEC

VIEW = ServerView()


def unit(*values):
    vector = torch.zeros(8)
    for position, value in values:
        vector[position] = value
    return torch.nn.functional.normalize(vector, dim=0)


def update(site, vector, *, stage="seed", number=0, hits=None, modality="MR", **shared):
    extra = {"centroids": vector[None]} | ({} if hits is None else {"hits": torch.tensor(hits)})
    return Update(
        site, stage, number, "", shared=shared, extra=extra, facts={"centroid_modalities": [modality]}, num_samples=1
    )


def seeded(**settings):
    method = OmniFM(Settings(dim=8, **settings))
    method.receive_seeds(
        [update("a", unit((0, 1.0))), update("b", unit((0, 1.0), (1, 0.2))), update("c", unit((2, 1.0)))], VIEW
    )
    return method


class TestServer:
    def test_a_site_gets_the_others_entries_nearest_first(self):
        _, extra = seeded().payload("a", {}, VIEW)
        torch.testing.assert_close(extra["prototypes"], torch.stack([unit((0, 1.0), (1, 0.2)), unit((2, 1.0))]))
        torch.testing.assert_close(
            extra["mean"], torch.stack([unit((0, 1.0)), unit((0, 1.0), (1, 0.2)), unit((2, 1.0))]).mean(0)
        )

    def test_payloads_name_no_site(self):
        shared, extra = seeded().payload("a", {"w": torch.ones(1)}, VIEW)
        assert set(shared) == {"w"}
        assert set(extra) == {"prototypes", "mean"}

    def test_with_its_own_entries_it_finds_itself_first(self):
        _, extra = seeded(exclude_self=False).payload("a", {}, VIEW)
        torch.testing.assert_close(extra["prototypes"][0], unit((0, 1.0)))

    def test_uncentred_sends_no_mean(self):
        assert set(seeded(center=False).payload("a", {}, VIEW)[1]) == {"prototypes"}

    def test_without_gskr_there_is_one_prototype_the_running_mean(self):
        method = seeded(retrieval="mean")
        expected = torch.stack([unit((0, 1.0)), unit((0, 1.0), (1, 0.2)), unit((2, 1.0))]).mean(0)
        torch.testing.assert_close(method.payload("a", {}, VIEW)[1]["prototypes"], expected[None])

    def test_the_shortlist_is_bounded(self):
        assert len(seeded(shortlist=1).payload("a", {}, VIEW)[1]["prototypes"]) == 1

    def test_aggregate_updates_bank_and_model(self):
        method = seeded()
        for site in ("a", "b"):
            method.payload(site, {}, VIEW)
        replies = [
            update(site, unit((5, 1.0)), stage="train", number=1, hits=[1.0, 0.0], w=torch.full((1,), value))
            for site, value in (("a", 1.0), ("b", 3.0))
        ]
        shared = method.aggregate({"w": torch.zeros(1)}, replies, VIEW)
        assert shared["w"].item() == 2.0
        assert method.monitors()["by_site"] == {"a": 2, "b": 2, "c": 1}

    @pytest.mark.parametrize(
        ("vector", "hits", "reason"),
        [
            (torch.full((8,), float("nan")), [0.5, 0.5], "finite and of unit length"),
            (10 * unit((0, 1.0)), [0.5, 0.5], "finite and of unit length"),
            (torch.ones(4) / 2, [0.5, 0.5], "at most 1 per modality"),
            (unit((0, 1.0)).double(), [0.5, 0.5], "float32 in rows"),
            (unit((0, 1.0)), [0.5], "hits must be 2 shares"),
            (unit((0, 1.0)), [2.0, 0.0], "hits must be 2 shares"),
        ],
    )
    def test_a_bad_contribution_leaves_the_bank_and_keeps_the_weights(self, vector, hits, reason):
        method = seeded()
        method.payload("a", {}, VIEW)
        before = method.bank.vectors.clone()
        reply = update("a", vector, stage="train", number=1, hits=hits, w=torch.ones(1))
        usable, reasons = remove_refused(method, reply, VIEW)
        shared = method.aggregate({"w": torch.zeros(1)}, [usable], VIEW)
        assert shared["w"].item() == 1.0
        assert torch.equal(method.bank.vectors, before)
        assert len(reasons) == 1 and reason in reasons[0]

    def test_checkpoint_and_restore_send_the_same_again(self):
        method = seeded()
        again = OmniFM(Settings(dim=8))
        again.restore(*method.server_state())
        for site in ("a", "b", "c"):
            for name, value in method.payload(site, {}, VIEW)[1].items():
                assert torch.equal(again.payload(site, {}, VIEW)[1][name], value)


class TestCentroids:
    @pytest.mark.parametrize(("alike", "odd", "expected"), [(5, 1, 1), (4, 2, 1), (3, 3, 2), (2, 0, 0)])
    def test_each_stands_for_three_patients(self, alike, odd, expected):
        """A cluster of one or two patients would be those patients: there are fewer centroids instead."""
        patients = torch.stack([unit((0, 1.0), (1, 0.01 * n)) for n in range(alike)] + [unit((5, 1.0))] * odd)
        extra, facts = centroids_of({"CT": patients}, most=2)
        centroids = extra.get("centroids", torch.zeros(0, 8))
        assert len(centroids) == len(facts["centroid_modalities"]) == expected
        if expected:
            members = (patients @ centroids.T).argmax(dim=1).bincount(minlength=expected)
            assert members.min() >= 3

    def test_one_too_many_costs_one_only(self):
        """Groups of 4, 4 and 1: two centroids are left of three."""
        patients = torch.stack([unit((0, 1.0))] * 4 + [unit((3, 1.0))] * 4 + [unit((5, 1.0), (3, 0.5))])
        extra, _ = centroids_of({"CT": patients}, most=3)
        assert extra["centroids"].shape == (2, 8)


class TestPartition:
    def parts(self, **settings):
        task = load_task(experiment())
        task.configure(SPEC)
        method = OmniFM(Settings(dim=8, **settings))
        return method.partition(method.build(task))

    def owners(self, names):
        return {name.split(".")[0] for name in names}

    def test_backbone_preset(self):
        parts = self.parts()
        assert self.owners(parts.shared) == {"backbone", "tokenizer", "fusion"}
        assert self.owners(parts.personal) == {"backbone", "prompts", "reader"}

    def test_spectral_preset_shares_the_tokenizer_alone(self):
        assert self.owners(self.parts(share="spectral").shared) == {"tokenizer"}

    def test_all_keeps_only_the_suffix_home(self):
        assert self.owners(self.parts(share="all").personal) == {"prompts"}

    def test_bank_only_keeps_the_tokenizer_home(self):
        assert "tokenizer" not in self.owners(self.parts(share_tokenizer=False).shared)


SWITCHES = [
    {"share": "spectral"},
    {"share": "all"},
    {"share_tokenizer": False},
    {"num_retrieved": 1},
    {"exclude_self": False},
    {"local_key": False},
    {"align_weight": 0.0},
    {"retrieval": "mean"},
    {"fusion": "film"},
    {"prompting": "linear"},
    {"low_pass": "physical", "keep_per_mm": 0.2},
    {"keep": 0.5},
    {"num_bands": 16},
    {"num_suffix": 1},
    {"ring": 1},
    {"share_buffers": True},
]


@pytest.fixture(scope="module")
def switched(federation):
    """Run OmniFM with these settings on two sites; the runs without a switch are kept for all tests."""

    @functools.cache
    def run(settings, model):
        method = {"name": "omnifm", "dim": 8, "num_bands": 8} | dict(settings)
        job = experiment(method=method, model=dict(model), train={"num_rounds": 2})
        return simulation.run(job, federation, ["site-1", "site-2"])

    return lambda settings, model: run(tuple(settings.items()), tuple(model.items()))


@pytest.mark.slow
@pytest.mark.parametrize("switch", SWITCHES, ids=lambda s: ",".join(s))
def test_every_switch_runs_and_changes_the_result(switched, switch):
    """ring and the pruning settings only show after more rounds: there it is the bank that must differ."""
    model = {"norm": "batch"} if "share_buffers" in switch else {}
    plain, changed = switched({}, model), switched(switch, model)
    assert changed["status"] == "COMPLETE"
    if "ring" in switch:
        assert changed["history"][-1]["bank"]["size"] < plain["history"][-1]["bank"]["size"]
    else:
        assert changed["final_hash"] != plain["final_hash"]


@pytest.mark.slow
class TestRoutedAverage:
    """Settings.reach: ours, measured beside the paper's one average."""

    def routed(self, **settings):
        method = OmniFM(Settings(dim=8, **settings))
        task = load_task(experiment())
        task.configure(SPEC)
        method.build(task)
        return method

    def test_a_site_receives_its_own_backbone_and_the_common_tokenizer(self):
        method = self.routed(reach=1.0)
        far = {"a": unit((0, 1.0)), "b": unit((1, 1.0))}
        seeds = [update(site, vector) for site, vector in far.items()]
        for seed in seeds:
            seed.extra["profile"] = torch.cat([0.999 * far[seed.site], torch.tensor([1e-3])])
        view = ServerView(1, sizes=dict.fromkeys(far, 1))
        method.receive_seeds(seeds, view)
        weight, token = "backbone.w", min(method.one_for_all)
        shared = {weight: torch.zeros(1), token: torch.zeros(1)}
        replies = []
        for site, value in (("a", 1.0), ("b", 3.0)):
            method.payload(site, shared, view)
            sent = {weight: torch.full((1,), value), token: torch.full((1,), value)}
            replies.append(update(site, far[site], stage="train", number=1, hits=[0.0], **sent))
        shared = method.aggregate(shared, replies, view)
        assert (shared[weight].item(), shared[token].item()) == (2, 2)
        assert {site: method.payload(site, shared, VIEW)[0][weight].item() for site in far} == {"a": 1, "b": 3}
        assert method.payload("a", shared, VIEW)[0][token].item() == 2
        assert method.payload("new", shared, VIEW)[0][weight].item() == 2
        again = self.routed(reach=1.0)
        again.restore(*method.server_state())
        assert again.payload("b", shared, VIEW)[0][weight].item() == 3
        assert torch.equal(again.profiles["a"], method.profiles["a"])

    def test_a_tiny_reach_sends_each_site_its_own_head_back(self, toys, tmp_path):
        method = {"name": "omnifm", "reach": 1e-9, "share": "all", "dim": 8, "num_bands": 8}
        _, run, network = federate(toys, tmp_path, method, rounds=1)
        for update in network.updates:
            received, _ = run.method.payload(update.site, run.shared, run.view)
            own = [name for name in received if name not in run.method.one_for_all]
            assert {name.split(".")[0] for name in own} == {"backbone", "reader"}
            assert all(torch.equal(received[name], update.shared[name]) for name in own)

    def test_a_profile_that_cannot_be_one_is_dropped_and_said(self):
        method = self.routed(reach=1.0)
        seed = update("a", unit((0, 1.0)))
        usable, reasons = remove_refused(
            method, replace(seed, extra=seed.extra | {"profile": torch.full((9,), 2.0)}), VIEW
        )
        method.receive_seeds([usable], VIEW)
        assert method.profiles == {}
        assert len(reasons) == 1 and "finite float32 numbers of unit tokens" in reasons[0]

    def test_an_absent_site_keeps_its_mixture_and_a_new_one_never_starts_from_foreign_labels(self):
        method = self.routed(reach=1.0)
        method.start({"w": torch.zeros(1)})
        labels = {"a": {"1": "polyp"}, "b": {"1": "polyp"}, "c": {"1": "vessel"}, "d": {"1": "vessel"}}

        def receive(number, **values):
            replies = [
                replace(update(site, unit((0, 1.0)), stage="train", number=number), shared={"w": torch.tensor([value])})
                for site, value in values.items()
            ]
            view = ServerView(number, sizes=dict.fromkeys("abcd", 1), labels=labels)
            shared = method.aggregate({"w": torch.full((1,), 5.0)}, replies, view)
            return {site: method.payload(site, shared, view)[0]["w"].item() for site in "abcd"}

        assert receive(1, a=1.0, b=3.0) == {"a": 2, "b": 2, "c": 0, "d": 0}
        assert receive(2, a=1.0, c=9.0) == {"a": 1, "b": 1, "c": 9, "d": 9}
        assert receive(3, a=4.0, b=4.0) == {"a": 4, "b": 4, "c": 9, "d": 9}
        assert method.payload("new", {"w": torch.full((1,), 5.0)}, VIEW)[0]["w"].item() == 5

    def test_a_late_site_sends_the_profile_that_it_would_have_sent_at_first(self, toys, tmp_path):
        """Of the initial tokenizer, with its first reply; from then on nobody asks."""
        method = {"name": "omnifm", "reach": 1.0, "dim": 8, "num_bands": 8}
        _, early, network = federate(toys, tmp_path / "early", method, sites=3)
        assert not any("profile" in payload.extra for _, payload in network.payloads)

        class Late(Watched):
            def sites(self):
                return [*SIZES][: 3 if run.round else 2]

        configs = {name: SiteConfig(str(toys / name), str(tmp_path / name), "cpu") for name in SIZES}
        late = Late(toy_job(method), configs)
        run = Federation(toy_job(method), tmp_path / "server", tmp_path / "results", late)
        assert run.run()["status"] == "COMPLETE"
        assert torch.equal(run.method.profiles["site-3"], early.method.profiles["site-3"])
        asked = [(site, payload.round) for site, payload in late.payloads if "profile" in payload.extra]
        assert asked == [("site-3", 2)]
        assert [u.site for u in late.updates if "profile" in u.extra] == ["site-3"]

    def test_what_rests_is_routed_no_further(self, toys, tmp_path):
        method = {"name": "omnifm", "reach": 0.3, "share": "all", "dim": 8, "num_bands": 8}
        _, run, network = federate(toys, tmp_path, method, sites=3, rounds=4, model={"staged": True})
        for site in SIZES:
            received = {payload.round: payload.shared for name, payload in network.payloads if name == site}
            last, _ = run.method.payload(site, run.shared, run.view)
            for name in ("backbone.conv.weight", "backbone.mix.weight"):
                assert torch.equal(received[3][name], received[4][name]) and torch.equal(received[4][name], last[name])
                assert not torch.equal(received[2][name], received[3][name])

    @pytest.mark.parametrize(("modalities", "sent"), [(("MR", "CT", "PT"), False), (("MR", "MR", "MR"), True)])
    def test_one_patient_in_three_modalities_is_no_three_patients(self, tmp_path, modalities, sent):
        """The same three images, of one patient, or of three who share a modality: a mean of one is that one."""
        folder = write_site(tmp_path / "site-1", num=5)
        listed = json.loads((folder / "dataset.json").read_text())
        for number, (item, modality) in enumerate(zip(listed["training"], modalities, strict=True)):
            item |= {"patient": str(number) if sent else "one", "modality": modality}
        (folder / "dataset.json").write_text(json.dumps(listed))
        routed = experiment(method={"name": "omnifm", "dim": 8, "num_bands": 8, "reach": 1.0})
        site = Site(routed, "site-1", SiteConfig(str(folder), str(tmp_path / "state"), "cpu"))
        spec = site.task.agree({"site-1": site.reply(Payload("describe", 0, "r")).facts["data"]})
        model, partition = site.build_model(spec)
        reply = site.reply(Payload("seed", 0, "r", spec, partition.pick(model, "shared"), {}))
        assert ("profile" in reply.extra) == sent

    @pytest.mark.parametrize(
        ("reach", "label", "same"),
        [(None, "ball", True), (1e12, "ball", True), (1e-9, "ball", False), (1e12, "vessel", False)],
    )
    def test_a_huge_reach_is_the_papers_average_where_label_names_agree(self, tmp_path, reach, label, same):
        """Sites of three patients each send a profile."""
        for name in ("a", "b"):
            write_site(tmp_path / name, seed=ord(name))
        listed = tmp_path / "b/dataset.json"
        listed.write_text(listed.read_text().replace('"ball"', f'"{label}"'))
        paper = simulation.run(experiment(), tmp_path, ["a", "b"])
        routed = simulation.run(experiment(method={"reach": reach}), tmp_path, ["a", "b"])
        assert (routed["sites"] == paper["sites"]) == same
