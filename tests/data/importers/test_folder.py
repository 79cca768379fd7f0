import json
import re

import nibabel
import numpy as np
import pytest

from omnifm.data.datalist import read_datalist
from omnifm.data.importers import folder
from omnifm.data.importers.folder import prepare
from omnifm.data.volume import read_label, read_volume
from tests.data.importers import layouts
from tests.data.importers.layouts import picture

MASKS = {"modality": "US", "labels": "background,lesion"}
CLASSES = {"modality": "XC", "labels": "benign,malignant"}


def items_of(folder):
    sites = (read_datalist(site, required=("image", "label")) for site in sorted(folder.glob("site-*")))
    return [item for site in sites for items in site.splits().values() for item in items]


def test_images_keep_their_masks(tmp_path):
    """Image n of the made folder has grey level n and a mask full of n modulo 2."""
    prepare(layouts.folder(tmp_path / "source"), tmp_path / "out", **MASKS)
    for item in items_of(tmp_path / "out"):
        image = read_volume(item["image"])
        label = read_label(item["label"], image, {0: "", 1: ""})
        assert label.max() == image.array.max() % 2


def test_of_two_images_with_one_stem_each_keeps_its_mask(tmp_path):
    source = layouts.folder(tmp_path / "source")
    for kind, level in (("images", 31), ("labels", 1)):  # beside image and mask 4, whose mask is full of 0
        picture(source / kind / "Doe_1_4.bmp", level)
    prepare(source, tmp_path / "out", **MASKS)
    items = items_of(tmp_path / "out")
    assert len(items) == 25
    for item in items:
        image = read_volume(item["image"])
        assert read_label(item["label"], image, {0: "", 1: ""}).max() == image.array.max() % 2


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (["images/Doe_1_4.bmp"], "1 of 25 do not"),  # the mask is Doe_1_4.png's
        (["images/new.png", "labels/new.bmp", "labels/new.tif"], "1 of 25 do not"),
        (["images/new.png", "images/new.bmp", "labels/new.tif"], "2 of 26 do not"),
    ],
)
def test_rejects_masks_that_could_be_anothers(tmp_path, made, message):
    source = layouts.folder(tmp_path / "source")
    for name in made:
        picture(source / name, 1)
    with pytest.raises(ValueError, match=f"share its whole name with a mask, .*; {message}") as caught:
        prepare(source, tmp_path / "out", **MASKS)
    assert not (tmp_path / "out").exists()
    assert "Doe" not in str(caught.value)


@pytest.mark.parametrize("file", ["images/Notiz.txt", "labels/Notiz.DOCX"])
def test_a_text_among_the_images_is_none(tmp_path, capsys, file):
    source = layouts.folder(tmp_path / "source")
    (source / file).write_text("Doe")
    prepare(source, tmp_path / "out", patient="(Doe_[0-9]+)_", **MASKS)
    assert len(items_of(tmp_path / "out")) == 24
    said = capsys.readouterr().out
    assert said.startswith("passed over 1 of 25 files in one folder. 1 no_image_name: ")
    assert "Notiz" not in said
    assert "Notiz" in (tmp_path / "out/left-out.txt").read_text()


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.113619.2"])
def test_a_file_without_an_ending_may_be_an_image(tmp_path, name):
    source = layouts.folder(tmp_path / "source")
    for kind in ("images", "labels"):
        (source / kind / name).write_bytes(b"")
    with pytest.raises(ValueError, match="in 1 of 25"):
        prepare(source, tmp_path / "out", patient="(Doe_[0-9]+)_", **MASKS)


@pytest.mark.parametrize("folder", ["images", "."])
def test_images_alone(tmp_path, folder):
    for n in range(6):
        picture(tmp_path / "source" / folder / f"P{n}.png", n)
    (tmp_path / "source/notes").mkdir()
    prepare(tmp_path / "source", tmp_path / "out", modality="US", patient="(P[0-9]+)")
    splits = read_datalist(tmp_path / "out/site-1", required=("image",)).splits()
    assert sum(len(items) for items in splits.values()) == 6
    assert not any("label" in item for items in splits.values() for item in items)


def test_class_folders_need_their_names(tmp_path):
    with pytest.raises(ValueError, match="for class folders or masks add --labels"):
        prepare(layouts.class_folders(tmp_path / "source"), tmp_path / "out", modality="XC")


class TestPatientsUnknown:
    def test_no_item_claims_a_patient_and_it_is_said(self, tmp_path, capsys):
        prepare(layouts.folder(tmp_path / "source"), tmp_path / "out", **MASKS)
        assert not any("patient" in item for item in items_of(tmp_path / "out"))
        said = capsys.readouterr().out
        assert said.startswith("WARNING: every file counts as its own patient")
        assert "The 24 names share 8 beginnings" in said
        assert "Doe" not in said

    def test_with_patients_nothing_is_said(self, tmp_path, capsys):
        prepare(layouts.folder(tmp_path / "source"), tmp_path / "out", patient="Doe_([0-9]+)_", **MASKS)
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize(
        ("names", "pattern"),
        [
            ([f"P{n:03d}_{k}.png" for n in range(12) for k in range(2)], "(.+)[-_ ]"),
            ([f"P{n:02d}{k}.nii.gz" for n in range(4) for k in "ab"], "([A-Za-z]*[0-9]+)"),
            ([f"Doe {n}-{k}.tif" for n in range(3) for k in range(50)], "(.+)[-_ ]"),
            ([f"polyp_{n}.png" for n in range(12)], None),  # all share one beginning: it is no patient
            ([f"P{n:03d}.png" for n in range(12)], None),
            ([f"{n}-ct.png" for n in range(12)], None),
        ],
    )
    def test_an_expression_is_suggested_where_names_share_a_beginning(self, names, pattern):
        words = folder._warning(names)
        assert ("try --patient" in words) == (pattern is not None)
        if pattern:
            assert words.endswith(f"try --patient '{pattern}'.")
            assert len({re.search(pattern, name)[1] for name in names}) < len(names)


def test_a_mask_may_have_another_ending(tmp_path):
    source = layouts.folder(tmp_path / "source")
    (source / "labels/Doe_1_4.png").unlink()
    picture(source / "labels/Doe_1_4.bmp", 0)
    prepare(source, tmp_path / "out", **MASKS)
    assert len(items_of(tmp_path / "out")) == 24


def test_what_windows_leaves_beside_images_is_none(tmp_path, capsys):
    source = layouts.folder(tmp_path / "source")
    for name in ("images/Thumbs.db", "labels/desktop.ini", "images/._Doe_1_4.png"):
        (source / name).write_bytes(b"no image")
    prepare(source, tmp_path / "out", **MASKS)
    assert "left out" not in capsys.readouterr().out


def test_images_keep_their_class(tmp_path):
    prepare(layouts.class_folders(tmp_path / "source"), tmp_path / "out", **CLASSES)
    items = items_of(tmp_path / "out")
    assert len(items) == 24
    assert all(item["label"] == read_volume(item["image"]).array.max() % 2 for item in items)


def test_volumes_keep_their_ending(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / "source" / kind).mkdir(parents=True)
        for number in range(3):
            volume = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.eye(4))
            nibabel.save(volume, tmp_path / "source" / kind / f"Doe{number}.nii.gz")
    prepare(tmp_path / "source", tmp_path / "out", modality="MR", labels="background,lesion")
    assert {item["image"].name for item in items_of(tmp_path / "out")} == {f"0000{n}.nii.gz" for n in range(3)}


@pytest.mark.parametrize(("make", "options"), [(layouts.folder, MASKS), (layouts.class_folders, CLASSES)])
def test_no_name_is_kept(tmp_path, make, options):
    prepare(make(tmp_path / "source"), tmp_path / "out", patient="(Doe_[0-9]+)_", **options)
    site = tmp_path / "out/site-1"
    assert "Doe" not in (site / "dataset.json").read_text()
    assert not [file for file in site.rglob("*") if "Doe" in file.name]


def test_patients_are_read_from_names(tmp_path):
    prepare(layouts.folder(tmp_path / "source"), tmp_path / "out", patient="Doe_([0-9]+)_", **MASKS)
    groups = {}
    for item in items_of(tmp_path / "out"):
        groups.setdefault(item["patient"], []).append(int(read_volume(item["image"]).array.max()) // 3)
    assert groups == {f"p{patient + 1}": [patient] * 3 for patient in range(8)}


@pytest.mark.parametrize(("make", "options"), [(layouts.folder, MASKS), (layouts.class_folders, CLASSES)])
@pytest.mark.parametrize("pattern", ["Doe_([0-6])_", "Doe_(?:([0-6])|7)_", "([^7]?)_[0-9]+.png$"])
def test_rejects_a_pattern_that_misses_a_name(tmp_path, make, options, pattern):
    """Patient 7's three images must not become three patients, nor the nameless one."""
    with pytest.raises(ValueError, match="find a patient in the name of every image; it does not in 3 of 24") as caught:
        prepare(make(tmp_path / "source"), tmp_path / "out", patient=pattern, **options)
    assert "Doe" not in str(caught.value)


def test_numbers_follow_the_alphabet_also_where_images_are_left_out(tmp_path):
    source = layouts.folder(tmp_path / "source")
    sorted((source / "images").iterdir())[2].write_bytes(b"")
    prepare(source, tmp_path / "out", **MASKS)
    levels = [read_volume(file).array.max() for file in sorted((source / "images").iterdir()) if file.stat().st_size]
    names = [f"{number:05d}.png" for number in range(24) if number != 2]
    found = {item["image"].name: read_volume(item["image"]).array.max() for item in items_of(tmp_path / "out")}
    assert found == dict(zip(names, levels, strict=True))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda masks: masks[0].unlink(), "missing_file"),
        (lambda masks: picture(masks[0], 7), "label_values"),
        (lambda masks: masks[0].rename(masks[0].with_suffix(".txt")), "missing_file"),
        (lambda masks: masks[0].write_bytes(b"GIF89a"), "not_an_image"),
    ],
)
def test_a_mask_that_does_not_fit_is_left_out(tmp_path, capsys, spoil, reason):
    source = layouts.folder(tmp_path / "source")
    spoil(sorted((source / "labels").iterdir()))
    prepare(source, tmp_path / "out", **MASKS)
    assert f"left out 1 of 24 images. 1 {reason}: " in capsys.readouterr().out
    assert "Doe" in (tmp_path / "out/left-out.txt").read_text()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"modality": "mr"}, "modality must be a DICOM code such as MR"),
        ({"labels": "a,,b"}, "labels must be different names, separated by commas; got 3 names"),
        ({"labels": "a,a"}, "labels must be different names"),
        ({"patient": "Doe"}, "patient must be a regular expression with a group"),
        ({"patient": "("}, "patient must be a regular expression with a group"),
    ],
)
def test_rejects_options(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        prepare(tmp_path, tmp_path / "out", **{**MASKS, **options})


def test_folders_of_patients_are_not_taken_for_classes(tmp_path):
    """Names of classes go to the server: they must be said, not found."""
    picture(layouts.class_folders(tmp_path / "source") / "Jane Doe/1.png")
    with pytest.raises(ValueError, match="exactly the folders that labels names; got 2 of 2 and 1 others") as caught:
        prepare(tmp_path / "source", tmp_path / "out", **CLASSES)
    assert "Doe" not in str(caught.value)


def test_labels_are_declared(tmp_path):
    prepare(layouts.folder(tmp_path / "source"), tmp_path / "out", **MASKS)
    content = json.loads((tmp_path / "out/site-1/dataset.json").read_text())
    assert content["labels"] == {"0": "background", "1": "lesion"}
    assert content["modality"] == {"0": "US"}
