import json
from typing import ClassVar

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from omnifm import simulation
from omnifm.config import Experiment
from omnifm.data.datalist import read_datalist
from omnifm.data.demo import demo_site, make_site
from omnifm.data.demos.classification import CASES_PER_SPLIT, LOOKS
from omnifm.data.volume import RefusedImage
from omnifm.plugins import load_task
from omnifm.update import Score
from tests.conftest import experiment

LABELS = {0: "ring", 1: "solid", 5: "cluster"}
MODEL = {"channels": [8, 8, 8, 8]}


def job(model=None, **task):
    section = {"name": "classification", **task}
    record = {**experiment().__dict__, "task": section, "model": MODEL | (model or {})}
    record |= {"data": {"name": "tiny"}, "train": {"num_rounds": 1, "local_epochs": 1, "batch_size": 8, "lr": 0.001}}
    return Experiment.from_json(json.dumps(record))


def picture(tmp_path, size=(40, 60), colour=True):
    """Columns and rows; a bright band on the left."""
    pixels = np.random.default_rng(0).integers(0, 100, (size[1], size[0], 3), dtype=np.uint8)
    pixels[:, : size[0] // 4] += 150
    file = tmp_path / f"{size}{colour}.png"
    Image.fromarray(pixels if colour else pixels[..., 0]).save(file)
    return file


def configured(task, cases, labels=LABELS):
    task.configure(task.agree({"s": task.facts([task.case_facts(case) for case in cases], labels)}))
    return task


def knowing(task, **said):
    """A network that answers each class's logit, 0 where none is given."""
    logits = torch.tensor([[float(said.get(name, 0)) for name in task.spec["labels"].values()]])
    return lambda batch: logits.expand(len(batch["image"]), -1)


class TestRead:
    @pytest.mark.parametrize("number", [1, 7])
    def test_a_class_may_lack_its_name(self, tmp_path, number):
        case = load_task(job()).read({"image": picture(tmp_path), "label": number}, LABELS)
        assert case["class"] == number
        assert case["array"].shape == (40, 60, 1, 3)

    def test_refuses_an_unknown_name(self, tmp_path):
        """The datalist takes it for the path of a mask."""
        item = {"image": picture(tmp_path), "label": tmp_path / "melanoma"}
        with pytest.raises(RefusedImage, match="label must be a class number or a name in 'labels'") as refusal:
            load_task(job()).read(item, LABELS)
        assert refusal.value.reason == "label_values"
        assert "melanoma" not in str(refusal.value)

    def test_refuses_a_class_outside_the_federations(self, tmp_path):
        item = {"image": picture(tmp_path), "label": 5}
        task = configured(load_task(job()), [load_task(job()).read(item | {"label": 1}, {})], {})
        for limited, number in ((load_task(job(num_classes=5)), 5), (task, 2)):
            with pytest.raises(RefusedImage, match=f"one of the federation's {number} classes; got 5"):
                limited.read(item, LABELS)

    @pytest.mark.parametrize("size", [(7, 60), (60, 7), (1, 1)])
    def test_refuses_what_is_too_small_to_show_anything(self, tmp_path, size):
        item = {"image": picture(tmp_path, size), "label": 1}
        with pytest.raises(RefusedImage, match=f"must have 8 pixels along two axes; got {size[0]} x {size[1]} x 1"):
            load_task(job()).read(item, LABELS)


class TestAgree:
    FACT: ClassVar = {"dims": 2, "channels": 3, "side": 28, "labels": {"0": "a"}, "num_classes": 2}

    def test_disjoint_classes_are_put_together(self):
        """The "extra" scenario; class 1 has no name anywhere."""
        other = {"labels": {"2": "b"}, "num_classes": 3}
        spec = load_task(job()).agree({"s": self.FACT, "t": self.FACT | other})
        assert spec["labels"] == {"0": "a", "1": "class 1", "2": "b"}

    def test_classes_count_whether_named_or_used(self):
        cases = [{"dims": 2, "channels": 1, "side": 28, "class": 3}]
        assert load_task(job()).facts(cases, {1: "a"})["num_classes"] == 4
        assert load_task(job()).facts(cases, {9: "a"})["num_classes"] == 10

    @pytest.mark.parametrize(
        ("sides", "setting", "size"),
        [([28, 30], "auto", 29), ([9, 9], "auto", 16), ([900, 700], "auto", 224), ([28], 64, 64)],
    )
    def test_one_size(self, sides, setting, size):
        facts = {str(n): self.FACT | {"side": side} for n, side in enumerate(sides)}
        assert load_task(job(image_size=setting)).agree(facts)["size"] == [size, size]

    def test_volumes_become_cubes(self):
        assert load_task(job()).agree({"s": self.FACT | {"dims": 3, "side": 155}})["size"] == [96] * 3

    def test_grey_joins_colour(self):
        assert load_task(job()).agree({"s": self.FACT, "t": self.FACT | {"channels": 1}})["channels"] == 3

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"dims": 3}, "sites must agree on dims; got .*site-1.*site-2"),
            ({"channels": 4}, r"sites must have one number of channels.*got \[3, 4\]"),
            ({"labels": {"0": "b"}}, "must have the same number and name at all sites; 'site-2' has 'b' as 0"),
            ({"labels": {"1": "a"}}, "must have the same number and name at all sites; 'site-2' has 'a' as 1"),
        ],
    )
    def test_refuses_naming_who_differs_in_what(self, change, message):
        with pytest.raises(ValueError, match=message):
            load_task(job()).agree({"site-1": self.FACT, "site-2": self.FACT | change})

    @pytest.mark.parametrize(("setting", "number"), [(3, 4), ("auto", 1)])
    def test_refuses_fewer_classes_than_there_are(self, setting, number):
        with pytest.raises(ValueError, match="num_classes must be at least 2 and cover every site's classes"):
            load_task(job(num_classes=setting)).agree({"site-1": self.FACT | {"num_classes": number}})

    def test_refuses_a_site_that_mixes_dimensions(self):
        cases = [{"dims": dims, "channels": 1, "side": 28, "class": 0} for dims in (2, 3)]
        with pytest.raises(ValueError, match=r"cases must have one number of dimensions; got \[2, 3\]"):
            load_task(job()).facts(cases, LABELS)


class TestPrepare:
    def test_nothing_is_distorted(self, tmp_path):
        """40 x 60 in 30 x 30 is 20 x 30 and padding of zeros at both sides."""
        task = load_task(job(image_size=30))
        case = task.read({"image": picture(tmp_path), "label": 1}, LABELS)
        image = configured(task, [case]).prepare(case)["image"]
        assert image.shape == (3, 30, 30)
        assert not image[:, :5].any() and not image[:, -5:].any()
        assert image[:, 5:10].mean() > 1 > 0 > image[:, 10:25].mean()

    @pytest.mark.parametrize("thickness", [1.0, 100.0])
    def test_a_thick_slice_is_no_smaller(self, tmp_path, thickness):
        """20 x 10 pixels of 0.1 mm fill 16 x 8 of 16 x 16, however thick the slice is."""
        data = np.random.default_rng(0).normal(size=(20, 10, 1)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(data, np.diag([0.1, 0.1, thickness, 1.0])), tmp_path / "s.nii.gz")
        task = load_task(job(image_size=16))
        case = task.read({"image": tmp_path / "s.nii.gz", "label": 1}, LABELS)
        image = configured(task, [case]).prepare(case)["image"][0]
        assert [int(image.any(dim=axis).sum()) for axis in (1, 0)] == [16, 8]

    def test_hue_stays(self, tmp_path):
        """Channels are scaled together: a red picture stays red."""
        Image.fromarray(np.full((20, 20, 3), (200, 40, 40), np.uint8)).save(tmp_path / "red.png")
        task = load_task(job())
        case = task.read({"image": tmp_path / "red.png", "label": 1}, LABELS)
        red, green, blue = configured(task, [case]).prepare(case)["image"].mean(dim=(1, 2))
        assert red > 1 > 0 > green == blue

    def test_grey_among_colour_has_three_equal_channels(self, tmp_path):
        task = load_task(job())
        cases = [task.read({"image": picture(tmp_path, colour=c), "label": 1}, LABELS) for c in (True, False)]
        image = configured(task, cases).prepare(cases[1])["image"]
        assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])

    def test_volumes_keep_their_proportions_in_mm(self, tmp_path):
        """20 x 10 x 10 voxels of 1 x 1 x 2 mm: 20 x 10 x 20 mm, in a cube of 16."""
        data = np.random.default_rng(0).normal(size=(20, 10, 10)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(data, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / "v.nii.gz")
        task = load_task(job(image_size=16))
        case = task.read({"image": tmp_path / "v.nii.gz", "label": 1}, LABELS)
        prepared = configured(task, [case]).prepare(case)
        filled = prepared["image"][0].abs().sum
        assert [bool(filled(dim=axes)[0]) for axes in ((1, 2), (0, 2), (0, 1))] == [True, False, True]
        torch.manual_seed(0)
        logits = task.backbone()
        assert logits.decode(*logits.encode({"image": prepared["image"][None].repeat(2, 1, 1, 1, 1)}), {}).shape == (
            2,
            6,
        )
        assert task.picture(knowing(task, solid=9), prepared).shape[1:] == (256, 3)

    def test_augmentation_keeps_size_and_class(self, tmp_path):
        task = load_task(job(image_size=24))
        case = task.read({"image": picture(tmp_path), "label": 1}, LABELS)
        prepared = configured(task, [case]).prepare(case)
        augment = task.augment().set_random_state(0)
        samples = [augment(dict(prepared)) for _ in range(8)]
        assert {tuple(sample["image"].shape) for sample in samples} == {(3, 24, 24)}
        assert {int(sample["label"]) for sample in samples} == {1}
        assert len({float(sample["image"].sum()) for sample in samples}) == 8


class TestEvaluation:
    @pytest.fixture
    def task(self, tmp_path):
        task = load_task(job())
        case = task.read({"image": picture(tmp_path), "label": 1}, LABELS)
        self.prepared = configured(task, [case]).prepare(case)
        return task

    def case(self, label):
        return self.prepared | {"label": torch.tensor(label)}

    def test_a_row_is_the_class_and_every_probability(self, task):
        row = task.score(knowing(task, solid=np.log(6)), self.prepared)
        assert row.pop("label") == 1.0
        assert row["1"] == pytest.approx(6 / 11)
        assert sum(row.values()) == pytest.approx(1)

    def test_a_split_is_scored_as_a_whole(self, task):
        """Truth solid solid ring cluster, said solid solid solid cluster: recalls 1, 0, 1."""
        answers = [(1, "solid"), (1, "solid"), (0, "solid"), (5, "cluster")]
        scores = task.summarise([task.score(knowing(task, **{said: 5}), self.case(true)) for true, said in answers])
        assert scores["accuracy"].mean == pytest.approx(3 / 4)
        assert scores["balanced_accuracy"].mean == pytest.approx(2 / 3)
        judged = [score for name, score in scores.items() if not name.endswith("_majority")]
        assert {(score.support, score.undefined) for score in judged} == {(4, 0)}

    def test_auroc_is_undefined_for_every_case_where_only_one_class_occurs(self, task):
        scores = task.summarise([task.score(knowing(task), self.case(1))] * 3)
        assert (scores["auroc"].mean, scores["auroc"].support, scores["auroc"].undefined) == (None, 0, 3)
        assert scores["accuracy"].support == 3

    def test_counts_per_class_are_in_the_sites_log(self, task, caplog):
        with caplog.at_level("INFO", logger="omnifm.tasks.classification"):
            task.summarise([task.score(knowing(task), self.case(label)) for label in (0, 5, 5)])
        assert "3 cases scored; by class: {0: 1, 1: 0, 2: 0, 3: 0, 4: 0, 5: 2}" in caplog.text

    def test_the_picture_is_upright_above_two_lines(self, task):
        drawn = task.picture(knowing(task, ring=9), self.prepared)
        assert drawn.shape[1] == 256
        assert drawn[128, 51].mean() > drawn[128, 206].mean()  # the bright band is on the left
        assert drawn[256:].any()
        assert not np.array_equal(drawn, task.picture(knowing(task, solid=9), self.prepared))


class TestMajority:
    """Test cases of classes 0, 0, 1, 2 against the most frequent training class."""

    @pytest.mark.parametrize(("labels", "accuracy"), [([0, 1, 0], 0.5), ([1, 1, 0], 0.25), ([2, 1, 1, 2], 0.25)])
    def test_golden(self, labels, accuracy):
        task = load_task(job())
        task.configure({"labels": {"0": "a", "1": "b", "2": "c"}})
        task.observe([{"label": label} for label in labels])
        rows = [{"0": 0.2, "1": 0.5, "2": 0.3, "label": float(truth)} for truth in (0, 0, 1, 2)]
        scores = task.summarise(rows)
        assert scores["accuracy_majority"] == Score(accuracy, 4)
        assert scores["balanced_accuracy_majority"].mean == pytest.approx(1 / 3)

    def test_a_class_counts_by_its_number_whatever_the_federation_calls_it(self, tmp_path):
        """A late site knows class 0 as "a" and has a name for class 1, which was agreed on without one."""
        labels = ["a", 0, 0, "a", "b", "b", "b"]
        items = [{"image": f"{number}.png", "label": label} for number, label in enumerate(labels)]
        record = {
            "name": "t",
            "modality": {"0": "XC"},
            "labels": {"0": "a", "1": "b"},
            "training": items,
            "validation": [{"image": "v.png", "label": 0}],
            "test": [{"image": "t.png", "label": 0}],
        }
        (tmp_path / "dataset.json").write_text(json.dumps(record))
        task = load_task(job())
        task.observe(read_datalist(tmp_path, required=task.required).training)
        task.configure({"labels": {"0": "a", "1": "class 1"}})
        rows = [{"0": 0.4, "1": 0.6, "label": float(truth)} for truth in (0, 1, 1, 1)]
        assert task.summarise(rows)["accuracy_majority"] == Score(0.25, 4)

    def test_without_training_cases_it_is_undefined(self):
        task = load_task(job())
        task.configure({"labels": {"0": "a", "1": "b"}})
        assert task.summarise([{"0": 1.0, "1": 0.0, "label": 0.0}])["accuracy_majority"] == Score(None, 0, 1)


class TestDemo:
    def test_sites_take_turns_in_modality(self, tmp_path):
        found = []
        for number in range(1, 5):
            datalist = read_datalist(demo_site("classification", f"site-{number}"), required=("image", "label"))
            task = load_task(job())
            case = task.read(datalist.training[0], datalist.labels)
            found.append((datalist.modality["0"], task.case_facts(case)["channels"]))
            assert [len(split) for split in datalist.splits().values()] == list(CASES_PER_SPLIT.values())
        assert found == [("XC", 3), ("US", 1), ("MG", 1), ("XC", 3)]
        assert {look.modality for look in LOOKS} == {"XC", "US", "MG"}

    def test_same_seed_same_bytes(self, tmp_path):
        for name in ("a", "b"):
            make_site("classification", "site-2", tmp_path / name)
        one, two = ((tmp_path / name) for name in ("a", "b"))
        assert (one / "dataset.json").read_bytes() == (two / "dataset.json").read_bytes()
        assert np.array_equal(*(np.load(folder / "images.npz")["images"] for folder in (one, two)))


@pytest.mark.slow
def test_sites_with_other_classes_train_together(tmp_path):
    """One clinic has classes 0 and 1 and names one of them, the other has class 2 alone."""
    rng = np.random.default_rng(0)
    for site, labels, values in (("site-1", {"0": "a"}, [0, 1]), ("site-2", {"0": "a", "1": "b", "2": "c"}, ["c"])):
        folder = tmp_path / site
        folder.mkdir()
        np.savez(folder / "images.npz", images=rng.integers(0, 255, (9, 16, 16), dtype=np.uint8))
        items = [{"image": f"images.npz#{n}", "label": values[n % len(values)], "patient": str(n)} for n in range(9)]
        record = {
            "name": "t",
            "modality": {"0": "SM"},
            "labels": labels,
            "training": items[:5],
            "validation": items[5:7],
            "test": items[7:],
        }
        (folder / "dataset.json").write_text(json.dumps(record))
    summary = simulation.run(job(), tmp_path, ["site-1", "site-2"])
    assert summary["status"] == "COMPLETE"
    assert summary["sites"]["site-2"]["metrics"]["auroc"]["undefined"] == 2
    assert next(iter(summary["aggregate"])) == "balanced_accuracy"


@pytest.mark.parametrize(
    ("name", "site", "number"), [("cls_derma", 4, 7), ("cls_blood", 1, 3), ("cls_four_modalities", 4, 25)]
)
def test_real_cases_are_read(shared_data, name, site, number):
    datalist = read_datalist(shared_data / "federations" / name / f"site-{site}", required=("image", "label"))
    task = load_task(job())
    cases = [task.read(item, datalist.labels) for item in datalist.training[:40]]
    facts = task.facts([task.case_facts(case) for case in cases], datalist.labels)
    assert (facts["dims"], facts["side"], facts["num_classes"]) == (2, 28, number)
    assert task.agree({"s": facts})["size"] == [28, 28]
