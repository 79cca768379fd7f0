from pathlib import Path

import nibabel
import numpy as np
import pytest

from omnifm.data.datalist import read_datalist
from omnifm.data.importers.fets2022 import prepare
from omnifm.data.volume import read_label, read_volume

SHARED = Path(__file__).parents[4] / "shared" / "data" / "native" / "fets2022"


def fets(folder: Path, subjects: dict[str, int], value: int = 4) -> Path:
    """A tiny FeTS: subject -> institution; the first voxels of each mask are 0, 1, 2 and `value`."""
    rows = [f"{institution},{subject}" for subject, institution in subjects.items()]
    folder.mkdir(exist_ok=True)
    (folder / "partitioning_1.csv").write_text("\n".join(["Partition_ID,Subject_ID", *rows]))
    for subject in subjects:
        (folder / subject).mkdir()
        mask = np.zeros((4, 4, 4), np.uint8)
        mask[:, 0, 0] = [0, 1, 2, value]
        for kind, array in (("t1ce", np.full((4, 4, 4), 9, np.int16)), ("seg", mask)):
            path = folder / subject / f"{subject}_{kind}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(array, np.diag([-1, -1, 1, 1.0])), path)
    return folder


def subjects(**institutions: int) -> dict[str, int]:
    numbers = [int(name[1:]) for name, count in institutions.items() for _ in range(count)]
    return {f"FeTS2022_{i:05d}": number for i, number in enumerate(numbers)}


def test_one_site_per_institution_of_the_group(tmp_path):
    source = fets(tmp_path / "src", subjects(i1=1, i22=3, i19=5, i23=1))
    prepare(source, tmp_path / "dst", group=4)
    sizes = {}
    for site in sorted((tmp_path / "dst").glob("site-*")):
        datalist = read_datalist(site, required=("image", "label"))
        sizes[site.name] = [len(split) for split in datalist.splits().values()]
    # institutions 19, 22, 23 in this order, whatever the CSV's order
    assert sizes == {"site-1": [2, 2, 1], "site-2": [1, 1, 1], "site-3": [1, 0, 0]}


def test_only_enhancing_tumour_is_labelled(tmp_path):
    prepare(fets(tmp_path / "src", subjects(i2=1)), tmp_path / "dst", group=1)
    item = read_datalist(tmp_path / "dst/site-1", required=("image", "label")).training[0]
    label = read_label(item["label"], read_volume(item["image"]), dict.fromkeys(range(2), ""))
    assert np.argwhere(label).tolist() == [[3, 0, 0]]
    assert item["patient"] == "FeTS2022_00000"


@pytest.mark.parametrize(("link", "names"), [(False, 1), (True, 2)])
def test_images_are_copied_unless_links_are_asked_for(tmp_path, link, names):
    prepare(fets(tmp_path / "src", subjects(i2=1)), tmp_path / "dst", link=link)
    assert next((tmp_path / "dst").rglob("images/*")).stat().st_nlink == names


def test_seed_moves_patients_between_splits(tmp_path):
    source = fets(tmp_path / "src", subjects(i2=9))
    tests = []
    for seed in (0, 1):
        prepare(source, tmp_path / str(seed), seed=seed)
        tests.append([i["patient"] for i in read_datalist(tmp_path / f"{seed}/site-1", required=("image",)).test])
    assert tests[0] != tests[1]


@pytest.mark.parametrize("group", [0, 5])
def test_rejects_group(tmp_path, group):
    with pytest.raises(ValueError, match=r"group must be one of 1, 2, 3, 4; got"):
        prepare(tmp_path, tmp_path / "dst", group=group)


def test_rejects_a_source_that_is_not_fets(tmp_path):
    with pytest.raises(ValueError, match="source must be FeTS 2022's folder"):
        prepare(tmp_path, tmp_path / "dst")


@pytest.mark.parametrize("row", ["2,../../etc", "2,", "x,FeTS2022_00001", "2"])
def test_rejects_a_row_that_is_no_subject(tmp_path, row):
    fets(tmp_path / "src", {})
    (tmp_path / "src/partitioning_1.csv").write_text(f"Partition_ID,Subject_ID\n{row}\n")
    with pytest.raises(ValueError, match=r"line 2 of partitioning_1\.csv must hold"):
        prepare(tmp_path / "src", tmp_path / "dst")


@pytest.mark.parametrize("institution", [2, 3])
def test_rejects_a_subject_listed_twice(tmp_path, institution):
    """At one institution, or at two, which would both know the patient."""
    source = fets(tmp_path / "src", subjects(i2=3))
    with (source / "partitioning_1.csv").open("a") as text:
        text.write(f"\n{institution},FeTS2022_00001\n")
    with pytest.raises(ValueError, match=r"must list every subject once; 1 of 4 lines repeat one"):
        prepare(source, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_rejects_a_group_without_institutions(tmp_path):
    with pytest.raises(ValueError, match=r"institution of group 2 \(11, .*\); got 3"):
        prepare(fets(tmp_path / "src", subjects(i3=1)), tmp_path / "dst", group=2)


def test_a_subject_that_cannot_be_read_is_left_out_and_counted(tmp_path, capsys):
    source = fets(tmp_path / "src", subjects(i2=4))
    (source / "FeTS2022_00002/FeTS2022_00002_t1ce.nii.gz").write_bytes(b"")
    prepare(source, tmp_path / "dst")
    assert capsys.readouterr().out.startswith("left out 1 of 4 subjects of institution 2. 1 truncated: ")
    splits = read_datalist(tmp_path / "dst/site-1", required=("image", "label")).splits()
    assert sorted(item["patient"][-1] for items in splits.values() for item in items) == ["0", "1", "3"]
    assert len(list((tmp_path / "dst/site-1/images").iterdir())) == 3


def test_many_refused_subjects_stop_it_and_leave_no_half_site(tmp_path):
    source = fets(tmp_path / "src", subjects(i2=2), value=7)
    with pytest.raises(
        ValueError, match=r"subjects of institution 2, .*; got 2, left out 2. 2 label_values: "
    ) as caught:
        prepare(source, tmp_path / "dst")
    assert "FeTS2022_" not in str(caught.value)
    assert [file.name for file in (tmp_path / "dst").iterdir()] == ["left-out.txt"]


def test_overwrites_nothing(tmp_path):
    source = fets(tmp_path / "src", subjects(i2=1))
    prepare(source, tmp_path / "dst")
    with pytest.raises(ValueError, match="destination must not hold 'site-1' yet"):
        prepare(source, tmp_path / "dst")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real test data are not at ../shared/data")
def test_real_volumes(tmp_path):
    prepare(SHARED, tmp_path / "dst")
    for number in (1, 2):
        datalist = read_datalist(tmp_path / f"dst/site-{number}", required=("image", "label"))
        assert [len(split) for split in datalist.splits().values()] == [1, 0, 1]
