import json

import pytest

from omnifm.data.importers._sites import Case, Plan, write_sites


def plan(partition="natural", **changes):
    how = {"sites": 2 if partition in ("dirichlet", "count") else None, "gamma": None}
    return Plan(**{"partition": partition, **how, "seed": 0, "first": 1, **changes})


def case(source, number, *, patient=None, modality="CT", home="", split=""):
    file = source / f"{number}.png"
    file.write_text(str(number))
    item = {"image": f"images/{file.name}", "patient": patient or f"p{number}"}
    return Case(item, item["patient"], modality, "", {item["image"]: file}, home=home, split=split)


def written(folder):
    return {site.name: json.loads((site / "dataset.json").read_text()) for site in sorted(folder.iterdir())}


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def test_files_are_linked_where_the_item_says(source, tmp_path):
    write_sites(tmp_path / "out", plan(), [case(source, n) for n in range(5)], {"name": "x"})
    site = tmp_path / "out/site-1"
    for split in ("training", "validation", "test"):
        for item in written(tmp_path / "out")["site-1"][split]:
            assert (site / item["image"]).read_text() == item["patient"][1:]
            assert (site / item["image"]).stat().st_nlink == 2


def test_homes_become_sites_in_their_order_and_give_them_their_names(source, tmp_path):
    cases = [case(source, n, home="west" if n < 4 else "east") for n in range(8)]
    write_sites(tmp_path / "out", plan(first=5), cases, {"name": "x"})
    assert {site: content["name"] for site, content in written(tmp_path / "out").items()} == {
        "site-5": "x, west",
        "site-6": "x, east",
    }


def test_a_site_is_of_its_most_frequent_modality_and_the_others_are_said_per_item(source, tmp_path):
    cases = [case(source, n, modality="MR" if n == 2 else "CT") for n in range(6)]
    write_sites(tmp_path / "out", plan(), cases, {"name": "x"})
    content = written(tmp_path / "out")["site-1"]
    items = [item for split in ("training", "validation", "test") for item in content[split]]
    assert content["modality"] == {"0": "CT"}
    assert [item["patient"] for item in items if item.get("modality") == "MR"] == ["p2"]
    assert sum("modality" in item for item in items) == 1


def test_the_official_split_is_kept(source, tmp_path):
    names = ("training", "training", "validation", "test")
    cases = [case(source, n, split=split) for n, split in enumerate(names)]
    write_sites(tmp_path / "out", plan(), cases, {"name": "x"})
    content = written(tmp_path / "out")["site-1"]
    found = {split: [item["patient"] for item in content[split]] for split in sorted(set(names))}
    assert found == {"training": ["p0", "p1"], "validation": ["p2"], "test": ["p3"]}


def test_an_official_split_through_patients_is_dealt_anew_and_said(source, tmp_path, capsys):
    cases = [case(source, n, patient=f"p{n % 5}", split="training" if n < 7 else "test") for n in range(10)]
    write_sites(tmp_path / "out", plan(), cases, {"name": "x"})
    assert "puts 3 patients or images into several splits: a new split is made" in capsys.readouterr().out
    content = written(tmp_path / "out")["site-1"]
    owners = [{item["patient"] for item in content[split]} for split in ("training", "validation", "test")]
    assert [len(patients) for patients in owners] == [3, 1, 1]


def test_refuses_a_site_without_training_before_it_writes_any(source, tmp_path):
    cases = [case(source, n, home=str(n // 2), split="training" if n < 3 else "test") for n in range(6)]
    with pytest.raises(ValueError, match="'site-3' must have a training case; it has none"):
        write_sites(tmp_path / "out", plan(), cases, {"name": "x"})
    assert not (tmp_path / "out").exists()


def test_refuses_all_if_one_site_is_there(source, tmp_path):
    (tmp_path / "out/site-2").mkdir(parents=True)
    cases = [case(source, n, home=str(n % 2)) for n in range(6)]
    with pytest.raises(ValueError, match="destination must not hold 'site-2' yet; it does"):
        write_sites(tmp_path / "out", plan(), cases, {"name": "x"})
    assert [site.name for site in (tmp_path / "out").iterdir()] == ["site-2"]


def test_a_failing_fill_leaves_no_half_site(source, tmp_path):
    def fill(folder, cases):
        (folder / "half").write_text("")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_sites(tmp_path / "out", plan(), [case(source, 0)], {"name": "x"}, fill)
    assert list((tmp_path / "out").iterdir()) == []
