"""The server's side against sites that are small scripts: who is asked, what is refused, what survives."""

import json
import re
from dataclasses import replace

import pytest
import torch

from omnifm.config import SiteConfig
from omnifm.federation.server import Federation
from omnifm.federation.spool import Spool
from omnifm.federation.transport import Transport
from omnifm.simulation import InProcess
from omnifm.state import StateError, locked
from omnifm.tasks.segmentation import Segmentation
from omnifm.update import Score, Update
from tests.conftest import experiment, write_site
from tests.quality import test_inspection as test_check


@pytest.fixture(autouse=True)
def _no_report(request, monkeypatch):
    """Drawing plots is slow; one test looks at the real page."""
    if "keeps_the_contract" not in request.node.name:
        monkeypatch.setattr("omnifm.federation.journal.write_report", lambda *_args: None)


class Network(InProcess):
    """In-process sites with faults: `spoil(payload, update) -> update or reason`."""

    def __init__(self, job, federation, state, spoil=None, offline=lambda _round: ()):
        sites = {f.name: SiteConfig(str(f), str(state / f.name)) for f in sorted(federation.iterdir())}
        super().__init__(job, sites)
        self.spoil, self.offline, self.now, self.asked = spoil, offline, 0, []

    def sites(self):
        return [site for site in super().sites() if site not in self.offline(self.now + 1)]

    def opened(self, number, shared):
        self.now = number

    def exchange(self, payloads, accept):
        self.asked.append(sorted(payloads))
        missing = {}
        for name, payload in payloads.items():
            update = self._site(name).reply(payload)
            update = self.spoil(payload, update) if self.spoil else update
            reason = accept(update) if isinstance(update, Update) else update
            if reason:
                missing[name] = reason
        return missing


def federate(tmp_path, federation, job=None, **faults):
    job = job or experiment(method={"name": "fedavg"})
    network = Network(job, federation, tmp_path / "sites", **faults)
    run = Federation(job, tmp_path / "server", tmp_path / "results", network)
    return run.run(), run, network


def write_pictures(folder, num_classes, mode):
    """A site of six pictures per class."""
    items = [
        {"image": test_check.picture(folder, name, 6 * label + number, mode=mode), "label": label, "patient": name}
        for label in range(num_classes)
        for number, name in enumerate(f"{label}-{number}.png" for number in range(6))
    ]
    splits = {"training": items[::2] + items[1::6], "validation": items[3::6], "test": items[5::6]}
    test_check.site(folder, splits, labels={str(label): f"kind {label}" for label in range(num_classes)})


def only(stage, site, change):
    """A fault in one stage at one site."""
    return lambda payload, update: change(update) if (payload.stage, update.site) == (stage, site) else update


class TestRun:
    @pytest.mark.slow
    def test_summary_keeps_the_contract(self, tmp_path, federation):
        summary, _, _ = federate(tmp_path, federation, experiment())
        assert summary == json.loads((tmp_path / "results/summary.json").read_text())
        assert summary["status"] == "COMPLETE"
        assert summary["rounds"] == {"planned": 2, "completed": 2}
        assert summary["init_hash"] != summary["final_hash"]
        assert sorted(summary["sites"]) == ["site-1", "site-2", "site-3"]
        assert [json.loads(x) for x in (tmp_path / "results/rounds.jsonl").read_text().splitlines()] == summary[
            "history"
        ]
        assert (tmp_path / "results/report.html").stat().st_size > 5000
        after = [site["metrics"]["dice"]["after"] for site in summary["sites"].values()]
        assert summary["aggregate"]["dice"]["mean"] == pytest.approx(sum(after) / 3)
        assert summary["aggregate"]["dice"]["worst"] == min(after)
        assert summary["history"][0]["bank"]["size"] == 6  # three seeds of round 0 and three of round 1

    @pytest.mark.slow
    def test_the_same_seed_gives_the_same_model_and_another_another(self, tmp_path, federation):
        hashes = [
            federate(tmp_path / str(n), federation, experiment(seed=s))[0]["final_hash"]
            for n, s in enumerate((3, 3, 4))
        ]
        assert hashes[0] == hashes[1] != hashes[2]

    def test_the_result_is_the_mean_of_what_the_sites_sent(self, tmp_path, federation):
        sent = []

        def watch(payload, update):
            sent.append(update) if payload.stage == "train" and payload.round == 2 else None
            return update

        _, run, _ = federate(tmp_path, federation, spoil=watch)
        total = sum(update.num_samples for update in sent)
        for name, value in run.shared.items():
            mean = sum(update.shared[name].double() * update.num_samples for update in sent) / total
            torch.testing.assert_close(value.double(), mean, atol=1e-6, rtol=0)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("states", "said"), [((True, True, True), [1]), ((False, True, True), [2]), ((True, False, True), [1, 3])]
    )
    def test_that_prototypes_look_alike_is_said_when_it_comes_and_not_every_round(
        self, tmp_path, federation, monkeypatch, caplog, states, said
    ):
        caplog.set_level("INFO", "omnifm.federation")
        monkeypatch.setattr("omnifm.method.Method.monitors", lambda method: {"alike": next(method.states)})
        monkeypatch.setattr("omnifm.method.Method.states", iter(states), raising=False)
        federate(tmp_path, federation, experiment(method={"name": "fedavg"}, train={"num_rounds": 3}))
        told = re.findall(r"round (\d+): note: the spectral prototypes of all sites look alike", caplog.text)
        assert [int(number) for number in told] == said
        assert "WARNING" not in [record.levelname for record in caplog.records if "alike" in record.message]


class TestRefusals:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda u: replace(u, num_samples=0), "num_samples must be positive and as described; got 0"),
            (lambda u: replace(u, num_samples=True), "num_samples must be a positive integer; got True"),
            (lambda u: replace(u, num_samples=999), "num_samples must be positive and as described; got 999"),
            (lambda u: replace(u, extra={"image": torch.zeros(1)}), "it holds 1 tensors that are not declared"),
            (lambda u: replace(u, train_loss=float("nan")), "train_loss must be finite"),
            (lambda u: replace(u, seconds=float("inf")), "seconds must be finite; got inf"),
            (
                lambda u: replace(u, after={"dice": Score(float("nan"), 1)}),
                "metric 'dice' must be finite or None; got nan",
            ),
            (lambda u: replace(u, after={"dice": Score(0.5, -1)}), "metric 'dice' must count its cases"),
            (lambda u: replace(u, before={}), "it must score .* before and after"),
            (lambda u: replace(u, answers="old"), "it answers another request"),
            (lambda u: replace(u, partition="other"), "partition manifest differs"),
            (lambda u: replace(u, shared={}), "lacks .* shared tensors"),
            (lambda u: replace(u, shared={n: v * float("inf") for n, v in u.shared.items()}), "must be finite"),
            (lambda u: replace(u, pictures={"x": torch.zeros(1)}), "holds pictures of cases that are not synthetic"),
            (lambda u: replace(u, site="stranger"), "it was not asked"),
        ],
    )
    def test_a_bad_update_is_left_out_whole_and_the_run_goes_on(self, tmp_path, federation, change, reason):
        summary, run, _ = federate(tmp_path, federation, spoil=only("train", "site-2", change))
        assert summary["status"] == "SUBSET"
        assert "site-2" in summary["reason"]
        for entry in summary["history"]:
            assert sorted(entry["sites"]) == ["site-1", "site-3"]
            assert __import__("re").search(reason, entry["missing"]["site-2"])
        assert all(torch.isfinite(value).all() for value in run.shared.values())

    @pytest.mark.slow
    def test_every_refusal_is_one_line_of_the_audit(self, tmp_path, federation):
        bad = only("train", "site-2", lambda u: replace(u, shared=dict.fromkeys(u.shared, torch.ones(1))))
        job = experiment(method={"name": "fedavg"}, train={"num_rounds": 1})
        federate(tmp_path, federation, job, spoil=bad)
        (line,) = [json.loads(line) for line in (tmp_path / "results/audit.jsonl").read_text().splitlines()]
        assert list(line) == ["time", "round", "stage", "site", "rule"]
        assert (line["round"], line["stage"], line["site"]) == (1, "train", "site-2")
        assert "must be ('torch.float32'" in line["rule"]

    @pytest.mark.slow
    def test_a_full_disk_at_the_server_is_not_the_sites_fault(self, tmp_path, federation, monkeypatch):
        def full(_spool, update):
            if update.stage == "train" and update.site == "site-2":
                raise OSError(28, "No space left on device")
            kept(_spool, update)

        kept = Spool.add
        monkeypatch.setattr(Spool, "add", full)
        summary, _, _ = federate(tmp_path, federation, experiment(method={"name": "fedavg"}, train={"num_rounds": 1}))
        missing = summary["history"][0]["missing"]
        assert missing == {"site-2": "the server cannot store it: No space left on device"}

    @pytest.mark.slow
    def test_a_reply_that_was_not_stored_is_not_judged(self, tmp_path, federation, monkeypatch):
        """Its change is out of size, too, and there is nothing to leave out."""
        kept = Spool.add

        def full(spool, update):
            if (update.stage, update.site) == ("train", "site-3"):
                raise OSError(28, "No space left on device")
            kept(spool, update)

        monkeypatch.setattr(Spool, "add", full)
        huge = only("train", "site-3", lambda u: replace(u, shared={k: v + 1e6 for k, v in u.shared.items()}))
        job = experiment(method={"name": "fedavg"}, train={"num_rounds": 1})
        summary, _, _ = federate(tmp_path, federation, job, spoil=huge)
        assert summary["status"] == "SUBSET"
        assert "No space left" in summary["history"][0]["missing"]["site-3"]

    def test_data_facts_of_another_form_end_the_run_in_one_line(self, tmp_path, federation, monkeypatch):
        """Each site's are well alone, and only together they break the task."""
        agree = Segmentation.agree

        def together(task, facts):
            return agree(task, facts) if len(facts) == 1 else sorted(["3", 1])

        monkeypatch.setattr(Segmentation, "agree", together)
        summary, _, _ = federate(tmp_path, federation)
        assert summary["status"] == "FAILED"
        assert summary["reason"].startswith("sites' data facts must have one form; got Type")

    def test_a_second_reply_is_not_counted(self, tmp_path, federation):
        def twice(payload, update):
            network.extra = update
            return update

        job = experiment(method={"name": "fedavg"}, train={"num_rounds": 1})
        network = Network(job, federation, tmp_path / "sites")
        run = Federation(job, tmp_path / "server", tmp_path / "results", network)
        replies = []
        original = network.exchange
        network.exchange = lambda payloads, accept: original(
            payloads, lambda u: (accept(u), replies.append(accept(u)))[0]
        )
        assert run.run()["status"] == "COMPLETE"
        assert set(replies) == {"it was not asked, or has replied already"}

    def test_differing_data_refuse_the_federation_by_name(self, tmp_path):
        write_site(tmp_path / "f/site-1")
        other = write_site(tmp_path / "f/site-2") / "dataset.json"
        other.write_text(other.read_text().replace('"ball"', '"ball", "2": "cube"'))
        summary, _, _ = federate(tmp_path, tmp_path / "f")
        assert summary["status"] == "FAILED"
        assert (
            "sites must agree on label values; got {'site-1': ['0', '1'], 'site-2': ['0', '1', '2']"
            in summary["reason"]
        )


@pytest.mark.slow
class TestParticipation:
    def test_half_of_the_sites_are_drawn_by_the_seed(self, tmp_path, federation):
        job = experiment(method={"name": "fedavg"}, train={"num_rounds": 4, "participation": 0.4, "min_sites": 1})
        _, _, network = federate(tmp_path, federation, job)
        drawn = network.asked[1:-1]
        assert {len(sites) for sites in drawn} == {1}
        assert len({tuple(sites) for sites in drawn}) > 1
        _, _, again = federate(tmp_path / "again", federation, job)
        assert again.asked == network.asked

    def test_a_disconnected_site_is_never_asked_and_is_missing(self, tmp_path, federation):
        summary, _, network = federate(tmp_path, federation, offline=lambda number: ("site-3",) if number > 1 else ())
        assert network.asked[2] == ["site-1", "site-2"]
        assert summary["history"][1]["missing"] == {"site-3": "disconnected"}
        assert summary["status"] == "SUBSET"

    def test_a_site_that_goes_before_the_evaluation_is_missing(self, tmp_path, federation):
        gone = {"offline": lambda number: ("site-3",) if number == 3 else ()}  # after the second, last round
        summary, _, _ = federate(tmp_path, federation, experiment(method={"name": "fedavg"}), **gone)
        assert sorted(summary["sites"]) == ["site-1", "site-2"]
        assert (summary["status"], summary["absent"]) == ("SUBSET", {"site-3": "disconnected"})

    def test_who_came_back_and_was_not_drawn_is_not_missing(self, tmp_path, federation):
        job = experiment(train={"num_rounds": 3, "participation": 0.34, "min_sites": 1})
        summary, _, _ = federate(tmp_path, federation, job, spoil=only("seed", "site-1", lambda u: "timeout"))
        assert [entry["missing"] for entry in summary["history"]] == [{}] * 3
        assert summary["status"] == "SUBSET"

    def test_of_two_late_sites_that_contradict_each_other_the_first_stays(self, tmp_path):
        job = self.pictures(tmp_path / "f", 2, "L")
        for number, names in enumerate([["a"], ["a"], ["a", "x"], ["a", "y"], ["a"]], 1):
            folder = tmp_path / f"f/site-{number}"
            write_pictures(folder, 2, "L") if number > 3 else None
            record = json.loads((folder / "dataset.json").read_text())
            record["labels"] = {str(value): name for value, name in enumerate(names)}
            (folder / "dataset.json").write_text(json.dumps(record))
        job = replace(job, train=replace(job.train, num_rounds=3))
        late = {1: ("site-3", "site-4", "site-5"), 2: ("site-5",)}
        summary, _, _ = federate(tmp_path, tmp_path / "f", job, offline=lambda number: late.get(number, ()))
        assert [sorted(entry["sites"]) for entry in summary["history"]][1:] == [
            ["site-1", "site-2", "site-3"],
            ["site-1", "site-2", "site-3", "site-5"],
        ]
        assert "site-4" in summary["history"][1]["missing"]

    def test_a_late_site_is_described_and_takes_part(self, tmp_path, federation):
        job = experiment(train={"num_rounds": 3})
        summary, _, _ = federate(tmp_path, federation, job, offline=lambda number: ("site-3",) if number == 1 else ())
        assert sorted(summary["history"][-1]["sites"]) == ["site-1", "site-2", "site-3"]
        assert summary["history"][-1]["bank"]["by_site"]["site-3"] >= 1

    def test_a_late_site_with_other_labels_is_left_out(self, tmp_path):
        for number in (1, 2, 3):
            write_site(tmp_path / f"f/site-{number}", seed=number)
        other = tmp_path / "f/site-3/dataset.json"
        other.write_text(other.read_text().replace('"ball"', '"ball", "2": "cube"'))
        job = experiment(method={"name": "fedavg"}, train={"num_rounds": 2})
        faults = {"offline": lambda number: ("site-3",) if number == 1 else ()}
        summary, _, _ = federate(tmp_path, tmp_path / "f", job, **faults)
        assert sorted(summary["history"][-1]["sites"]) == ["site-1", "site-2"]
        assert "sites must agree on label values" in summary["history"][-1]["missing"]["site-3"]

    @pytest.mark.parametrize(
        ("classes", "mode", "reason"),
        [
            (3, "L", "its labels must be among the 2 that this run began with; got ['2']"),
            (2, "RGB", "its images must have at most the 1 channel(s) that this run began with; got 3"),
        ],
    )
    def test_a_late_site_that_the_network_cannot_take_is_left_out(self, tmp_path, classes, mode, reason):
        """It would fail in every round."""
        job = self.pictures(tmp_path / "f", classes, mode)
        late = {"offline": lambda number: ("site-3",) if number == 1 else ()}
        summary, _, network = federate(tmp_path, tmp_path / "f", job, **late)
        assert [entry["missing"] for entry in summary["history"]] == [{}, {"site-3": reason}]
        assert network.asked[-1] == ["site-1", "site-2"]

    def test_a_resumed_run_keeps_its_labels(self, tmp_path):
        job = self.pictures(tmp_path / "f", 3, "L")

        def plug(payload, update):
            if payload.round == 2:
                raise Power
            return update

        with pytest.raises(Power):
            federate(tmp_path, tmp_path / "f", job, spoil=plug, offline=lambda _number: ("site-3",))
        summary, run, _ = federate(tmp_path, tmp_path / "f", job)
        assert [*run.spec["labels"]] == ["0", "1"]
        assert "must be among the 2 that this run began with" in summary["absent"]["site-3"]
        assert [*summary["history"][-1]["sites"]] == ["site-1", "site-2"]

    def pictures(self, folder, classes, mode):
        """Two sites of two classes and grey pictures, and a third."""
        for number in (1, 2):
            write_pictures(folder / f"site-{number}", 2, "L")
        write_pictures(folder / "site-3", classes, mode)
        task, model = {"name": "classification"}, {"channels": (8, 8, 8, 8)}
        return replace(experiment(method={"name": "fedavg"}), task=task, model=model)

    def test_one_reply_of_two_is_no_quorum(self, tmp_path, federation):
        """Otherwise one site's own weights would become everybody's model."""
        job = experiment(method={"name": "fedavg"}, train={"num_rounds": 1})
        faults = {"offline": lambda number: ("site-2", "site-3") if number == 1 and federate.started else ()}
        federate.started = False

        def watch(payload, update):
            federate.started = True  # gone once they have described their data
            return update

        summary, _, _ = federate(tmp_path, federation, job, spoil=watch, **faults)
        assert summary["final_hash"] == summary["init_hash"]
        assert summary["status"] == "FAILED"
        assert summary["reason"].startswith("a round must have 2 accepted replies; none had")

    def test_without_quorum_the_model_stays_and_patience_ends(self, tmp_path, federation):
        job = experiment(method={"name": "fedavg"}, train={"num_rounds": 5, "min_sites": 3})
        summary, _, _ = federate(tmp_path, federation, job, spoil=only("train", "site-1", lambda u: "trainer died"))
        assert summary["status"] == "FAILED"
        assert "3 rounds in a row had fewer than min_sites" in summary["reason"]
        assert summary["rounds"]["completed"] == 3
        assert summary["final_hash"] == summary["init_hash"]

    def test_submitted_again_the_rounds_without_quorum_are_done_again(self, tmp_path, federation):
        """From the personal state before the first of them, though the sites trained in each."""
        job = experiment(method={"name": "fedper"}, train={"num_rounds": 4})

        def lost(payload, update):
            return "timeout" if payload.stage == "train" and payload.round > 1 and update.site != "site-1" else update

        failed, _, _ = federate(tmp_path / "cut", federation, job, spoil=lost)
        assert (failed["status"], failed["rounds"]["completed"]) == ("FAILED", 4)
        again, _, _ = federate(tmp_path / "cut", federation, job)
        whole, _, _ = federate(tmp_path / "whole", federation, job)
        assert [sorted(entry["sites"]) for entry in again["history"]] == [["site-1", "site-2", "site-3"]] * 4
        assert (again["status"], again["final_hash"]) == ("COMPLETE", whole["final_hash"])


class Power(Exception):
    """Somebody pulled the plug."""


@pytest.mark.slow
class TestResume:
    @pytest.mark.parametrize(
        "method", [{"name": "omnifm", "dim": 8, "num_bands": 8}, {"name": "fedper", "capacity": "matched"}]
    )
    def test_a_killed_run_resumes_to_the_undisturbed_result(self, tmp_path, federation, method):
        job = experiment(method=method, train={"num_rounds": 4, "participation": 0.7})
        whole, _, _ = federate(tmp_path / "whole", federation, job)

        def plug(payload, update):  # dies when one site has already trained and saved round 3
            if payload.stage == "train" and payload.round == 3:
                raise Power
            return update

        with pytest.raises(Power):
            federate(tmp_path / "cut", federation, job, spoil=plug)
        resumed, _, network = federate(tmp_path / "cut", federation, job)
        assert len(network.asked) == 4  # describe, rounds 3 and 4, evaluate: neither seeds nor rounds 1 and 2 again
        assert resumed["final_hash"] == whole["final_hash"]
        assert resumed["sites"] == whole["sites"]

    def test_a_damaged_checkpoint_falls_back_one_round(self, tmp_path, federation):
        job = experiment(train={"num_rounds": 3})
        whole, _, _ = federate(tmp_path / "whole", federation, job)

        def plug(payload, update):
            if payload.stage == "train" and payload.round == 3:
                raise Power
            return update

        with pytest.raises(Power):
            federate(tmp_path / "cut", federation, job, spoil=plug)
        newest = tmp_path / "cut/server/tiny/server.2.state"
        newest.write_bytes(newest.read_bytes()[:-7])
        resumed, _, _ = federate(tmp_path / "cut", federation, job)
        assert resumed["final_hash"] == whole["final_hash"]

    def test_a_completed_run_starts_afresh_personal_state_included(self, tmp_path, federation):
        job = experiment(method={"name": "fedper"})
        first, _, _ = federate(tmp_path, federation, job)
        second, _, _ = federate(tmp_path, federation, job)
        assert second["final_hash"] == first["final_hash"]
        assert second["rounds"]["completed"] == 2

    def test_a_warm_start_keeps_the_personal_state(self, tmp_path, federation):
        first, _, _ = federate(tmp_path, federation, experiment(method={"name": "fedper"}))
        warm = experiment(method={"name": "fedper"}, train={"warm_start": True})
        assert federate(tmp_path, federation, warm)[0]["final_hash"] != first["final_hash"]

    def test_a_warm_start_killed_in_its_first_round_starts_warm_again(self, tmp_path, federation):
        warm = experiment(method={"name": "fedper"}, train={"warm_start": True})

        def plug(payload, update):  # every site but the last has already saved round 1
            if (payload.stage, update.site) == ("train", "site-3"):
                raise Power
            return update

        for folder in ("whole", "cut"):
            federate(tmp_path / folder, federation, experiment(method={"name": "fedper"}))
        whole, _, _ = federate(tmp_path / "whole", federation, warm)
        with pytest.raises(Power):
            federate(tmp_path / "cut", federation, warm, spoil=plug)
        assert federate(tmp_path / "cut", federation, warm)[0]["final_hash"] == whole["final_hash"]

    def test_two_runs_of_one_job_exclude_each_other(self, tmp_path, federation, monkeypatch):
        monkeypatch.setattr("omnifm.federation.server.LOCK_WAIT_S", 0.1)
        with (
            locked(tmp_path / "server/tiny"),
            pytest.raises(StateError, match="must belong to one run at a time"),
        ):
            federate(tmp_path, federation)

    def test_another_configuration_or_seed_does_not_resume(self, tmp_path, federation):
        federate(tmp_path, federation, experiment(method={"name": "fedavg"}))
        _, _, network = federate(tmp_path, federation, experiment(method={"name": "fedavg"}, train={"lr": 0.02}))
        assert len(network.asked) == 4


def test_spool_is_ordered_by_site_and_leaves_nothing(tmp_path):
    spool = Spool(tmp_path / "spool")
    for site in ("c", "a", "b"):
        spool.add(Update(site, "train", 1, "", shared={"w": torch.ones(1)}))
    assert [update.site for update in spool] == [update.site for update in spool] == ["a", "b", "c"]
    spool.clear()
    assert not list((tmp_path / "spool").iterdir())


def test_transport_is_a_contract():
    with pytest.raises(TypeError, match="abstract"):
        Transport()
