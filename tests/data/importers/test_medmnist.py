import json

import numpy as np
import pytest

from omnifm.data.datalist import read_datalist
from omnifm.data.importers import medmnist
from omnifm.data.importers.medmnist import ORGANS, ORGANS_3D, SUBSETS, prepare
from omnifm.data.volume import read_volume
from tests.data.importers import layouts


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return layouts.medmnist(tmp_path_factory.mktemp("medmnist"))


def items_of(folder):
    return [item for items in read_datalist(folder, required=("image", "label")).splits().values() for item in items]


def change(source, folder, **arrays):
    """A copy of the source's pneumoniamnist with other arrays; None drops one."""
    with np.load(source / "pneumoniamnist.npz") as old:
        new = {**dict(old), **arrays}
    folder.mkdir(exist_ok=True)
    np.savez(folder / "pneumoniamnist.npz", **{name: array for name, array in new.items() if array is not None})
    return folder


def test_every_image_keeps_its_label_and_its_split(source, tmp_path):
    """Grey level g has label g modulo the number of classes; levels 0-13 train, 14-17 validate, 18-23 test."""
    prepare(source, tmp_path / "out")
    for number, (num_classes, offset) in enumerate([(7, 0), (2, 7), (11, 9)], start=1):
        datalist = read_datalist(tmp_path / f"out/site-{number}", required=("image", "label"))
        for split, levels in (("training", range(14)), ("validation", range(14, 18)), ("test", range(18, 24))):
            items = datalist.splits()[split]
            assert [read_volume(item["image"]).array.max() for item in items] == list(levels)
            assert [item["label"] for item in items] == [offset + level % num_classes for level in levels]


def test_sites_are_subsets_with_common_class_numbers(source, tmp_path):
    prepare(source, tmp_path / "out", subsets="organmnist3d,dermamnist")
    contents = [json.loads((tmp_path / f"out/site-{n}/dataset.json").read_text()) for n in (1, 2)]
    assert [content["name"] for content in contents] == ["MedMNIST, organmnist3d", "MedMNIST, dermamnist"]
    assert [content["modality"]["0"] for content in contents] == ["CT", "XC"]
    assert contents[0]["labels"] == contents[1]["labels"]
    assert contents[0]["labels"]["10"] == "organmnist3d: pancreas"
    assert contents[0]["labels"]["11"] == "dermamnist: actinic keratosis"
    assert read_volume(items_of(tmp_path / "out/site-1")[0]["image"]).array.shape == (28, 28, 28)
    assert read_volume(items_of(tmp_path / "out/site-2")[0]["image"]).array.shape == (28, 28, 1, 3)


def test_dirichlet_mixes_subsets_and_loses_nothing(source, tmp_path):
    prepare(source, tmp_path / "out", partition="dirichlet", sites=3, gamma=0.5)
    items = [item for site in (tmp_path / "out").iterdir() for item in items_of(site)]
    assert len(items) == 3 * 24
    assert sorted(item["label"] for item in items if item["label"] < 7) == sorted(level % 7 for level in range(24))


def test_large_sites_are_cut_into_parts(source, tmp_path, monkeypatch):
    monkeypatch.setattr(medmnist, "PART_BYTES", 10 * 28 * 28)
    prepare(source, tmp_path / "out", subsets="pneumoniamnist")
    site = tmp_path / "out/site-1"
    parts = {file.name: len(np.load(file)["images"]) for file in site.glob("*.npz")}
    assert parts == {"pneumoniamnist-0.npz": 10, "pneumoniamnist-1.npz": 10, "pneumoniamnist-2.npz": 4}
    assert [read_volume(item["image"]).array.max() for item in items_of(site)] == list(range(24))


def test_the_paper_has_24_classes():
    """arXiv 2603.21660, sec. 4.1: colon pathology, dermatoscope and blood cells hold 24 classes."""
    assert sum(len(SUBSETS[name][1]) for name in ("pathmnist", "dermamnist", "bloodmnist")) == 24
    assert sorted(ORGANS) == sorted(ORGANS_3D)


def test_sizes_are_in_the_file_names(source, tmp_path):
    (tmp_path / "dermamnist_64.npz").write_bytes((source / "dermamnist.npz").read_bytes())
    prepare(tmp_path, tmp_path / "out", size=64)
    with pytest.raises(ValueError, match=r"in files of size 28; got none"):
        prepare(tmp_path, tmp_path / "other")


@pytest.mark.parametrize("subsets", ["chestmnist", "dermamnist,dermamnist", "../dermamnist", "dermamnist,"])
def test_rejects_subsets(source, tmp_path, subsets):
    with pytest.raises(ValueError, match=r"subsets must be among .*, each once"):
        prepare(source, tmp_path / "out", subsets=subsets)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"test_images": None}, r"must hold \{train,val,test\}_\{images,labels\}; KeyError"),
        ({"train_images": np.array([{}], object)}, "must hold .*; ValueError"),
        ({"train_images": np.zeros((14, 28, 28), np.float32)}, r"images of .* must be uint8 .*; float32 of \(14"),
        ({"val_images": np.zeros((4, 27, 28), np.uint8)}, r"images of .*; uint8 of \(4, 27, 28\)"),
        ({"train_images": np.zeros((14, 28), np.uint8)}, "images of pneumoniamnist.npz must be uint8"),
        ({"train_labels": np.zeros((14, 14), np.uint8)}, r"one class number per image; got uint8 of \(14, 14\)"),
        ({"train_labels": np.zeros((14, 1))}, "one class number per image; got float64"),
        ({"train_labels": np.full((14, 1), 9, np.uint8)}, "left out 14. 14 malformed: "),
    ],
)
def test_rejects_arrays(source, tmp_path, arrays, match):
    with pytest.raises(ValueError, match=match):
        prepare(change(source, tmp_path / "bad", **arrays), tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip"])
def test_rejects_what_is_no_npz(tmp_path, content):
    (tmp_path / "pathmnist.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"pathmnist\.npz must be a zip of arrays; BadZipFile"):
        prepare(tmp_path, tmp_path / "out")


def test_rejects_a_damaged_npz(source, tmp_path):
    data = bytearray((source / "dermamnist.npz").read_bytes())
    data[100:140] = bytes(40)
    (tmp_path / "dermamnist.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"dermamnist\.npz must hold"):
        prepare(tmp_path, tmp_path / "out")


def test_rejects_more_than_memory_holds(source, tmp_path, monkeypatch):
    monkeypatch.setattr(medmnist, "available_memory_bytes", lambda: 10**5)
    with pytest.raises(ValueError, match=r"dermamnist\.npz must fit in memory twice; it takes 0 MiB"):
        prepare(source, tmp_path / "out")


@pytest.mark.slow
def test_real_file(shared_data, tmp_path):
    prepare(shared_data / "native/medmnist", tmp_path / "out")
    datalist = read_datalist(tmp_path / "out/site-1", required=("image", "label"))
    assert [len(items) for items in datalist.splits().values()] == [4708, 524, 312]
    with np.load(shared_data / "native/medmnist/pneumoniamnist.npz") as arrays:
        for index in (0, 311):
            item = datalist.test[index]
            np.testing.assert_array_equal(read_volume(item["image"]).array[:, :, 0].T, arrays["test_images"][index])
            assert item["label"] == arrays["test_labels"][index, 0]
