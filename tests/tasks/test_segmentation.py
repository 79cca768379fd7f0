import json
from typing import ClassVar

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from omnifm.data.volume import RefusedImage
from omnifm.plugins import load_task
from tests.conftest import experiment

LABELS = {0: "background", 1: "ball", 4: "tumour"}


def volume(tmp_path, shape=(20, 18, 12), affine=None, labels=(0, 1, 4)):
    rng = np.random.default_rng(0)
    affine = np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine
    mask = rng.choice(labels, size=shape).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(rng.normal(size=shape).astype(np.float32), affine), tmp_path / "i.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / "l.nii.gz")
    return {"image": tmp_path / "i.nii.gz", "label": tmp_path / "l.nii.gz"}, mask


def picture(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "i.png")
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 30:50] = 255
    Image.fromarray(mask).save(tmp_path / "l.png")
    return {"image": tmp_path / "i.png", "label": tmp_path / "l.png"}


def configured(case, **settings):
    task = load_task(experiment(task=settings))
    task.configure(task.agree({"s": task.facts([task.case_facts(case)], LABELS)}))
    return task


def perfect(case, task):
    """A network that knows the answer: logits are the one-hot label of the prepared grid."""
    label = case["label"].long()
    hot = torch.nn.functional.one_hot(label[0], len(task.spec["labels"])).movedim(-1, 0).float() * 20

    def forward(batch):
        size = batch["image"].shape[2:]
        assert tuple(size) == tuple(task.spec["patch"])
        return hot[None][(..., *(slice(0, s) for s in size))]

    return forward


class TestRead:
    def test_label_values_become_class_numbers(self, tmp_path):
        item, mask = volume(tmp_path)
        case = load_task(experiment()).read(item, LABELS)
        assert np.array_equal(case["native_label"], np.searchsorted([0, 1, 4], mask))
        assert case["spacing_mm"].tolist() == [1.0, 1.0, 2.0]

    def test_orientations_end_in_one(self, tmp_path):
        """The same voxels stored the other way round, as an LPS scanner does."""
        item, _ = volume(tmp_path)
        straight = load_task(experiment()).read(item, LABELS)
        for name in ("i", "l"):
            image = nibabel.load(tmp_path / f"{name}.nii.gz")
            flipped = np.asarray(image.dataobj)[::-1, ::-1]
            affine = image.affine @ np.array([[-1, 0, 0, 19], [0, -1, 0, 17], [0, 0, 1, 0], [0, 0, 0, 1.0]])
            nibabel.save(nibabel.Nifti1Image(flipped, affine), tmp_path / f"{name}.nii.gz")
        turned = load_task(experiment()).read(item, LABELS)
        assert np.array_equal(turned["array"], straight["array"])
        assert np.array_equal(turned["native_label"], straight["native_label"])

    def test_a_byte_holds_every_class_and_more_are_refused(self, tmp_path):
        item, _ = volume(tmp_path)
        mask = (np.arange(20 * 18 * 12) % 256).reshape(20, 18, 12).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(mask, np.diag([1.0, 1.0, 2.0, 1.0])), item["label"])
        labels = {value: f"region {value}" for value in range(256)}
        assert np.array_equal(load_task(experiment()).read(item, labels)["native_label"], mask)
        with pytest.raises(RefusedImage, match="'labels' must name at most 256 values; got 257") as refusal:
            load_task(experiment()).read(item, labels | {256: "region 256"})
        assert refusal.value.reason == "label_values"

    def test_refuses_undeclared_labels_and_other_grids(self, tmp_path):
        item, _ = volume(tmp_path)
        with pytest.raises(RefusedImage, match="4"):
            load_task(experiment()).read(item, {0: "background", 1: "ball"})
        other, _ = volume(tmp_path, shape=(20, 18, 11))
        (tmp_path / "o").mkdir()
        item, _ = volume(tmp_path / "o")
        with pytest.raises(RefusedImage):
            load_task(experiment()).read({"image": other["image"], "label": item["label"]}, LABELS)


class TestAgree:
    FACT: ClassVar = {
        "dims": 3,
        "channels": 1,
        "labels": {"0": "a", "1": "b"},
        "spacing_mm": [1.0, 1.0, 1.0],
        "finest_mm": [1.0, 1.0, 1.0],
        "extent_mm": [40.0] * 3,
        "median_mm": [40.0] * 3,
    }

    def test_median_spacing_and_a_patch_no_longer_than_the_volumes(self):
        task = load_task(experiment(task={"patch_size": 64}))
        facts = {str(n): self.FACT | {"spacing_mm": [mm] * 3} for n, mm in enumerate((1.0, 1.0, 3.0))}
        assert task.agree(facts)["spacing_mm"] == [1.0] * 3
        assert task.agree(facts)["patch"] == [48] * 3
        assert load_task(experiment(task={"patch_size": 32})).agree(facts)["patch"] == [32] * 3

    @pytest.mark.parametrize(("key", "value", "what"), [("dims", 2, "dims"), ("labels", {"0": "a"}, "label values")])
    def test_refuses_naming_who_differs_in_what(self, key, value, what):
        facts = {"site-1": self.FACT, "site-2": self.FACT | {key: value}}
        with pytest.raises(ValueError, match=f"sites must agree on {what}; got .*site-1.*site-2"):
            load_task(experiment()).agree(facts)

    def test_refuses_a_name_under_two_values_and_channels_without_a_common_number(self):
        swapped = {"site-1": self.FACT, "site-2": self.FACT | {"labels": {"0": "b", "1": "a"}}}
        with pytest.raises(ValueError, match="'b' must be one label value at all sites; got 1 and 0, 'site-2'"):
            load_task(experiment()).agree(swapped)
        contrasts = {"site-1": self.FACT, "site-2": self.FACT | {"channels": 4}}
        with pytest.raises(ValueError, match=r"one number of channels.*got \[1, 4\]"):
            load_task(experiment()).agree(contrasts)

    def test_modalities_with_structures_of_their_own_train_together(self, tmp_path, caplog):
        facts = {"site-1": self.FACT, "site-2": self.FACT | {"channels": 3, "labels": {"0": "a", "1": "c"}}}
        spec = load_task(experiment()).agree(facts)
        assert (spec["channels"], spec["labels"]) == (3, {"0": "a", "1": "b / c"})
        assert "b / c" in caplog.text
        item, _ = volume(tmp_path)
        case = load_task(experiment()).read(item, LABELS)
        task = configured(case, patch_size=32)
        task.configure(task.spec | {"channels": 3})
        grey = task.prepare(case)["image"]
        assert len(grey) == 3
        assert torch.equal(grey[0], grey[2])

    def test_refuses_a_site_that_mixes_dimensions(self):
        cases = [{"dims": d, "channels": 1, "spacing_mm": [1.0] * 3, "shape": [4] * 3} for d in (2, 3)]
        with pytest.raises(ValueError, match=r"cases must have one number of dimensions; got \[2, 3\]"):
            load_task(experiment()).facts(cases, LABELS)


class TestEvaluation:
    @pytest.mark.parametrize("spacing", ["auto", [2.0, 2.0, 2.0], [1.0, 1.5, 1.0]])
    def test_is_scored_on_the_cases_own_grid(self, tmp_path, spacing):
        """A network that answers with its own (resampled) label has Dice 1 where nothing is resampled."""
        item, _ = volume(tmp_path, labels=(0, 1))
        case = load_task(experiment()).read(item, LABELS)
        task = configured(case, patch_size=32, spacing_mm=spacing)
        prepared = task.prepare(case)
        predicted = task.predict(perfect(prepared, task), prepared)
        assert predicted.shape == case["native_label"].shape
        if spacing == "auto":
            assert task.score(perfect(prepared, task), prepared)["dice"] == 1.0

    def test_pictures(self, tmp_path):
        case = load_task(experiment()).read(picture(tmp_path), {0: "background", 1: "polyp"})
        assert case["array"].shape == (60, 40, 1, 3)
        task = load_task(experiment(task={"image_size": 32}))
        task.configure(task.agree({"s": task.facts([task.case_facts(case)], {0: "background", 1: "polyp"})}))
        prepared = task.prepare(case)
        assert prepared["image"].shape == (3, 32, 32)
        assert task.score(perfect(prepared, task), prepared)["dice"] > 0.9
        drawn = task.picture(perfect(prepared, task), prepared)
        assert drawn.shape == (40, 180, 3)
        assert drawn.dtype == np.uint8

    def test_volumes_longer_than_a_patch_are_covered_by_windows(self, tmp_path):
        item, _ = volume(tmp_path, shape=(40, 18, 12))
        case = load_task(experiment()).read(item, LABELS)
        task = configured(case, patch_size=16)
        prepared = task.prepare(case)
        seen = []

        def forward(batch):
            seen.append(batch["image"].shape)
            return torch.zeros(len(batch["image"]), 3, *batch["image"].shape[2:])

        assert task.predict(forward, prepared).shape == (40, 18, 12)
        assert sum(shape[0] for shape in seen) > 2


class TestSamples:
    def test_augmentation_keeps_image_and_label_together(self, tmp_path):
        """Image = label, up to the intensity changes: after every random crop and flip it still is."""
        item, _ = volume(tmp_path, shape=(20, 18, 16), labels=(0, 1))
        case = load_task(experiment()).read(item, LABELS)
        case["array"] = case["native_label"][..., None].astype(np.float32)
        task = configured(case, patch_size=16)
        augment = task.augment().set_random_state(0)
        for _ in range(8):
            sample = augment(task.prepare(case))[0]
            high = sample["image"] > sample["image"].mean()
            assert torch.equal(high, sample["label"] > 0.5)
            assert tuple(sample["image"].shape[1:]) == tuple(task.spec["patch"])

    def test_the_view_is_fixed(self, tmp_path):
        item, _ = volume(tmp_path)
        task = configured(load_task(experiment()).read(item, LABELS), patch_size=16)
        prepared = task.prepare(load_task(experiment()).read(item, LABELS))
        assert torch.equal(task.view(prepared), task.view(prepared))
        assert tuple(task.view(prepared).shape[1:]) == tuple(task.spec["patch"])


@pytest.mark.parametrize(
    ("name", "channels", "dims"), [("seg_polyp", 3, 2), ("seg_hippocampus", 1, 3), ("seg_fundus", 3, 2)]
)
def test_real_cases_are_read(shared_data, name, channels, dims):
    from omnifm.data.datalist import read_datalist

    datalist = read_datalist(shared_data / "federations" / name / "site-2", required=("image", "label"))
    task = load_task(experiment())
    case = task.read(datalist.training[0], datalist.labels)
    assert (task.case_facts(case)["channels"], task.case_facts(case)["dims"]) == (channels, dims)
    assert set(np.unique(case["native_label"])) <= set(range(len(datalist.labels)))
    assert case["native_label"].any()
    assert json.loads(json.dumps(task.case_facts(case))) == task.case_facts(case)
