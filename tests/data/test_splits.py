"""Known patients keep their split, and a small site's empty splits are filled."""

import json

import pytest

from omnifm.data.datalist import read_datalist
from omnifm.data.splits import groups_of, settle


def site(folder, numbers, **more):
    items = [{"image": f"{number}.png", "patient": str(number)} for number in numbers]
    record = {"name": "x", "modality": {"0": "XC"}, "training": items, **more}
    (folder / "dataset.json").write_text(json.dumps(record))
    return read_datalist(folder, required=("image",))


def patients(datalist):
    return {name: [item["patient"] for item in items] for name, items in datalist.splits().items()}


def test_two_patients_of_one_hash_train_and_test(tmp_path):
    datalist = site(tmp_path, [2, 3])
    assert patients(datalist) == {"training": ["2", "3"], "validation": [], "test": []}
    assert {name: len(found) for name, found in patients(settle(datalist)).items()} == {
        "training": 1,
        "validation": 0,
        "test": 1,
    }


def test_a_full_list_is_the_same_object(tmp_path):
    datalist = site(tmp_path, range(6))
    assert settle(datalist) is datalist


@pytest.mark.parametrize("start", range(1, 5))
def test_nobody_moves_while_a_small_site_grows(tmp_path, start):
    known: dict[str, str] = {}
    for number in range(start, 30):
        settled = settle(site(tmp_path, range(number, 0, -1)), known=known)
        found = {own: split for split, names in patients(settled).items() for own in names}
        assert known.items() <= found.items()
        assert sum(bool(names) for names in patients(settled).values()) >= min(number, 3) - (number - start < 2)
        known = found


def test_a_known_patient_overrules_the_file(tmp_path):
    datalist = site(tmp_path, [1, 2], test=[{"image": "3.png", "patient": "3"}], validation=[{"image": "4.png"}])
    settled = settle(datalist, known={"3": "training", "1": "test"})
    assert [item["image"].name for item in settled.training] == ["2.png", "3.png"]
    assert [item["image"].name for item in settled.test] == ["1.png"]


def test_the_order_of_the_list_names_no_group(tmp_path):
    """An image of two patients joins them; the group has the name of the first in the alphabet."""
    one = [{"image": "a.png", "patient": "z"}, {"image": "a.png", "patient": "b"}, {"image": "c.png"}]
    for items in (one, one[::-1]):
        (tmp_path / "dataset.json").write_text(json.dumps({"name": "x", "modality": {"0": "XC"}, "training": items}))
        names = {group.name for group in groups_of(read_datalist(tmp_path, required=("image",)))}
        assert names == {"b", "c.png"}
