"""One site: what it keeps, what it returns, and what never leaves."""

import json
import re
import shutil
import stat

import nibabel
import numpy as np
import pytest
import torch

from omnifm.config import SiteConfig
from omnifm.data.reader import Reader
from omnifm.data.redaction import words_of
from omnifm.data.refusal import RefusedImage
from omnifm.quality import inspection as check
from omnifm.quality.inspection import check_site
from omnifm.site.device import device_named
from omnifm.site.stages import Site
from omnifm.state import History, decode
from omnifm.update import Payload, Score
from tests.conftest import experiment, write_site


def open_site(tmp_path, job=None, **config):
    folder = tmp_path / "data"
    if not folder.exists():
        write_site(folder)
    return Site(job or experiment(), "site-1", SiteConfig(str(folder), str(tmp_path / "state"), "cpu", **config))


def spec(site):
    facts = site.reply(Payload("describe", 0, "run")).facts
    return site.task.agree({"site-1": facts["data"]})


def payload(site, stage="train", number=1, run="run", **changes):
    agreed = spec(site)
    model, partition = site.build_model(agreed)
    extra = {"prototypes": torch.eye(3, 8), "mean": torch.zeros(8)}
    return Payload(stage, number, run, agreed, partition.pick(model, "shared"), extra, **changes)


def rewrite(folder, changes):
    """Change the first training items; a value of None drops the key."""
    record = json.loads((folder / "dataset.json").read_text())
    for item, change in zip(record["training"], changes, strict=False):
        item.update(change)
    record["training"] = [{k: v for k, v in item.items() if v is not None} for item in record["training"]]
    (folder / "dataset.json").write_text(json.dumps(record))


class TestDescribe:
    def test_reports_counts_and_data_facts_and_nothing_else(self, tmp_path):
        update = open_site(tmp_path).reply(Payload("describe", 0, "run"))
        listed = update.facts.pop("list")
        assert re.fullmatch("[0-9a-f]{64}", listed.pop("digest"))
        assert listed == {"known": False, "new": 0, "gone": 0, "changed": 0, "moved": 0}
        assert update.facts == {
            "num_train": 4,
            "num_validation": 1,
            "num_test": 1,
            "num_refused": 0,
            "modalities": {"MR": 6},
            "source": "site",
            "split_by": "patient",
            "data": {
                "labels": {"0": "background", "1": "ball"},
                "dims": 3,
                "channels": 1,
                "spacing_mm": [1.0, 1.0, 1.0],
                "finest_mm": [1.0, 1.0, 1.0],
                "extent_mm": [16.0, 16.0, 16.0],
                "median_mm": [16.0, 16.0, 16.0],
            },
        }
        assert update.pack()[0] == {}

    def test_a_bad_case_is_put_aside_with_a_reason_and_the_rest_goes_on(self, tmp_path):
        folder = write_site(tmp_path / "data")
        broken = np.full((16, 16, 16), np.nan, np.float32)
        nibabel.save(nibabel.Nifti1Image(broken, np.eye(4)), folder / "images/2.nii.gz")
        site = open_site(tmp_path)
        assert site.reply(Payload("describe", 0, "run")).facts["num_refused"] == 1
        record = json.loads((tmp_path / "state/tiny/quarantine.json").read_text())["refused"]
        assert [(r["split"], r["position"], r["reason"]) for r in record] == [("training", 2, "non_finite")]
        assert site.reply(payload(site)).num_samples == 3

    def test_too_many_bad_cases_stop_the_site(self, tmp_path):
        folder = write_site(tmp_path / "data")
        for case in (1, 2):
            (folder / f"images/{case}.nii.gz").write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"2 of 6 cases \(33.3 %\) cannot be used; at most 5 % may"):
            open_site(tmp_path)
        record = json.loads((tmp_path / "state/tiny/quarantine.json").read_text())["refused"]
        assert [r["position"] for r in record] == [1, 2]  # the hospital's staff learn which ones

    def test_bad_data_are_read_once_until_a_file_changes(self, tmp_path, monkeypatch):
        """A late site is asked in every round, and everybody waits for its answer."""
        folder, read = write_site(tmp_path / "data"), []
        images = sorted((folder / "images").iterdir())
        for file in images[:3]:
            file.write_bytes(b"no image")
        inspect = check.inspect
        monkeypatch.setattr(check, "inspect", lambda *args, **named: read.append(1) or inspect(*args, **named))
        for _ in range(3):
            with pytest.raises(ValueError, match="3 of 6 cases"):
                open_site(tmp_path)
        assert len(read) == 1
        shutil.copy(images[3], images[0])
        with pytest.raises(ValueError, match="2 of 6 cases"):
            open_site(tmp_path)

    def test_one_image_in_two_splits_stops_the_site(self, tmp_path):
        """The message travels, so it counts; the site's own page says which."""
        folder = write_site(tmp_path / "data")
        for part in ("images", "labels"):
            shutil.copy(folder / part / "0.nii.gz", folder / part / "5.nii.gz")
        with pytest.raises(ValueError, match=r"^an image must be in one split only; got 1 in test and training$"):
            open_site(tmp_path)
        assert "test 0, training 0" in (tmp_path / "state/tiny/check.html").read_text()
        assert not (tmp_path / "state/tiny/check.state").exists()

    def test_the_outcome_stays_in_the_state_folder(self, tmp_path):
        """Page, list of refusals and numbers; each case was read once, and again by nobody."""
        open_site(tmp_path)
        files = sorted((tmp_path / "state/tiny").iterdir())
        assert [file.name for file in files] == ["check.html", "check.state", "quarantine.json"]
        assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
        _, kept = decode(files[1].read_bytes())
        assert kept["report"] == check_site(tmp_path / "data")[0]

    def test_every_case_is_read_once(self, tmp_path, monkeypatch):
        asked, ask = [], Reader.ask
        monkeypatch.setattr(Reader, "ask", lambda *args, **more: (asked.append(more["what"]), ask(*args, **more))[1])
        open_site(tmp_path)
        assert (asked.count("image"), asked.count("mask")) == (6, 6)

    def test_the_check_is_repeated_only_when_a_file_changed(self, tmp_path, monkeypatch):
        site = open_site(tmp_path)
        monkeypatch.setattr("omnifm.quality.inspection.inspect", lambda *_a, **_k: pytest.fail("checked again"))
        assert open_site(tmp_path).case_facts == site.case_facts
        monkeypatch.undo()
        (tmp_path / "data/images/1.nii.gz").write_bytes(b"no image")
        assert open_site(tmp_path).num_refused == 1


class TestTrain:
    def test_returns_the_shared_part_and_answers_its_request(self, tmp_path):
        site = open_site(tmp_path)
        asked = payload(site)
        update = site.reply(asked)
        assert update.answers == asked.digest()
        assert sorted(update.shared) == sorted(asked.shared)
        assert any(not torch.equal(update.shared[name], asked.shared[name]) for name in asked.shared)
        assert update.num_samples == 4
        assert set(update.before) == set(update.after) == {"dice", "iou", "hd95_mm"}

    def test_nothing_personal_is_in_the_update(self, tmp_path):
        site = open_site(tmp_path)
        update = site.reply(payload(site))
        _, partition = site.build_model(spec(site))
        assert not set(update.shared) & (set(partition.personal) | set(partition.buffers))
        assert set(update.extra) == {"centroids", "hits"}
        assert update.extra["centroids"].shape == (1, 8)  # one centroid over patients, no token of an image
        assert update.pictures == {}

    def test_what_the_method_does_not_declare_is_not_sent(self, tmp_path, monkeypatch):
        site = open_site(tmp_path)
        asked = payload(site)
        monkeypatch.setattr(site.method, "finish", lambda local: ({"image": torch.zeros(4)}, {}))
        with pytest.raises(ValueError, match="nothing is sent: it holds 1 tensors that are not declared"):
            site.reply(asked)
        monkeypatch.setattr(site.method, "finish", lambda local: ({}, {"patients": ["p1"]}))
        with pytest.raises(ValueError, match="nothing is sent: it holds 1 facts that are not declared"):
            site.reply(asked)

    def test_few_patients_have_no_centroid(self, tmp_path):
        """The mean of one patient is that patient: below three a modality sends none."""
        write_site(tmp_path / "data", num=4)  # two for training
        site = open_site(tmp_path)
        assert set(site.reply(payload(site)).extra) == {"hits"}

    def test_three_questions_about_one_image_are_not_three_patients(self, tmp_path):
        """Where no patient is named an image counts as one, else three questions would send its own token."""
        nobody = {"patient": None}
        rewrite(write_site(tmp_path / "data", num=6), [nobody, *[nobody | {"image": "images/1.nii.gz"}] * 3])
        site = open_site(tmp_path)
        assert set(site.reply(payload(site)).extra) == {"hits"}

    def test_an_image_without_a_patient_is_nobody_who_is_named(self, tmp_path):
        rewrite(write_site(tmp_path / "data", num=5), [{"patient": "1"}, {"patient": None}, {"patient": None}])
        site = open_site(tmp_path)
        assert site.reply(payload(site)).extra["centroids"].shape == (1, 8)

    def test_a_centroid_stands_for_at_least_three_patients(self, tmp_path):
        write_site(tmp_path / "data", num=9)  # seven for training
        site = open_site(tmp_path, experiment(method={"name": "omnifm", "dim": 8, "num_bands": 8, "num_centroids": 5}))
        assert site.reply(payload(site)).extra["centroids"].shape == (1, 8)

    def test_the_same_request_gives_the_same_reply_in_a_new_process(self, tmp_path):
        first = open_site(tmp_path / "a")
        second = open_site(tmp_path / "b")
        for name in ("a", "b"):
            assert (tmp_path / name).exists()
        replies = [site.reply(payload(site)) for site in (first, second)]
        assert replies[0].train_loss == replies[1].train_loss
        assert all(torch.equal(replies[0].shared[name], replies[1].shared[name]) for name in replies[0].shared)

    def test_the_number_of_threads_is_restored(self, tmp_path):
        torch.set_num_threads(2)
        site = open_site(tmp_path)
        site.reply(payload(site))
        assert torch.get_num_threads() == 2

    def test_refuses_a_shared_part_that_is_not_the_manifests(self, tmp_path):
        site = open_site(tmp_path)
        asked = payload(site)
        asked.shared.pop(next(iter(asked.shared)))
        with pytest.raises(ValueError, match="the received shared part lacks 1 shared tensors"):
            site.reply(asked)

    def test_a_diverged_model_is_not_sent(self, tmp_path):
        site = open_site(tmp_path, experiment(train={"lr": 1e30}))
        with pytest.raises(ValueError, match=r"nothing is sent: the trained shared part '.*' must be finite"):
            site.reply(payload(site))

    @pytest.mark.parametrize("stage", ["train", "evaluate"])
    @pytest.mark.parametrize("method", ["fedavg", "fedper"])
    def test_nor_kept(self, tmp_path, monkeypatch, stage, method):
        """One overflow must not spoil the rounds after it."""
        site = open_site(tmp_path, experiment(method={"name": method}))
        site.reply(payload(site))
        loss = site.task.loss
        monkeypatch.setattr(site.task, "loss", lambda prediction, batch: loss(prediction, batch) * float("nan"))
        with pytest.raises(ValueError, match=r"nothing is sent: the trained .* part '.*' must be finite"):
            site.reply(payload(site, stage, number=2))
        monkeypatch.undo()
        for name in ("personal", "after"):
            _, tensors, _ = History(site.folder, name).load()
            assert all(value.isfinite().all() for value in tensors.values() if value.is_floating_point())
        assert site.reply(payload(site, number=3)).train_loss > 0

    def test_a_picture_that_changes_its_kind_is_refused_as_ours(self, tmp_path, monkeypatch):
        """A plain ValueError of the task, too, comes through MONAI as it was raised."""
        site = open_site(tmp_path)
        asked, real, seen = payload(site), site.task.prepare, []

        def prepare(case):
            seen.append(case)
            if len(seen) > 1:  # the first is prepared without MONAI
                raise ValueError("image must have at most 1 channel(s); got 3")
            return real(case)

        monkeypatch.setattr(site.task, "prepare", prepare)
        with pytest.raises(ValueError, match=r"^image must have at most 1 channel"):
            site.reply(asked)

    def test_an_image_that_goes_once_the_run_has_begun_is_named(self, tmp_path):
        site = open_site(tmp_path)
        asked = payload(site)
        (tmp_path / "data" / site.datalist.training[1]["image"]).unlink()
        rule = "image file must exist and be a regular file; it is not"
        with pytest.raises(RefusedImage, match=f"^item 1 of 'training': {rule}$") as caught:
            site.reply(asked)
        assert caught.value.reason == "missing_file"
        assert words_of(caught.value) == str(caught.value)  # the site's driver may tell it

    def test_cases_are_prepared_once(self, tmp_path, monkeypatch):
        site, calls = open_site(tmp_path), []
        prepare = site.task.prepare
        monkeypatch.setattr(site.task, "prepare", lambda case: (calls.append(1), prepare(case))[1])
        site.reply(payload(site))
        once = len(calls)
        site.reply(payload(site, number=2))
        assert len(calls) == once
        assert once <= 4 + 1 + 2  # training and validation, and one more to measure each


class TestPersonalState:
    def test_survives_a_restart_and_is_the_sites_alone(self, tmp_path):
        site = open_site(tmp_path)
        site.reply(payload(site))
        files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
        assert files
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
        number, tensors, _ = History(tmp_path / "state/tiny", "personal").load()
        again = open_site(tmp_path)
        local = again.open_round(payload(again, number=2))
        assert number == 1
        for name in local.partition.personal:
            assert torch.equal(local.model.state_dict()[name], tensors[f"personal/{name}"])

    def test_another_run_starts_afresh(self, tmp_path):
        site = open_site(tmp_path)
        first = site.reply(payload(site))
        second = site.reply(payload(site, run="another"))
        assert first.train_loss == second.train_loss

    def test_a_replayed_round_starts_from_the_state_before_it(self, tmp_path):
        site = open_site(tmp_path)
        site.reply(payload(site))
        losses = [site.reply(payload(site, number=2)).train_loss for _ in range(2)]
        assert losses[0] == losses[1]


class TestEvaluate:
    def test_scores_the_test_split_before_and_after(self, tmp_path):
        site = open_site(tmp_path)
        site.reply(payload(site))
        update = site.reply(payload(site, "evaluate", 1))
        assert update.before["dice"].support == update.after["dice"].support == 1
        assert update.shared == {}

    def test_validation_picks_the_checkpoint(self, tmp_path, monkeypatch):
        """Rounds 1, 2, 3 score 0.1, 0.9, 0.5 on validation: round 2 is kept."""
        site = open_site(tmp_path)
        scores = iter([0.1, 0.1, 0.9, 0.9, 0.5, 0.5])
        monkeypatch.setattr(site, "score", lambda *_: {"dice": Score(next(scores), 1)})
        for number in (1, 2, 3):
            site.reply(payload(site, number=number))
        assert [History(tmp_path / "state/tiny", when, keep=1).rounds() for when in ("before", "after")] == [[2], [2]]

    @pytest.mark.parametrize(("validated", "round", "last"), [((0.9, 0.5), 1, False), ((0.5, 0.9), 1, True)])
    def test_it_says_which_checkpoint_was_tested(self, tmp_path, monkeypatch, validated, round, last):
        """One round and the additional training after it: the better one on validation is tested."""
        site = open_site(tmp_path)
        first, second = validated
        scores = iter([first, first, second, second, 0.7, 0.7])
        monkeypatch.setattr(site, "score", lambda *_: {"dice": Score(next(scores), 1)})
        site.reply(payload(site, number=1))
        told = site.reply(payload(site, "evaluate", 1)).statistics["checkpoints"]
        expected = {"round": round, "last": last, "metric": "dice", "score": 0.9}
        assert told == {"before": expected, "after": expected}

    def test_a_hospitals_own_name_for_its_data_stays(self, tmp_path):
        folder = write_site(tmp_path / "data")
        record = json.loads((folder / "dataset.json").read_text())
        record["training"][0].pop("patient")
        (folder / "dataset.json").write_text(json.dumps(record | {"name": "Doe"}))
        facts = open_site(tmp_path).reply(Payload("describe", 0, "run")).facts
        assert "Doe" not in json.dumps(facts)
        assert facts["source"] == "site"
        assert facts["split_by"] == "image"  # one item without a patient: nobody knows

    def test_pictures_stay_home_unless_the_data_are_synthetic(self, tmp_path):
        site = open_site(tmp_path)
        assert site.reply(payload(site, "evaluate", 1)).pictures == {}
        assert (tmp_path / "state/tiny/prediction-1.png").stat().st_size > 100
        demo = open_site(tmp_path, source="demo")
        (caption,) = demo.reply(payload(demo, "evaluate", 1)).pictures
        assert caption.startswith("test case 1 of 1: Dice 0.")

    def test_the_site_has_a_page_of_its_own(self, tmp_path):
        site = open_site(tmp_path)
        site.reply(payload(site, "evaluate", 1))
        page = tmp_path / "state/tiny/site-report.html"
        assert stat.S_IMODE(page.stat().st_mode) == 0o600
        assert b"test case 1 of 1: Dice" in page.read_bytes()
        assert not any(f"p{case}" in page.read_text().split() for case in range(6))  # no patient

    def test_a_page_that_cannot_be_drawn_does_not_fail_the_run(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr("omnifm.site.own_page.site_page", lambda *_: 1 / 0)
        site = open_site(tmp_path)
        assert site.reply(payload(site, "evaluate", 1)).after["dice"].support == 1
        assert "site-report.html could not be written (ZeroDivisionError)" in caplog.text

    def test_what_rests_on_few_cases_stays_home(self, tmp_path):
        """One test case: no interval, no label, no lesion leaves; the site's own page says them."""
        site = open_site(tmp_path)
        sent = site.reply(payload(site, "evaluate", 1)).statistics
        assert sorted(sent) == ["checkpoints", "classes", "intervals"]
        assert (sent["classes"], sent["intervals"]) == ({}, {"before": {}, "after": {}})
        assert "of 1 lesion missed, in 1 case." in (tmp_path / "state/tiny/site-report.html").read_text()

    def test_an_empty_validation_split_keeps_the_last(self, tmp_path):
        folder = write_site(tmp_path / "data")
        record = json.loads((folder / "dataset.json").read_text())
        record["training"] += record.pop("validation")
        (folder / "dataset.json").write_text(json.dumps(record | {"validation": []}))
        site = open_site(tmp_path)
        for number in (1, 2):
            site.reply(payload(site, number=number))
        assert site.reply(payload(site, "evaluate", 2)).after["dice"].support == 1


def test_refuses_a_device_that_is_not_there(tmp_path, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="device must exist; got 'cuda:0'"):
        Site(experiment(), "s", SiteConfig(str(write_site(tmp_path / "d")), str(tmp_path / "s"), "cuda:0"))
    for name in ("meta", "mps", "xpu", "cuda:-1", "cpu:0"):
        with pytest.raises(ValueError, match=f"device must be auto, cpu or cuda:N; got '{name}'"):
            device_named(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="device must exist; got 'cuda:1' on a machine with 1 usable GPUs"):
        device_named("cuda:1")
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda:N; got 'tpu9'"):
        Site(experiment(), "s", SiteConfig(str(tmp_path / "d"), str(tmp_path / "s"), "tpu9"))
