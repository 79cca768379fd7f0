"""Checking a site before training: what is counted, what is found, what it says, and what it never says."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from omnifm.cli import app
from omnifm.data.datalist import read_datalist
from omnifm.data.demo import demo_site
from omnifm.data.reader import READER
from omnifm.data.volume import Volume, read_volume
from omnifm.plugins import load_task, plugin
from omnifm.quality import inspection as check
from omnifm.quality.findings import Case, Findings, digest, record_reads
from omnifm.quality.page import page
from tests.commands import omnifm
from tests.conftest import experiment, write_site


def site(folder, splits, *, modality="XC", labels=None):
    """Write dataset.json for items given per split."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"name": "CANARY set", "modality": {"0": modality}, "labels": labels or {}} | splits
    (folder / "dataset.json").write_text(json.dumps(record))
    return folder


def picture(folder, name, seed, *, size=(40, 36), mode="L"):
    """A picture of noise; the same seed gives the same pixels, whatever the format."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return name


def pictures(folder, training, validation=(), test=(), **more):
    """A site of pictures for super-resolution; each list holds (name, seed) pairs."""
    lists = {"training": training, "validation": validation, "test": test}
    splits = {
        split: [{"image": picture(folder, name, seed), "patient": f"{split}{name}"} for name, seed in pairs]
        for split, pairs in lists.items()
    }
    return site(folder, splits, **more)


def report(folder, task=None):
    return check.check_site(folder, task)[0]


def test_a_class_without_a_name_is_told(tmp_path):
    items = [{"image": picture(tmp_path, f"{i}.png", i), "label": i} for i in range(3)]
    found = report(site(tmp_path, {"training": items}, labels={"0": "a"}))
    assert "2 class number(s) are none of the 1 declared in 'labels'" in found["warnings"]


@pytest.mark.parametrize(("named", "told"), [(True, False), (False, True)])
def test_nothing_is_said_of_patients_that_were_not_read(tmp_path, named, told):
    """Of one broken picture with a patient, and of one that can be read and has none."""
    (tmp_path / "a.png").write_bytes(b"no picture")
    items = [{"image": "a.png", "patient": "p"}] if named else [{"image": picture(tmp_path, "b.png", 1)}]
    warnings = report(site(tmp_path, {"training": items}), "super_resolution")["warnings"]
    assert (check.UNKNOWN_PATIENTS in warnings) == told


def test_labels_concern_only_a_task_that_learns_them(tmp_path):
    items = [{"image": picture(tmp_path, f"{i}.png", i), "label": i, "patient": str(i)} for i in range(3)]
    folder = site(tmp_path, {"training": items[:1], "validation": items[1:2], "test": items[2:]}, labels={"0": "a"})
    said = {task: " ".join(report(folder, task)["warnings"]) for task in ("classification", "super_resolution")}
    assert "2 label(s) occur in validation or test but never in training" in said["classification"]
    assert "label" not in said["super_resolution"]


class TestUnlabelled:
    def folder(self, tmp_path):
        return pictures(tmp_path / "s", [("a.png", 1), ("b.png", 2)], [("c.png", 3)], [("d.png", 4)])

    def test_is_ready_for_predict(self, tmp_path):
        found = report(self.folder(tmp_path))
        assert (found["task"], found["usable"], found["problems"], found["warnings"]) == (None, True, [], [])
        assert found["splits"]["training"]["cases"] == 2
        first = next(iter(check.in_words(found)))
        assert first.startswith("usable. No labels here: ready for predict or for drawing masks.")

    def test_is_not_usable_for_a_task_that_needs_labels(self, tmp_path):
        found = report(self.folder(tmp_path), "segmentation")
        assert (found["task"], found["usable"]) == ("segmentation", False)

    def test_volumes_too(self, tmp_path):
        folder = write_site(tmp_path / "s")
        record = json.loads((folder / "dataset.json").read_text())
        for split in ("training", "validation", "test"):
            record[split] = [{"image": item["image"], "patient": item["patient"]} for item in record[split]]
        (folder / "dataset.json").write_text(json.dumps(record))
        assert report(folder)["usable"]

    def test_one_that_cannot_be_read_is_refused(self, tmp_path):
        folder = self.folder(tmp_path)
        (folder / "a.png").write_bytes(b"no picture")
        found = report(folder)
        assert [refusal["reason"] for refusal in found["refusals"]] == ["not_an_image"]
        assert any(line.startswith("what to do about not_an_image: Open the file") for line in check.in_words(found))


class TestPatients:
    def site(self, tmp_path, patients):
        """Six pictures; None is a case without a patient."""
        items = [{"image": picture(tmp_path, f"{i}.png", i)} for i in range(len(patients))]
        items = [item | ({"patient": p} if p else {}) for item, p in zip(items, patients, strict=True)]
        return site(tmp_path, {"training": items[:-2], "validation": items[-2:-1], "test": items[-1:]})

    def said(self, tmp_path, patients):
        found = report(self.site(tmp_path, patients), "super_resolution")
        words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page(found, {}).decode()))
        return "\n".join(check.in_words(found)), words

    def test_unknown_ones_are_not_certified(self, tmp_path):
        lines, words = self.said(tmp_path, [None] * 6)
        assert "patients unknown: every file counts as its own patient" in lines
        assert "Patients unknown every file counts as its own patient" in words
        assert "in two splits" not in words

    def test_some_without_are_counted(self, tmp_path):
        lines, words = self.said(tmp_path, ["a", "a", None, None, "b", "c"])
        assert "2 case(s) name no patient: each counts as its own" in lines
        assert "Patients 3 none named is in two splits" in words

    def test_as_many_as_cases_is_said(self, tmp_path):
        _, words = self.said(tmp_path, list("abcdef"))
        assert "Patients 6 one for each case; none named is in two splits" in words


class TestCounts:
    def test_masks(self, tmp_path):
        """Cases and voxels per class, counted again here with nibabel and numpy."""
        found = report(write_site(tmp_path / "s"))
        assert (found["task"], found["usable"], found["problems"], found["warnings"]) == ("segmentation", True, [], [])
        masks = [np.asarray(nibabel.load(tmp_path / f"s/labels/{i}.nii.gz").dataobj) for i in range(6)]
        expected = {"training": masks[:4], "validation": masks[4:5], "test": masks[5:]}
        for name, part in expected.items():
            split = found["splits"][name]
            assert (split["cases"], split["patients"], split["refused"]) == (len(part), len(part), 0)
            assert split["modalities"] == {"MR": len(part)}
            voxels = {str(value): int(sum((mask == value).sum() for mask in part)) for value in (0, 1)}
            total = sum(voxels.values())
            assert split["labels"] == {
                value: {"cases": len(part), "voxels": n, "share": round(n / total, 6)} for value, n in voxels.items()
            }

    def test_classes_by_number_and_by_name(self, tmp_path):
        items = [
            {"image": picture(tmp_path, f"{i}.png", i), "label": label}
            for i, label in enumerate([0, 1, "bad", "bad", 5])
        ]
        splits = {"training": items[:3], "validation": items[3:4], "test": items[4:]}
        found = report(site(tmp_path, splits, labels={"0": "good", "1": "bad", "2": "ugly"}))
        assert found["task"] == "classification"
        assert found["splits"]["training"]["labels"] == {"0": {"cases": 1}, "1": {"cases": 2}}
        assert found["splits"]["test"]["labels"] == {"5": {"cases": 1}}
        assert found["warnings"] == [
            check.UNKNOWN_PATIENTS,
            "1 label(s) occur in validation or test but never in training",
            "1 class number(s) are none of the 3 declared in 'labels'",
        ]

    def test_many_questions_about_one_image_are_one_image(self, tmp_path):
        picture(tmp_path, "a.png", 0), picture(tmp_path, "b.png", 1)
        ask = [{"image": "a.png", "question": f"CANARY {i}?", "answer": "CANARY", "patient": "a"} for i in range(5)]
        found = report(site(tmp_path, {"training": ask, "test": [ask[0] | {"image": "b.png", "patient": "b"}]}))
        assert (found["task"], found["splits"]["training"]["cases"]) == ("vqa", 5)
        assert found["images"]["XC"]["num_images"] == 2
        assert found["duplicates"] == {"across_splits": [], "within_a_split": []}
        assert "CANARY" not in json.dumps(found)

    def test_pairs(self, tmp_path):
        for i in range(4):
            picture(tmp_path, f"a{i}.png", i, size=(44, 42))
            picture(tmp_path, f"b{i}.png", 10 + i, size=(44, 42 + (i == 1)))
        pairs = [
            {"image_a": f"a{i}.png", "image_b": f"b{i}.png", "modality_a": "CT", "modality_b": "MR"} for i in "0123"
        ]
        found = report(site(tmp_path, {"training": pairs[:2], "validation": pairs[2:3], "test": pairs[3:]}))
        assert found["task"] == "image_fusion"
        assert found["splits"]["training"]["modalities"] == {"CT": 1, "MR": 1}
        refused = [(r["split"], r["position"], r["reason"]) for r in found["refusals"]]
        assert refused == [("training", 1, "bad_geometry")]


class TestImages:
    def test_shapes_spacing_and_intensities(self, tmp_path):
        """Against numpy on the whole arrays: these are small enough to be sampled entirely."""
        (tmp_path / "images").mkdir()
        rng, arrays, items = np.random.default_rng(0), [], []
        for i, spacing in enumerate([1.0, 2.0, 2.0]):
            arrays.append(rng.normal(100, 30, (8, 9, 10 + i)).astype(np.float32))
            nibabel.save(nibabel.Nifti1Image(arrays[-1], np.diag([1, 1, spacing, 1])), tmp_path / f"images/{i}.nii")
            items.append({"image": f"images/{i}.nii", "patient": i, "label": 0})
        splits = {"training": items[:1], "validation": items[1:2], "test": items[2:]}
        images = report(site(tmp_path, splits, modality="MR", labels={"0": "a"}))["images"]["MR"]
        assert images["shape"] == {"min": [8, 9, 10], "median": [8, 9, 11], "max": [8, 9, 12]}
        assert images["spacing_mm"] == {"min": [1, 1, 1], "median": [1, 1, 2], "max": [1, 1, 2]}
        assert (images["dims"], images["channels"]) == ({"3-D": 3}, {"1": 3})
        values = np.concatenate([array.ravel() for array in arrays])
        expected = np.percentile(values, [0, 1, 25, 50, 75, 99, 100])
        np.testing.assert_allclose(list(images["intensity"].values()), expected, rtol=1e-4)
        assert sum(images["histogram"]["counts"]) == values.size

    def test_the_sample_of_intensities_is_bounded(self, tmp_path, monkeypatch):
        monkeypatch.setattr("omnifm.quality.findings.SAMPLE", 4000)
        datalist = read_datalist(write_site(tmp_path / "s"), required=("image",))
        findings = Findings(datalist)
        for item in datalist.training:
            findings.see(item, record_reads(lambda item: read_volume(item["image"]), item))
        assert [len(sample) for sample in findings.images["MR"].sample] == [333] * 4  # 4000 / (2 * 6 cases)

    def test_odd_scales_and_spacings_are_found(self, tmp_path):
        folder = write_site(tmp_path / "s")
        image = nibabel.load(folder / "images/2.nii.gz")
        nibabel.save(nibabel.Nifti1Image(image.get_fdata() * 20, np.eye(4)), folder / "images/2.nii.gz")
        for part in ("images", "labels"):
            image = nibabel.load(folder / part / "5.nii.gz")
            nibabel.save(nibabel.Nifti1Image(image.get_fdata(), np.diag([1, 1, 5, 1])), folder / part / "5.nii.gz")
        found = report(folder)
        assert found["odd"] == {
            "intensity": [{"list": "training", "position": 2}],
            "spacing": [{"list": "test", "position": 0}],
        }
        assert found["usable"]

    def test_empty_masks_and_flat_images_are_found(self, tmp_path):
        folder = write_site(tmp_path / "s")
        zeros = np.zeros((16, 16, 16), np.float32)
        nibabel.save(nibabel.Nifti1Image(zeros, np.eye(4)), folder / "labels/0.nii.gz")
        for case in (1, 5):  # black images are equal, but no leak
            nibabel.save(nibabel.Nifti1Image(zeros, np.eye(4)), folder / f"images/{case}.nii.gz")
        found = report(folder)
        assert found["odd"]["empty_mask"] == [{"list": "training", "position": 0}]
        assert [at["position"] for at in found["odd"]["flat"]] == [1, 0]
        assert (found["usable"], found["duplicates"]["across_splits"]) == (True, [])

    def test_a_header_of_another_modality_is_found(self, tmp_path):
        datalist = read_datalist(write_site(tmp_path / "s"), required=("image",))
        findings, item = Findings(datalist), datalist.training[0]
        volume = Volume(np.random.default_rng(0).random((4, 4, 4), np.float32), np.eye(4), "CT")
        findings.see(item, Case({item["image"]: volume}, None))
        assert list(findings.odd["header_modality"]) == [("training", 0)]

    def test_one_colour_image_among_grey_ones_is_no_problem(self, tmp_path):
        """All become colour, as between sites."""
        folder = write_site(tmp_path / "s")
        grey = np.random.default_rng(0).integers(0, 255, (16, 16, 16, 3), np.uint8)
        colour = np.ascontiguousarray(grey).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
        nibabel.save(nibabel.Nifti1Image(colour, np.eye(4)), folder / "images/0.nii.gz")
        found = report(folder)
        assert (found["usable"], found["problems"]) == (True, [])
        assert found["images"]["MR"]["channels"] == {"1": 5, "3": 1}
        assert "1 of 6 images are in colour: grey ones become colour" in found["warnings"]

    def test_a_pair_of_colour_and_grey_is_no_stray_colour(self):
        """A fusion site's PET is in colour, its MR grey: every case is both."""
        folder = demo_site("image_fusion", "site-2")
        modes = {Image.open(file).mode for file in folder.rglob("*.png")}
        assert (modes, report(folder, "image_fusion")["warnings"]) == ({"L", "RGB"}, [])

    def test_pictures_beside_sections_are_told(self, tmp_path):
        """A slice with patient axes lies another way round in RAS than its own export to PNG."""
        names = [picture(tmp_path, f"{i}.png", i) for i in range(3)]
        section = nibabel.Nifti1Image(np.random.default_rng(9).random((36, 40, 1)), np.diag([-1.0, -1.0, 3.0, 1.0]))
        nibabel.save(section, tmp_path / "a.nii.gz")
        items = [{"image": name, "label": 0, "patient": name} for name in [*names, "a.nii.gz"]]
        said = "3 of 4 2-D images are pictures without patient axes: the others, in RAS, may lie another way round"
        assert said in report(site(tmp_path, {"training": items}, labels={"0": "a"}))["warnings"]
        assert "RAS" not in str(report(site(tmp_path, {"training": items[:3]}, labels={"0": "a"}))["warnings"])

    def test_2d_beside_3d_cannot_train(self, tmp_path):
        folder = write_site(tmp_path / "s")
        for part, value in (("images", 3.0), ("labels", 1.0)):
            flat = np.full((16, 16, 1), value)
            flat[0] = 0
            nibabel.save(nibabel.Nifti1Image(flat, np.eye(4)), folder / part / "0.nii.gz")
        assert report(folder)["problems"] == ["images must be all 2-D or all 3-D; got {'2-D': 1, '3-D': 5}"]


class TestDuplicates:
    def test_across_splits_by_content(self, tmp_path):
        """The same pixels under another name and in another format."""
        folder = pictures(tmp_path, [("a.png", 1), ("b.png", 2), ("c.png", 3)], [("d.png", 4)], [("e.bmp", 1)])
        found = report(folder)
        assert not found["usable"]
        assert found["problems"] == ["an image must be in one split only; got 1 in test and training"]
        assert found["duplicates"]["across_splits"] == [
            [{"split": "test", "list": "test", "position": 0}, {"split": "training", "list": "training", "position": 0}]
        ]

    @pytest.mark.parametrize(("copies", "usable"), [(1, True), (2, False)])
    def test_one_in_a_hundred_is_a_warning(self, tmp_path, copies, usable):
        """Of 100 test images 1 or 2 are training images too."""
        test = [(f"t{i}.bmp", i if i < copies else 1000 + i) for i in range(100)]
        train, validation = [(f"{i}.bmp", i) for i in range(2)], [("v.bmp", 999)]
        found = report(pictures(tmp_path, train, validation=validation, test=test))
        assert found["usable"] is usable
        said = f"an image must be in one split only; got {copies} in test and training"
        assert (said in found["problems"], said in found["warnings"]) == (not usable, usable)

    def test_one_file_listed_twice_is_one_too(self, tmp_path):
        item = {"image": picture(tmp_path, "a.png", 1), "label": 0}
        found = report(site(tmp_path, {"training": [item, item]}, labels={"0": "a"}))
        assert "1 image(s) stand more than once within a split" in found["warnings"]

    def test_two_questions_about_one_file_are_none(self, tmp_path):
        item = {"image": picture(tmp_path, "a.png", 1), "question": "where?", "answer": "here"}
        found = report(site(tmp_path, {"training": [item, item | {"question": "what?"}]}))
        assert found["duplicates"]["within_a_split"] == []

    def test_within_a_split_is_a_warning(self, tmp_path):
        folder = pictures(tmp_path, [("a.png", 1), ("copy.tif", 1), ("c.png", 3)], [("d.png", 4)], [("e.png", 5)])
        found = report(folder)
        assert (found["usable"], found["warnings"]) == (True, ["1 image(s) stand more than once within a split"])
        assert [at["position"] for at in found["duplicates"]["within_a_split"][0]] == [0, 1]

    def test_one_file_named_in_two_splits_for_two_patients(self, tmp_path):
        picture(tmp_path, "a.png", 0), picture(tmp_path, "b.png", 1), picture(tmp_path, "c.png", 2)
        item = {"image": "a.png", "patient": "p"}
        splits = {"training": [item], "validation": [{"image": "b.png"}], "test": [item | {"patient": "q"}]}
        said = "a patient (or image) must be in one split only; item 0 of 'training' and item 0 of 'test' share one"
        assert report(site(tmp_path, splits))["problems"] == [said]

    def test_a_split_of_ours_shows_where_an_item_went(self, tmp_path):
        """Six copies cannot all be dealt to one split; all stand in the file's only list."""
        found = report(pictures(tmp_path, [(f"{i}.png", 7) for i in range(6)]))
        (group,) = found["duplicates"]["across_splits"]
        assert {at["list"] for at in group} == {"training"}
        assert {at["split"] for at in group} == {"training", "validation", "test"}

    def test_digest_is_of_the_voxels(self):
        grey = np.random.default_rng(0).integers(0, 9, (5, 4, 1)).astype(np.float32)
        assert digest(grey) == digest(np.repeat(grey[..., None], 3, axis=3)) == digest(np.asfortranarray(grey))
        assert digest(grey) != digest(grey.reshape(4, 5, 1))
        assert digest(grey) != digest(grey + np.eye(5, 4)[..., None].astype(np.float32))


class TestVerdict:
    def test_refusals_say_where_and_why(self, tmp_path):
        folder = write_site(tmp_path / "s")
        broken = nibabel.Nifti1Image(np.full((16, 16, 16), np.nan, np.float32), np.eye(4))
        nibabel.save(broken, folder / "images/1.nii.gz")
        (folder / "labels/4.nii.gz").unlink()
        found = report(folder)
        assert [(r["split"], r["position"], r["reason"]) for r in found["refusals"]] == [
            ("training", 1, "non_finite"),
            ("validation", 0, "missing_file"),
        ]
        assert [split["refused"] for split in found["splits"].values()] == [1, 1, 0]
        assert found["problems"][0].startswith("2 of 6 cases (33.3 %) cannot be used; at most 5 % may: 1 ")
        assert "'validation' holds no usable case" in found["warnings"]

    def test_all_training_cases_refused(self, tmp_path):
        folder = pictures(tmp_path, [("a.png", 1)], [("b.png", 2)], [("c.png", 3)])
        (folder / "a.png").write_bytes(b"no image")
        found = report(folder)
        assert found["problems"] == ["'training' must keep at least one case; all 1 were refused"]
        assert len(found["refusals"]) == 1

    def test_a_label_of_the_wrong_kind_is_refused(self, tmp_path):
        folder = write_site(tmp_path / "s")
        assert {r["reason"] for r in report(folder, "classification")["refusals"]} == {"label_values"}
        items = [{"image": picture(tmp_path, f"{i}.png", i), "label": 0} for i in range(3)]
        classes = site(tmp_path, {"training": items}, labels={"0": "a"})
        assert {r["reason"] for r in report(classes, "segmentation")["refusals"]} == {"not_an_image"}

    def test_what_the_task_refuses_is_not_usable(self, tmp_path):
        small = {"image": picture(tmp_path, "small.png", 1, size=(8, 8))}
        found = report(site(tmp_path, {"training": [small] * 2}), "super_resolution")
        assert not found["usable"] and "along each side for scale 2" in found["refusals"][0]["message"]

    def test_reads_with_the_settings_of_a_job(self, tmp_path):
        item = {"image": picture(tmp_path, "a.png", 1, size=(40, 40))}
        folder = site(tmp_path, {"training": [item]})
        job = replace(experiment(), task={"name": "super_resolution", "scale": 4}, model={})
        assert check.check_site(folder, None, None, job)[0]["usable"]
        strict = replace(job, task={"name": "super_resolution", "scale": 8})
        assert not check.check_site(folder, None, None, strict)[0]["usable"]
        with pytest.raises(ValueError, match="task must be the job's, super_resolution; got vqa"):
            check.check_site(folder, "vqa", None, job)

    def test_one_item_without_its_label_makes_no_other_task(self, tmp_path):
        folder = write_site(tmp_path / "s")
        record = json.loads((folder / "dataset.json").read_text())
        del record["training"][0]["label"]
        (folder / "dataset.json").write_text(json.dumps(record))
        found = report(folder)
        assert (found["task"], found["usable"]) == ("segmentation", False)
        assert "item 0 of 'training'" in found["problems"][0]

    def test_pictures_and_volumes_are_no_one_site(self, tmp_path):
        write_site(tmp_path)
        items = [{"image": "images/0.nii.gz", "label": 0}, {"image": picture(tmp_path, "a.png", 1), "label": 0}]
        found = report(site(tmp_path, {"training": items}, labels={"0": "a"}), "classification")
        assert "images must be all 2-D or all 3-D; got {" in found["problems"][0]

    def test_what_the_task_would_tell_the_server_must_agree(self, tmp_path, monkeypatch):
        def disagree(self, cases, labels):
            raise ValueError(f"{len(cases)} cases disagree")

        monkeypatch.setattr(plugin("tasks", "super_resolution"), "facts", disagree)
        folder = site(tmp_path, {"training": [{"image": picture(tmp_path, "a.png", 1, size=(40, 40))}]})
        found = report(folder, "super_resolution")
        assert (found["usable"], found["problems"]) == (False, ["1 cases disagree"])

    def test_the_sites_own_limits_count(self, tmp_path):
        folder = write_site(tmp_path / "s")
        for case in (1, 2):
            (folder / f"images/{case}.nii.gz").write_bytes(b"no image")
        file = tmp_path / "omnifm_site.json"
        file.write_text(json.dumps({"data_root": "/x", "state_dir": "/y", "max_refused_fraction": 0.5}))
        assert check.check_site(folder, None, file)[0]["usable"]
        assert not check.check_site(folder)[0]["usable"]

    def test_a_task_that_reads_elsewhere_is_our_mistake(self, tmp_path, monkeypatch):
        datalist = read_datalist(write_site(tmp_path / "s"), required=("image",))
        task = load_task(experiment())
        monkeypatch.setattr(task, "read", lambda item, labels: {})
        monkeypatch.setattr(task, "case_facts", lambda case: {})
        with pytest.raises(TypeError, match="a task must read 'image' with read_volume"):
            check.inspect(datalist, task, name="segmentation")
        assert READER.recordings.active == []

    def test_the_reader_is_itself_again_after_a_refusal(self, tmp_path):
        with pytest.raises(ValueError, match="must exist"):
            record_reads(lambda item: read_volume(item["image"]), {"image": tmp_path / "none.nii"})
        assert READER.recordings.active == []


class TestPage:
    def page(self, folder, tmp_path):
        found, drawn = check.check_site(folder)
        check.write_page(tmp_path / "check.html", found, drawn)
        text = (tmp_path / "check.html").read_text()
        return text, re.sub(r"\s+", " ", html.unescape(re.sub(r"<style.*?</style>|<[^>]+>", " ", text))), drawn

    def test_shows_samples_with_outlines_and_numbers(self, tmp_path):
        text, words, drawn = self.page(write_site(tmp_path / "s"), tmp_path)
        assert list(drawn) == [f"{name} · MR · z {z}/16" for name, z in self.largest(tmp_path / "s")]
        assert text.count("<img") == len(drawn) == 6
        for said in (
            "USABLE For segmentation. This page",
            "training 4 0 4 4",
            "1 ball",
            "MR 6 3-D 1 16 × 16 × 16 all alike",
            "stays at this site",
            "Refused cases None.",
        ):
            assert said in words
        assert "http:" not in text
        assert (tmp_path / "check.html").stat().st_mode & 0o077 == 0

    def largest(self, folder):
        """The slice with most of the mask, by nibabel."""
        names = [*[f"training {i}" for i in range(4)], "validation 0", "test 0"]
        masks = [np.asarray(nibabel.load(folder / f"labels/{i}.nii.gz").dataobj) for i in range(6)]
        return [(name, int((mask > 0).sum((0, 1)).argmax())) for name, mask in zip(names, masks, strict=True)]

    def test_the_outline_follows_the_mask(self, tmp_path):
        """A mask of the right half: blue (0, 114, 178) along its border, no blue on the left."""
        (tmp_path / "s").mkdir()
        grey, mask = np.full((20, 20), 90, np.uint8), np.zeros((20, 20), np.uint8)
        grey[0, 0] = 200
        mask[5:15, 10:18] = 1
        Image.fromarray(grey).save(tmp_path / "s/a.png")
        Image.fromarray(mask * 255).save(tmp_path / "s/m.png")
        item = {"image": "a.png", "label": "m.png"}
        _, drawn = check.check_site(site(tmp_path / "s", {"training": [item]}, labels={"0": "no", "1": "yes"}))
        (tmp_path / "drawn.png").write_bytes(next(iter(drawn.values())))
        pixels = np.asarray(Image.open(tmp_path / "drawn.png"))
        blue = (pixels == [0, 114, 178]).all(axis=2)
        rows, columns = np.nonzero(blue)
        scale = 260 / 20
        assert (rows.min(), columns.min()) == (5 * scale, 10 * scale)
        assert (rows.max(), columns.max()) == (15 * scale - 1, 18 * scale - 1)
        assert not blue[round(9 * scale), round(13 * scale)]  # inside

    @pytest.mark.parametrize("name", ["a.png", "a.nii.gz"])
    def test_a_section_is_drawn_as_its_own_export_is(self, tmp_path, name):
        """Bright in front: the upper rows of a DICOM's pixels, whose rows run to the back of the patient."""
        pixels, mask = np.zeros((2, 40, 40), np.uint8)
        pixels[:10], mask[:10, :20] = 200, 1
        Image.fromarray(pixels).save(tmp_path / "a.png")
        Image.fromarray(mask).save(tmp_path / "m.png")
        for file, array in (("a.nii.gz", pixels), ("m.nii.gz", mask)):
            placed = nibabel.Nifti1Image(array.T[..., None], np.diag([-1.0, -1.0, 3.0, 1.0]))
            nibabel.save(placed, tmp_path / file)
        item = {"image": name, "label": name.replace("a", "m", 1)}
        _, drawn = check.check_site(site(tmp_path, {"training": [item]}, labels={"0": "no", "1": "yes"}))
        (tmp_path / "drawn.png").write_bytes(next(iter(drawn.values())))
        shown = np.asarray(Image.open(tmp_path / "drawn.png"))
        blue = (shown == [0, 114, 178]).all(axis=2)
        assert shown[:60].mean() > shown[-60:].mean()
        assert blue[:65].any()
        assert not blue[65:].any()

    def test_every_class_has_its_picture(self, tmp_path):
        items = [{"image": picture(tmp_path, f"{i}.png", i, mode="RGB"), "label": i % 3} for i in range(30)]
        site(tmp_path, {"training": items}, labels={"0": "a", "1": "b", "2": "c"})
        (tmp_path / "0.png").write_bytes(b"")  # the next of its class stands in
        _, drawn = check.check_site(tmp_path)
        assert len(drawn) == 12
        assert [sum(name.endswith(f" {label}") for name in drawn) for label in "abc"] == [4, 4, 4]

    def test_tells_problems_and_places(self, tmp_path):
        folder = pictures(tmp_path / "s", [("a.png", 1), ("b.png", 2), ("c.png", 3)], [("d.png", 4)], [("e.png", 1)])
        (folder / "b.png").write_bytes(b"<script>")
        text, words, _ = self.page(folder, tmp_path)
        for said in (
            "NOT USABLE",
            "Problem: an image must be in one split only; got 1 in test and training",
            "equal images across splits test 0, training 0",
            "training 1 not_an_image",
        ):
            assert said in words
        assert "<script" not in text
        assert "CANARY" not in text
        assert str(tmp_path) not in text


class TestCommand:
    def run(self, *args):
        return CliRunner().invoke(app, ["check", *map(str, args)])

    def test_a_usable_site(self, tmp_path):
        done = self.run(write_site(tmp_path / "s"), "--html", tmp_path / "new/check.html")
        assert done.exit_code == 0
        assert done.stdout.splitlines()[:2] == [
            "usable for segmentation",
            "training: 4 cases, 4 patients; cases per label: background 4 (93 % of the voxels), ball 4 (6.5 % of the "
            "voxels)",
        ]
        assert (tmp_path / "new/check.html").stat().st_size > 1000

    def test_an_unusable_site(self, tmp_path):
        folder = pictures(tmp_path, [("a.png", 1)], [("d.png", 4)], [("e.png", 1)])
        done = self.run(folder / "dataset.json")
        assert done.exit_code == 1
        assert done.stdout.splitlines()[-1].startswith("problem: an image must be in one split only")
        assert "duplicate across splits: item 0 of 'test' (test) = item 0 of 'training' (training)" in done.stdout

    def test_json_is_the_report(self, tmp_path):
        done = self.run(write_site(tmp_path / "s"), "--json")
        assert json.loads(done.stdout) == report(tmp_path / "s")

    def test_a_patient_in_two_splits_is_one_line(self, tmp_path):
        picture(tmp_path, "a.png", 0), picture(tmp_path, "b.png", 1)
        splits = {
            "training": [{"image": "a.png", "patient": "CANARY"}],
            "test": [{"image": "b.png", "patient": "CANARY"}],
        }
        done = self.run(site(tmp_path, splits), "--html", tmp_path / "check.html")
        assert done.exit_code == 1
        assert done.stdout.splitlines() == [
            "NOT usable",
            "problem: a patient (or image) must be in one split only; "
            "item 0 of 'training' and item 0 of 'test' share one",
        ]
        assert "must be in one split only" in (tmp_path / "check.html").read_text()

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["/nowhere/CANARY"], "path must be a dataset.json or a folder that holds one; it is neither"),
            ([str(Path(__file__).parent)], "path must be a dataset.json or a folder that holds one; it is neither"),
            ([__file__, "--task", "surgery"], "task must be one of classification, image_fusion, segmentation"),
        ],
    )
    def test_wrong_use_is_told_in_one_line(self, args, message):
        error = str(self.run(*args).exception)  # main() prints it
        assert error.startswith(message)
        assert "CANARY" not in error

    def test_wrong_use_costs_exit_code_2(self):
        done = omnifm("check", __file__, "--site-file", "/nowhere/CANARY")
        assert done == (2, "", "omnifm: No such file or directory\n")


@pytest.mark.parametrize(
    "name", ["seg_hippocampus/site-4", "seg_polyp/site-4", "cls_derma/site-4", "seg_fundus/site-3"]
)
def test_real_sites_are_usable(shared_data, name):
    found = report(shared_data / "federations" / name)
    assert (found["usable"], found["refusals"], found["duplicates"]["across_splits"]) == (True, [], [])
