"""Things to look at: each kind is found where it is, and nowhere else, with something to do about it."""

import json
import re

import nibabel
import numpy as np
import pytest
from PIL import Image

from omnifm.data.header_notes import notes
from omnifm.quality import things
from omnifm.quality.inspection import check_site, in_words, write_page

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def site(folder, change=lambda number, image, mask: None, patient=str, labels=("background", "lesion"), num=5):
    """Noise with a box, another one for every patient; `change` may edit the arrays."""
    items = []
    for number in range(num):
        image = np.random.default_rng(number).normal(100, 20, (16, 16, 8)).astype(np.float32)
        mask = np.zeros(image.shape, np.uint8)
        mask[3:8, 3 : 8 + number, 2:5] = 1
        change(number, image, mask)
        for name, array in (("i", image), ("m", mask)):
            nibabel.save(nibabel.Nifti1Image(array, AFFINE), folder / f"{name}{number}.nii.gz")
        items.append({"image": f"i{number}.nii.gz", "label": f"m{number}.nii.gz", "patient": patient(number)})
    names = {str(value): name for value, name in enumerate(labels)}
    record = {"name": "x", "modality": {"0": "MR"}, "labels": names, "training": items}
    (folder / "dataset.json").write_text(json.dumps(record))
    return folder


def found(folder):
    report, _ = check_site(folder)
    assert report["usable"]
    places = {name: [at["position"] for at in odd] for name, odd in report["odd"].items()}
    return {advice["name"]: places.get(advice["name"]) for advice in report["look_at"]}


def one_voxel(number, image, mask):
    if number == 2:
        mask[:] = 0
        mask[5, 5, 5] = 1


def everything(number, image, mask):
    if number == 3:
        mask[1:] = 1


def same(number, image, mask):
    if number in (0, 4):
        mask[:] = 0
        mask[2:6, 2:6, 2:6] = 1


def mostly_black(number, image, mask):
    if number == 1:
        image[:] = 0
        image[4:6, 4:6] = np.random.default_rng(0).normal(100, 5, (2, 2, 8))


class TestCases:
    def test_a_sound_site_has_none(self, tmp_path):
        assert found(site(tmp_path)) == {}

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (one_voxel, {"tiny_mask": [2]}),
            (everything, {"large_mask": [3]}),
            (same, {"equal_masks": [0, 4]}),
            (mostly_black, {"padding": [1]}),
        ],
    )
    def test_each_kind_is_found_where_it_is(self, tmp_path, change, expected):
        assert found(site(tmp_path, change)) == expected

    def test_one_patients_sequences_may_share_a_mask(self, tmp_path):
        assert found(site(tmp_path, same, patient=lambda number: str(number % 4))) == {}

    def test_two_transforms_are_told_from_rounding(self, tmp_path):
        folder = site(tmp_path)
        for number, shift in ((1, 0.4), (2, 12.0)):
            image = nibabel.load(folder / f"i{number}.nii.gz")
            image = nibabel.Nifti1Image(np.asarray(image.dataobj), AFFINE)
            moved = AFFINE.copy()
            moved[0, 3] = shift
            image.set_sform(AFFINE, 1)
            image.set_qform(moved, 1)
            nibabel.save(image, folder / f"i{number}.nii.gz")
            assert notes(folder / f"i{number}.nii.gz")["transforms_apart"] == pytest.approx(shift, abs=1e-4)
        assert found(folder) == {"two_transforms": [2]}

    def test_a_qform_that_mirrors_left_and_right(self, tmp_path):
        mirrored = np.diag([-1.0, 1.0, 2.0, 1.0])
        image = nibabel.Nifti1Image(np.zeros((16, 16, 8), np.float32), AFFINE)
        image.set_sform(AFFINE, 1)
        image.set_qform(mirrored, 1)
        nibabel.save(image, tmp_path / "a.nii")
        assert notes(tmp_path / "a.nii")["transforms_apart"] == pytest.approx(30)

    def test_pictures_with_an_orientation_tag(self, tmp_path):
        items = []
        for number in range(3):
            picture = Image.fromarray(np.random.default_rng(number).integers(0, 255, (12, 16), dtype=np.uint8))
            exif = Image.Exif()
            exif[0x0112] = 6 if number == 1 else 1
            picture.save(tmp_path / f"{number}.jpg", exif=exif)
            items.append({"image": f"{number}.jpg", "label": number % 2, "patient": str(number)})
        record = {"name": "x", "modality": {"0": "XC"}, "labels": {"0": "a", "1": "b"}, "training": items}
        (tmp_path / "dataset.json").write_text(json.dumps(record))
        assert found(tmp_path) == {"orientation_tag": [1]}


class TestSites:
    def test_one_patient_for_all(self, tmp_path):
        assert "one_patient" in found(site(tmp_path, patient=lambda _number: "ANONYMOUS"))

    def test_a_class_that_nobody_paints_is_named(self, tmp_path):
        report, _ = check_site(site(tmp_path, labels=("background", "lesion", "oedema")))
        (line,) = [line for line in in_words(report) if line.startswith("look at: ")]
        assert line.startswith("look at: 1 of 3 classes in 'labels' occur in no case: 'oedema'. A class that")

    def test_copies_come_with_what_to_do(self, tmp_path):
        folder = site(tmp_path, num=4)
        record = json.loads((folder / "dataset.json").read_text())
        record["training"] += [record["training"][0]]
        (folder / "dataset.json").write_text(json.dumps(record))
        assert list(found(folder)) == ["repeated"]

    def test_the_share_of_foreground_is_told_for_each_class(self, tmp_path):
        line = next(line for line in in_words(check_site(site(tmp_path))[0]) if line.startswith("training"))
        assert re.search(r"background 3 \(9\d % of the voxels\), lesion 3 \([4-9](\.\d)? % of the voxels\)", line), line


def test_every_kind_has_a_sentence_and_something_to_do():
    for thing in things.THINGS.values():
        assert thing.what.strip() and thing.advice.endswith(".")
    assert set(things.PICTURED) <= set(things.THINGS)


def test_the_page_shows_what_to_do_and_a_picture(tmp_path):
    report, pictures = check_site(site(tmp_path, one_voxel))
    write_page(tmp_path / "check.html", report, pictures)
    text = (tmp_path / "check.html").read_text()
    assert "Things to look at" in text
    section = text.split("Things to look at")[1].split("</section>")[0]
    assert things.THINGS["tiny_mask"].advice in section
    assert section.count("<img") == 1
    assert "tiny mask: " not in text  # the picture does not stand among the samples, too
