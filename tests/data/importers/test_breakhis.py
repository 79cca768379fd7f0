import csv

import pytest

from omnifm.data.datalist import read_datalist
from omnifm.data.importers.breakhis import TYPES, prepare
from tests.data.importers import layouts
from tests.data.importers.layouts import picture


def items_of(folder):
    sites = (read_datalist(site, required=("image", "label")) for site in folder.glob("site-*"))
    return [item for site in sites for items in site.splits().values() for item in items]


@pytest.mark.parametrize(("magnification", "number"), [(100, 24), (400, 24)])
def test_takes_one_magnification_of_the_real_tree(tmp_path, magnification, number):
    prepare(layouts.breakhis(tmp_path / "source"), tmp_path / "out", magnification=magnification)
    items = items_of(tmp_path / "out")
    assert len(items) == number
    assert all(f"-{magnification}-001.png" in item["image"].name for item in items)


def test_letters_of_a_slide_are_no_other_patient(tmp_path):
    for slide in ("14-22549AB", "14-22549CD", "14-22549", "15-22549", "14-1", "14-2", "14-3"):
        picture(tmp_path / "source" / f"SOB_B_A-{slide}-100-001.png")
    prepare(tmp_path / "source", tmp_path / "out")
    patients = [item["patient"] for item in items_of(tmp_path / "out")]
    assert sorted(patients) == ["14-1", "14-2", "14-22549", "14-22549", "14-22549", "14-3", "15-22549"]


@pytest.mark.parametrize("name", ["SOB_M_A-14-1-100-001.png", "SOB_B_XX-14-1-100-001.png", "SOB_B_A-14-1-50-001.png"])
def test_other_names_are_left_out(tmp_path, capsys, name):
    picture(layouts.breakhis(tmp_path / "source") / name)
    prepare(tmp_path / "source", tmp_path / "out")
    assert "left out 1 of 49 images. 1 malformed: " in capsys.readouterr().out
    assert len(items_of(tmp_path / "out")) == 24


@pytest.mark.parametrize("magnification", [0, 50])
def test_rejects_magnifications(tmp_path, magnification):
    with pytest.raises(ValueError, match=r"magnification must be one of 40, 100, 200, 400; got"):
        prepare(tmp_path, tmp_path / "out", magnification=magnification)


def test_rejects_a_magnification_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="source must hold usable images; it holds none"):
        prepare(layouts.breakhis(tmp_path / "source"), tmp_path / "out", magnification=40)


def test_real_crops_agree_with_their_index(shared_data, tmp_path):
    source = shared_data / "native/breakhis"
    prepare(source, tmp_path / "out")
    with (source / "index.csv").open() as text:
        rows = {row["file"]: row for row in csv.DictReader(text)}
    items = items_of(tmp_path / "out")
    assert len(items) == len(rows) == 75
    for item in items:
        row = rows[item["image"].name]
        assert item["patient"] == f"14-{row['patient']}"
        assert list(TYPES)[item["label"]] == row["tumour_type"]
        assert list(TYPES.values())[item["label"]].startswith(row["class"])
