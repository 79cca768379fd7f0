"""A run that goes on with changed data: nobody whom it trained on is tested on, and what changed is said."""

import json
import shutil

import nibabel
import numpy as np
import pytest

from omnifm import simulation
from omnifm.config import SiteConfig
from omnifm.federation.roster import UNKNOWN_DATA
from omnifm.federation.server import Federation
from omnifm.records import DATA_CHANGED
from omnifm.simulation import InProcess, Watcher
from omnifm.site.patients import FILE
from omnifm.site.stages import OTHER_DATA, Site
from tests.conftest import experiment, write_site

JOB = experiment(method={"name": "fedavg"}, train={"num_rounds": 3})
SITES = ("a", "b")


class Power(Exception):
    """Somebody pulled the plug."""


class Plug(Watcher):
    """Pulls the plug when round 2 begins."""

    def asks(self, stage, round_number, site):
        if round_number == 2:
            raise Power


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("omnifm.federation.journal.write_report", lambda *_args: None)
    monkeypatch.setattr("os.fsync", lambda _handle: None)


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A run that was killed after round 1.  Site a leaves the splits to us; site b has its own."""
    folder = tmp_path_factory.mktemp("cut")
    for number, site in enumerate(SITES):
        write_site(folder / "data" / site, num=5, seed=number)
    edit(folder, "a", lambda record: record.update(training=everybody(record), validation=[], test=[]))
    with pytest.raises(Power):
        go_on(folder, watcher=Plug())
    return folder


@pytest.fixture
def run(cut, tmp_path):
    """A copy of the killed run."""
    return shutil.copytree(cut, tmp_path / "run")


def everybody(record):
    return record["training"] + record["validation"] + record["test"]


def edit(folder, site, change):
    """Change a site's dataset.json."""
    file = folder / "data" / site / "dataset.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def swap(record):
    """Put the first patient of the training split into the test split, and the other way round."""
    record["training"][0], record["test"][0] = record["test"][0], record["training"][0]


def add_patients(folder, site, numbers):
    for number in numbers:
        images = folder / "data" / site
        image = np.random.default_rng(number).normal(100, 20, (16, 16, 16)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), images / f"images/new{number}.nii.gz")
        shutil.copy(images / "labels/0.nii.gz", images / f"labels/new{number}.nii.gz")
    items = [
        {"image": f"images/new{n}.nii.gz", "label": f"labels/new{n}.nii.gz", "patient": f"new{n}"} for n in numbers
    ]
    edit(folder, site, lambda record: record["training"].extend(items))


def go_on(folder, **options):
    where = {"state_dir": folder / "state", "results_dir": folder / "results"}
    return simulation.run(options.pop("job", JOB), folder / "data", SITES, **where, **options)


def split_of(folder, site):
    """Split by the number of the image, as the site uses it."""
    splits = Site(JOB, site, SiteConfig(str(folder / "data" / site), str(folder / "state" / site))).datalist.splits()
    return {item["image"].name: split for split, items in splits.items() for item in items}


def changes(site="a", before_round=2, new=0, gone=0, changed=0, moved=0):
    return {
        "site": site,
        "before_round": before_round,
        "new": new,
        "gone": gone,
        "changed": changed,
        "moved": moved,
    }


@pytest.mark.slow
class TestRestart:
    def test_unchanged_data_change_nothing(self, run):
        summary = go_on(run)
        assert summary["data_changes"] == []
        assert (run / "results/rounds.jsonl").read_text().count("\n") == 3

    def test_new_patients_move_nobody_and_are_counted(self, run, caplog):
        before = split_of(run, "a")
        add_patients(run, "a", range(5))
        edit(run, "a", lambda record: record["training"].reverse())
        summary = go_on(run)
        after = split_of(run, "a")
        assert before.items() <= after.items()
        assert summary["data_changes"] == [changes(new=5)]
        assert "a: the data changed before round 2 (patients: 5 new)." in caplog.text
        assert sum(summary["sites"]["a"][f"num_{split}"] for split in ("train", "validation", "test")) == 10

    def test_who_went_and_comes_back_keeps_the_split(self, run):
        before, (one, *_) = split_of(run, "a"), json.loads((run / "data/a/dataset.json").read_text())["training"]
        edit(run, "a", lambda record: record["training"].pop(0))
        with pytest.raises(Power):
            go_on(run, watcher=Plug())
        edit(run, "a", lambda record: record["training"].append(one))
        assert go_on(run)["data_changes"] == [changes(gone=1), changes()]
        assert split_of(run, "a") == before

    def test_a_file_that_moves_a_patient_is_overruled(self, run):
        before = split_of(run, "b")
        edit(
            run,
            "b",
            lambda record: record.update(test=record["training"][:1], training=record["training"][1:] + record["test"]),
        )
        assert go_on(run)["data_changes"] == [changes("b", moved=2)]
        assert split_of(run, "b") == before

    def test_new_names_for_the_same_images_hide_nobody(self, run):
        before = split_of(run, "b")

        def rename(record):
            for item in everybody(record):
                item["patient"] = f"pseudonym {item['patient']}"
            swap(record)

        edit(run, "b", rename)
        go_on(run)
        assert split_of(run, "b") == before

    def test_a_replaced_image_is_told(self, run):
        data = run / "data/b"
        image = nibabel.load(data / "images/0.nii.gz")
        nibabel.save(nibabel.Nifti1Image(image.get_fdata(dtype=np.float32) + 1, image.affine), data / "images/0.nii.gz")
        assert go_on(run)["data_changes"] == [changes("b", changed=1)]

    def test_another_data_set_of_the_same_name_takes_no_part(self, run):
        shutil.rmtree(run / "data/a")
        write_site(run / "data/a", num=5, seed=77)
        summary = go_on(run)
        assert [entry["missing"] for entry in summary["history"]] == [{}, {"a": OTHER_DATA}, {"a": OTHER_DATA}]
        assert list(summary["sites"]) == ["b"]

    @pytest.mark.parametrize(("is_changed", "status"), [(False, "COMPLETE"), (True, "FAILED")])
    def test_a_site_that_lost_its_state_goes_on_with_the_same_data_only(self, run, is_changed, status):
        (run / "state/a/tiny" / FILE).unlink()
        if is_changed:
            add_patients(run, "a", [0])
        summary = go_on(run)
        assert summary["status"] == status
        assert (UNKNOWN_DATA in str(summary["reason"])) == is_changed

    def test_a_new_run_takes_the_splits_of_the_file(self, run):
        edit(
            run,
            "b",
            lambda record: record.update(test=record["training"][:1], training=record["training"][1:] + record["test"]),
        )
        other = experiment(method={"name": "fedavg"}, train={"num_rounds": 1, "lr": 0.02})
        summary = go_on(run, job=other)
        assert summary["data_changes"] == []
        assert split_of(run, "b")["0.nii.gz"] == "test"


class Network(InProcess):
    """Site a is restarted before the request `when`: (stage, round)."""

    def __init__(self, folder, when, change, offline=()):
        self.folder, self.when, self.change, self.offline = folder, when, change, offline
        self.now = 1
        super().__init__(
            JOB, {site: SiteConfig(str(folder / "data" / site), str(folder / "state" / site)) for site in SITES}
        )

    def sites(self):
        return [site for site in super().sites() if (site, self.now) not in self.offline]

    def exchange(self, payloads, accept):
        request = next(((payload.stage, payload.round) for payload in payloads.values()), None)
        if request == self.when:
            self.when = ("no", 0)
            self.change()
            self.open.clear()
        return super().exchange(payloads, accept)

    def closed(self, round_number, shared):
        self.now = round_number + 1


@pytest.mark.slow
class TestReturn:
    def federate(self, folder, *network):
        return Federation(JOB, folder / "server", folder / "results", Network(folder, *network)).run()

    @pytest.fixture
    def fresh(self, cut, tmp_path):
        shutil.copytree(cut / "data", tmp_path / "data")
        return tmp_path

    def test_a_site_that_comes_back_with_more_is_described_again(self, fresh):
        summary = self.federate(fresh, ("train", 2), lambda: add_patients(fresh, "a", range(3)))
        assert summary["history"][1]["missing"] == {"a": DATA_CHANGED}
        rounds = [entry["sites"].get("a", {}).get("num_samples") for entry in summary["history"]]
        assert rounds[1] is None
        assert rounds[2] >= rounds[0]
        assert summary["data_changes"] == [changes(before_round=3, new=3)]
        assert summary["status"] == "SUBSET"

    def test_before_the_evaluation_too(self, fresh):
        summary = self.federate(fresh, ("evaluate", 3), lambda: add_patients(fresh, "a", range(3)))
        assert sorted(summary["sites"]) == ["a", "b"]
        assert summary["data_changes"] == [changes(before_round=4, new=3)]
        assert summary["absent"] == {}

    def test_a_site_that_was_away_at_the_restart(self, run):
        """It is in the checkpoint, and did not hear of the restart when it comes back in round 3."""
        shutil.move(run / "state/server", run / "server")
        summary = self.federate(run, ("train", 2), lambda: add_patients(run, "a", [0]), [("a", 1), ("a", 2)])
        assert summary["data_changes"] == [changes(before_round=4, new=1)]
        assert summary["history"][2]["missing"] == {"a": DATA_CHANGED}
        assert sorted(summary["sites"]) == ["a", "b"]
