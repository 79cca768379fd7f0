import csv
from collections import Counter

import pytest

from omnifm.data.datalist import read_datalist
from omnifm.data.importers.harvard import prepare
from tests.data.importers import layouts
from tests.data.importers.layouts import picture


def sites_of(folder):
    return [read_datalist(folder / f"site-{n}", required=("image_a", "image_b")) for n in (1, 2, 3)]


def items_of(datalist):
    return [item for items in datalist.splits().values() for item in items]


def test_one_site_per_kind_of_pair(tmp_path):
    prepare(layouts.harvard(tmp_path / "source"), tmp_path / "out")
    sites = sites_of(tmp_path / "out")
    assert [site.name for site in sites] == [f"Harvard brain atlas, {kind}-MRI" for kind in ("CT", "PET", "SPECT")]
    for site, code in zip(sites, ("CT", "PT", "NM"), strict=True):
        assert {(item["modality_a"], item["modality_b"]) for item in items_of(site)} == {(code, "MR")}
        assert all(item["image_a"].name == item["image_b"].name for item in items_of(site))


def test_a_case_with_two_kinds_of_pairs_is_tested_nowhere(tmp_path):
    prepare(layouts.harvard(tmp_path / "source"), tmp_path / "out")
    ct, _, spect = sites_of(tmp_path / "out")
    for site in (ct, spect):
        assert "2" in {item["patient"] for item in site.training}
        assert "2" not in {item["patient"] for item in (*site.validation, *site.test)}
        assert len({item["patient"] for item in site.test}) == 1


def test_a_pair_without_its_partner_is_left_out(tmp_path, capsys):
    source = layouts.harvard(tmp_path / "source")
    (source / "CT-MRI/MRI/16004.png").unlink()
    prepare(source, tmp_path / "out")
    assert capsys.readouterr().out.startswith("left out 1 of 24 images. 1 missing_file: ")


def test_names_that_are_no_case_and_slice_are_left_out(tmp_path, capsys):
    source = layouts.harvard(tmp_path / "source")
    picture(source / "CT-MRI/CT/thumb.png")
    prepare(source, tmp_path / "out")
    assert capsys.readouterr().out.startswith("left out 1 of 25 pairs. 1 malformed: ")


def test_rejects_two_copies_of_the_tree(tmp_path):
    """Some copies hold the pairs again in folders of their own: with other pixels, under the same names."""
    source = layouts.harvard(tmp_path / "source")
    for side in ("CT", "MRI"):
        picture(source / f"MyDatasets/CT-MRI/test/{side}/2004.png", 99)
    with pytest.raises(
        ValueError, match=r"must hold each image once: .*; 2 of 50 images have the path of another image"
    ):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rejects_other_folders(tmp_path):
    picture(tmp_path / "MRI/2004.png")
    with pytest.raises(ValueError, match=r"source must hold pairs such as CT-MRI/CT/2004\.png"):
        prepare(tmp_path, tmp_path / "out")


@pytest.mark.slow
def test_real_pairs_are_those_of_the_table(shared_data, tmp_path):
    source = shared_data / "native/harvard"
    prepare(source, tmp_path / "out")
    with (source / "pairs.csv").open() as text:
        wanted = {(row["functional_or_ct"], row["mri"], row["case"]) for row in csv.DictReader(text)}
    found, sizes = set(), []
    for number, site in enumerate(sites_of(tmp_path / "out"), start=1):
        base = tmp_path / f"out/site-{number}/images"
        items = items_of(site)
        sizes.append(len(items))
        places = [[item[key].relative_to(base).as_posix() for key in ("image_a", "image_b")] for item in items]
        found |= {(*place, item["patient"]) for place, item in zip(places, items, strict=True)}
    assert found == wanted
    assert sizes == [143, 88, 137]
    assert Counter(len(site.test) > 0 for site in sites_of(tmp_path / "out")) == {True: 3}
