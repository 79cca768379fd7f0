import json

import pytest

from omnifm.data.datalist import read_datalist
from omnifm.data.importers.slake import prepare
from tests.data.importers import layouts
from tests.data.importers.layouts import VQA, picture


def items_of(folder, site="site-1"):
    return [item for items in read_datalist(folder / site, required=VQA).splits().values() for item in items]


def edit(source, **changes):
    """Change the first entry of train.json; None drops a field."""
    entries = json.loads((source / "train.json").read_text())
    entries[0] = {key: value for key, value in {**entries[0], **changes}.items() if value is not None}
    (source / "train.json").write_text(json.dumps(entries))
    return source


@pytest.mark.parametrize(("language", "number"), [("en", 48), ("zh", 48), ("all", 96)])
def test_languages(tmp_path, language, number):
    prepare(layouts.slake(tmp_path / "source"), tmp_path / "out", language=language)
    items = items_of(tmp_path / "out")
    assert len(items) == number
    assert any("图" in item["question"] for item in items) == (language != "en")


def test_an_item(tmp_path):
    prepare(layouts.slake(tmp_path / "source"), tmp_path / "out")
    item = next(item for item in items_of(tmp_path / "out") if item["patient"] == "imgs/xmlab2/source.jpg")
    assert item["image"] == tmp_path / "out/site-1/images/imgs/xmlab2/source.jpg"
    wanted = {
        "question": "What modality is it?",
        "answer": "X-Ray",
        "answer_type": "OPEN",
        "question_type": "Modality",
        "modality": "CR",
    }
    assert {key: item[key] for key in wanted} == wanted


def test_the_split_through_images_is_dealt_anew(tmp_path, capsys):
    prepare(layouts.slake(tmp_path / "source"), tmp_path / "out")
    assert "the official split puts 24 patients or images into several splits" in capsys.readouterr().out


def test_a_split_by_image_is_kept(tmp_path, capsys):
    source = layouts.slake(tmp_path / "source")
    entries = json.loads((source / "train.json").read_text())
    for name, own in (("train", entries[:40]), ("validate", entries[40:44]), ("test", entries[44:])):
        (source / f"{name}.json").write_text(json.dumps(own))
    prepare(source, tmp_path / "out")
    assert capsys.readouterr().out == ""
    sizes = [len(items) for items in read_datalist(tmp_path / "out/site-1", required=VQA).splits().values()]
    assert sizes == [20, 2, 2]


@pytest.mark.parametrize(
    "changes",
    [
        {"answer": ""},
        {"answer": None},
        {"answer": ["x"]},
        {"question": " "},
        {"modality": "Drawing"},
        {"modality": {}},
        {"answer_type": "EITHER"},
        {"q_lang": "de"},
        {"q_lang": []},
        {"img_name": 7},
    ],
)
def test_a_malformed_entry_is_left_out_and_counted(tmp_path, capsys, changes):
    prepare(edit(layouts.slake(tmp_path / "source"), **changes), tmp_path / "out")
    assert "left out 1 of 96 entries. 1 malformed: " in capsys.readouterr().out
    assert len(items_of(tmp_path / "out")) == 47


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd", "xmlab0/../../x.jpg"])
def test_rejects_paths_that_leave_the_source(tmp_path, name):
    picture(tmp_path / "secret.jpg")
    with pytest.raises(ValueError, match=r"^image of entry 0 of train\.json must be a plain path"):
        prepare(edit(layouts.slake(tmp_path / "source"), img_name=name), tmp_path / "out")


def test_rejects_languages(tmp_path):
    with pytest.raises(ValueError, match=r"language must be one of en, zh, all; got 'fr'"):
        prepare(tmp_path, tmp_path / "out", language="fr")


@pytest.mark.slow
def test_real_questions_without_images_cost_one_line(shared_data, tmp_path, capsys):
    """630 images in the two files; English questions ask about all but the few that only Chinese ones name."""
    with pytest.raises(ValueError, match=r"got (\d+), left out \1. \1 missing_file: "):
        prepare(shared_data / "native/slake", tmp_path / "out")
    assert capsys.readouterr().out.startswith("left out 1 of 11934 entries. 1 malformed: ")  # one answer is empty


def test_real_questions_with_made_images(shared_data, tmp_path):
    source = tmp_path / "source"
    native = json.loads((shared_data / "native/slake/train.json").read_text())
    names = sorted({entry["img_name"] for entry in native})[:60]
    entries = [entry for entry in native if entry["img_name"] in names]
    for name in names:
        picture(source / "imgs" / name)
    (source / "train.json").write_text(json.dumps(entries))
    prepare(source, tmp_path / "out", partition="modality")
    found = [item for number in (1, 2, 3) for item in items_of(tmp_path / "out", f"site-{number}")]
    english = [entry for entry in entries if entry["q_lang"] == "en"]
    assert len(found) == len(english)
    assert {item["answer"] for item in found} == {" ".join(entry["answer"].split()) for entry in english}
    codes = {"CT": "CT", "MRI": "MR", "X-Ray": "CR"}
    modality = {f"imgs/{entry['img_name']}": codes[entry["modality"]] for entry in english}
    assert all(item["modality"] == modality[item["patient"]] for item in found)
