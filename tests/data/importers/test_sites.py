import json
import shutil
from dataclasses import replace

import pytest

from omnifm.data.importers._sites import Case, Plan, write_sites
from omnifm.data.importers._splits import FILE, one_patient


def plan(partition="natural", **changes):
    how = {"sites": 2 if partition in ("dirichlet", "count") else None, "gamma": None}
    return Plan(**{"partition": partition, **how, "seed": 0, "first": 1, **changes})


def case(source, number, *, patient=None, modality="CT", home="", split=""):
    file = source / f"{number}.png"
    file.write_text(str(number))
    item = {"image": f"images/{file.name}", "patient": patient or f"p{number}"}
    return Case(item, item["patient"], modality, "", {item["image"]: file}, home=home, split=split)


def written(folder):
    return {site.name: json.loads((site / "dataset.json").read_text()) for site in sorted(folder.glob("site-*"))}


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def test_files_are_copied_where_the_item_says(source, tmp_path):
    write_sites(tmp_path / "out", plan(), [case(source, n) for n in range(5)], {"name": "x"})
    site = tmp_path / "out/site-1"
    for split in ("training", "validation", "test"):
        for item in written(tmp_path / "out")["site-1"][split]:
            assert (site / item["image"]).read_text() == item["patient"][1:]
            assert (site / item["image"]).stat().st_nlink == 1


def test_writing_to_a_prepared_file_never_changes_the_original(source, tmp_path):
    write_sites(tmp_path / "out", plan(), [case(source, n) for n in range(5)], {"name": "x"})
    before = {file: file.read_bytes() for file in source.iterdir()}
    for file in (tmp_path / "out/site-1/images").iterdir():
        file.write_text("edited")
    assert {file: file.read_bytes() for file in source.iterdir()} == before


def test_links_are_for_images_only(source, tmp_path):
    cases = [case(source, n) for n in range(5)]
    for one in cases:
        one.item["label"] = one.item["image"].replace("images", "labels")
        one.files[one.item["label"]] = one.files[one.item["image"]]
    write_sites(tmp_path / "out", plan(link=True), cases, {"name": "x"})
    site = tmp_path / "out/site-1"
    assert {file.stat().st_nlink for file in (site / "images").iterdir()} == {2}
    assert {file.stat().st_nlink for file in (site / "labels").iterdir()} == {1}


def test_only_the_owner_can_read_a_site(source, tmp_path):
    for file in source.parent.rglob("*"):
        file.chmod(0o755)
    write_sites(tmp_path / "out", plan(), [case(source, n) for n in range(5)], {"name": "x"})
    modes = {path.is_dir(): path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*")}
    assert modes == {True: 0o700, False: 0o600}


def test_a_link_keeps_the_mode_of_its_original(source, tmp_path):
    cases = [case(source, n) for n in range(5)]
    (source / "0.png").chmod(0o644)
    write_sites(tmp_path / "out", plan(link=True), cases, {"name": "x"})
    assert (source / "0.png").stat().st_mode & 0o777 == 0o644


def test_new_names_lead_back_to_the_source(source, tmp_path):
    one = [replace(case(source, n), files={f"images/{n:05d}.png": source / f"{n}.png"}) for n in range(3)]
    write_sites(tmp_path / "out", plan(), one, {"name": "x"})
    write_sites(tmp_path / "out", plan(first=2), [case(source, n) for n in range(3)], {"name": "x"})
    rows = sorted((tmp_path / "out/names.txt").read_text().splitlines())
    assert rows == [f"site-1/images/{n:05d}.png\t{source}/{n}.png" for n in range(3)]
    assert (tmp_path / "out/names.txt").stat().st_mode & 0o777 == 0o600


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
    assert all(owners)
    assert len(set.union(*owners)) == sum(map(len, owners)) == 5


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


def splits_in(folder):
    content = written(folder)["site-1"]
    return {item["patient"]: split for split in ("training", "validation", "test") for item in content[split]}


@pytest.mark.parametrize("first", range(1, 5))
def test_prepared_again_with_more_patients_nobody_moves(source, tmp_path, first):
    """Even at a site that was so small that one patient had to fill an empty split."""
    cases = [case(source, n) for n in range(12)]
    out, known = tmp_path / "out", {}
    for number in (first, first + 1, 12, 6):
        write_sites(out, plan(), cases[:number][::-1], {"name": "x"})
        found = splits_in(out)
        assert all(found[patient] == split for patient, split in known.items() if patient in found)
        known |= found
        shutil.rmtree(out / "site-1")
    assert (out / FILE).stat().st_mode & 0o777 == 0o600
    assert "p1" not in (out / FILE).read_text()


def test_a_damaged_memory_of_splits_is_refused(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / FILE).write_text("{")
    with pytest.raises(ValueError, match="must be as prepare wrote it; it is damaged"):
        write_sites(tmp_path / "out", plan(), [case(source, 0)], {"name": "x"})


def test_one_patient_for_all_is_said():
    assert one_patient(["p", "q"]) == one_patient(["p"]) == []
    assert one_patient(["p"] * 10)[0].startswith(
        "all 10 cases are of one patient, so that all of them are in 'training'"
    )
