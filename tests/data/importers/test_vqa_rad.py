import json
from collections import Counter

import pytest

from omnifm.data.datalist import read_datalist
from omnifm.data.importers.vqa_rad import prepare
from omnifm.data.volume import read_volume
from tests.data.importers import layouts
from tests.data.importers.layouts import VQA

LIST = "VQA_RAD Dataset Public.json"


def items_of(folder):
    sites = (read_datalist(site, required=VQA) for site in folder.glob("site-*"))
    return [item for site in sites for items in site.splits().values() for item in items]


def edit(source, **changes):
    entries = json.loads((source / LIST).read_text())
    entries[0] = {key: value for key, value in {**entries[0], **changes}.items() if value is not None}
    (source / LIST).write_text(json.dumps(entries))
    return source


def test_warts(tmp_path):
    """The trailing space of "CLOSED ", a number as answer, two typos in the question types."""
    prepare(layouts.vqa_rad(tmp_path / "source"), tmp_path / "out")
    items = items_of(tmp_path / "out")
    assert Counter(item["answer_type"] for item in items) == {"CLOSED": 24, "OPEN": 24}
    assert Counter(item["question_type"] for item in items) == {"MODALITY, PRES": 24, "COUNT": 24}
    assert {item["answer"] for item in items if item["answer_type"] == "OPEN"} == {str(n) for n in range(24)}


def test_modality_is_the_organs_and_a_heads_is_what_its_questions_say(tmp_path):
    prepare(layouts.vqa_rad(tmp_path / "source"), tmp_path / "out")
    found = {int(item["image"].stem[6:]) % 3: item["modality"] for item in items_of(tmp_path / "out")}
    assert found == {0: "MR", 1: "CR", 2: "CT"}


@pytest.mark.parametrize(("folder", "name"), [("images", "trainset.json"), ("images", "qa.json")])
def test_other_layouts(tmp_path, folder, name):
    source = layouts.vqa_rad(tmp_path / "source")
    (source / LIST).rename(source / name)
    (source / "VQA_RAD Image Folder").rename(source / folder)
    prepare(source, tmp_path / "out")
    assert len(items_of(tmp_path / "out")) == 48


@pytest.mark.parametrize("changes", [{"answer": None}, {"question": ""}, {"answer_type": "MAYBE"}])
def test_a_malformed_entry_is_left_out_and_counted(tmp_path, capsys, changes):
    prepare(edit(layouts.vqa_rad(tmp_path / "source"), **changes), tmp_path / "out")
    assert "left out 1 of 48 entries. 1 malformed: " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/passwd"])
def test_rejects_paths_that_leave_the_source(tmp_path, name):
    with pytest.raises(ValueError, match=r"^image of entry 0 of VQA_RAD Dataset Public\.json must be a plain path"):
        prepare(edit(layouts.vqa_rad(tmp_path / "source"), image_name=name), tmp_path / "out")


@pytest.mark.slow
def test_real_questions(shared_data, tmp_path, capsys):
    source = shared_data / "native/vqa_rad"
    prepare(source, tmp_path / "out")
    assert capsys.readouterr().out == ""
    entries = json.loads((source / "qa.json").read_text())
    items = items_of(tmp_path / "out")
    assert len(items) == len(entries) == 2815
    assert Counter(item["image"].name for item in items) == Counter(entry["image_name"] for entry in entries)
    assert Counter(item["answer_type"] for item in items) == {"CLOSED": 1700, "OPEN": 1115}
    assert {item["modality"] for item in items} == {"CR", "CT", "MR", "OT"}
    datalist = read_datalist(tmp_path / "out/site-1", required=VQA)
    owners = [{item["image"] for item in split} for split in datalist.splits().values()]
    assert [len(images) for images in owners] == [145, 55, 51]
    assert read_volume(items[0]["image"]).array.size
