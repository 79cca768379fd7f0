"""Laws of every importer at once; what is each one's own is in its own file."""

import inspect
import re
import shutil
from collections import defaultdict
from pathlib import Path

import pytest

from omnifm.data import importers
from omnifm.data.datalist import read_datalist
from omnifm.data.demos import segmentation
from omnifm.data.partition import PARTITIONS
from omnifm.data.volume import read_volume
from tests.data.importers.layouts import LAYOUTS

IMAGE_KEYS = ("image", "image_a", "image_b")
WITH_FILES = sorted(set(LAYOUTS) - {"medmnist"})  # MedMNIST's images lie in one file


def prepare(name, source, destination, **options):
    layout = LAYOUTS[name]
    importers.load(layout.importer or name).prepare(source, destination, **{**layout.options, **options})
    return {site.name: read_datalist(site, required=layout.required) for site in sorted(destination.glob("site-*"))}


@pytest.fixture(scope="module", params=sorted(LAYOUTS))
def prepared(request, tmp_path_factory):
    """(name, source, destination) after a run with the defaults; nobody writes to them."""
    root = tmp_path_factory.mktemp("prepared")
    source = LAYOUTS[request.param].make(root / "source")
    prepare(request.param, source, root / "sites")
    return request.param, source, root / "sites"


class TestRoster:
    def test_every_file_is_an_importer_or_private(self):
        files = {file.stem for file in Path(importers.__file__).parent.glob("*.py")}
        assert set(importers.names()) == {name for name in files if not name.startswith("_")}
        assert {layout.importer or name for name, layout in LAYOUTS.items()} <= set(importers.names())

    @pytest.mark.parametrize("name", importers.names())
    def test_explains_itself(self, name):
        module = importers.load(name)
        parameters = inspect.signature(module.prepare).parameters
        assert len(module.__doc__.splitlines()[0]) > 20
        positional = [p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
        assert positional in (["source", "destination"], ["destination"])
        assert parameters["seed"].default == 0
        told = re.findall(r"^\s+(\w+): \S.{8,}$", inspect.getdoc(module.prepare), re.MULTILINE)
        assert set(told) >= set(parameters)

    @pytest.mark.parametrize("name", ["nothing", "../demo", "__init__", "_sites"])
    def test_rejects_unknown_names(self, name):
        with pytest.raises(ValueError, match=r"importer must be one of breakhis, .*; got"):
            importers.load(name)


class TestEveryImporter:
    def test_patients_are_in_one_split_and_every_split_has_some(self, prepared):
        """Also across sites, where several know a patient."""
        name, _, sites = prepared
        owners = defaultdict(set)
        for site in sites.glob("site-*"):
            datalist = read_datalist(site, required=LAYOUTS[name].required)
            for split, items in datalist.splits().items():
                for item in items:
                    owners[item.get("patient", item.get("image"))].add(split)
            assert datalist.training
            assert datalist.test
        assert all(len(splits) == 1 for splits in owners.values())

    def test_a_site_is_self_contained_and_readable(self, prepared, tmp_path):
        name, source, sites = prepared
        shutil.copytree(sites, tmp_path / "moved", symlinks=True)
        for site in (tmp_path / "moved").glob("site-*"):
            text = (site / "dataset.json").read_text()
            assert str(source) not in text
            assert not [file for file in site.rglob("*") if file.is_symlink()]
            for items in read_datalist(site, required=LAYOUTS[name].required).splits().values():
                for item in items:
                    assert all(read_volume(item[key]).array.size for key in IMAGE_KEYS if key in item)

    def test_the_same_seed_gives_the_same_sites(self, prepared, tmp_path):
        name, source, sites = prepared
        prepare(name, source, tmp_path / "again")
        for site in sites.glob("site-*"):
            again = (tmp_path / "again" / site.name / "dataset.json").read_bytes()
            assert again == (site / "dataset.json").read_bytes()

    def test_overwrites_nothing(self, prepared):
        name, source, sites = prepared
        before = {file: file.stat().st_mtime_ns for file in sites.rglob("*")}
        with pytest.raises(ValueError, match="destination must not hold 'site-1' yet"):
            prepare(name, source, sites)
        assert {file: file.stat().st_mtime_ns for file in sites.rglob("*")} == before

    @pytest.mark.parametrize("partition", ["dirichlet", "count"])
    def test_sites_share_no_patient(self, prepared, tmp_path, partition):
        name, source, _ = prepared
        how = {"count": {"sites": 2}, "dirichlet": {"sites": 2, "gamma": 1.0}}.get(partition, {})
        sites = prepare(name, source, tmp_path / "out", partition=partition, first=3, **how)
        assert list(sites) == ["site-3", "site-4"]
        patients = [
            {item["patient"] for items in site.splits().values() for item in items if "patient" in item}
            for site in sites.values()
        ]
        assert not patients[0] & patients[1]

    def test_sites_by_modality_have_one_each(self, prepared, tmp_path):
        name, source, _ = prepared
        sites = prepare(name, source, tmp_path / "out", partition="modality")
        found = [{item["modality"] for items in site.splits().values() for item in items} for site in sites.values()]
        assert all(len(modalities) == 1 for modalities in found)
        assert len(set().union(*found)) == len(found)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"partition": "hospital"}, rf"partition must be one of {PARTITIONS[0]}, .*; got 'hospital'"),
            ({"sites": 0}, "sites and first must be 1 to 1000; got 0 and 1"),
            ({"first": 0}, "sites and first must be 1 to 1000; got .* and 0"),
            ({"partition": "dirichlet", "gamma": 0.0}, "gamma must be > 0"),
            ({"sites": 2}, "sites can only be set for the partitions dirichlet and count; got 'natural'"),
            ({"partition": "count", "gamma": 1.0}, "gamma can only be set for the partition dirichlet; got 'count'"),
            ({"seed": -1}, "seed >= 0"),
            ({"partition": "count", "sites": 100}, "sites must have 3 patients each; got .* for 100 sites"),
        ],
    )
    def test_rejects_options(self, prepared, tmp_path, options, match):
        name, source, _ = prepared
        with pytest.raises(ValueError, match=match):
            prepare(name, source, tmp_path / "out", **options)
        assert not list((tmp_path / "out").glob("*"))

    def test_rejects_an_empty_source(self, prepared, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match=r"^(source|subsets) must (hold|be among) "):
            prepare(prepared[0], tmp_path / "empty", tmp_path / "out")


def images_of(source):
    found = sorted(file for file in source.rglob("*") if file.suffix in (".png", ".jpg"))
    return [file for file in found if file.parent.name not in ("labels", "MRI", "400X")]


@pytest.mark.parametrize("name", WITH_FILES)
class TestBadImages:
    def test_one_is_left_out_and_counted(self, name, tmp_path, capsys):
        source = LAYOUTS[name].make(tmp_path / "source")
        images = images_of(source)
        images[0].write_bytes(b"\x89PNG not a picture")
        prepare(name, source, tmp_path / "out")
        said = capsys.readouterr().out
        total = len(images) - (8 if name == "vqamed of 2020" else 4 if name == "vqamed of 2021" else 0)
        assert f"left out 1 of {total} images. 1 not_an_image: the content is not of the kind" in said
        assert images[0].stem in (tmp_path / "out/left-out.txt").read_text()
        assert images[0].stem not in said

    def test_many_stop_it_with_one_line_that_names_none(self, name, tmp_path):
        source = LAYOUTS[name].make(tmp_path / "source")
        for image in images_of(source)[:8]:
            image.write_bytes(b"")
        with pytest.raises(ValueError, match=r"at most 5% of them left out; got \d+, left out 8. 8 \w+: ") as caught:
            prepare(name, source, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not re.search("Doe|synpic|xmlab|SOB_|/", str(caught.value))
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["left-out.txt"]

    def test_a_link_out_of_the_source_is_refused(self, name, tmp_path):
        source = LAYOUTS[name].make(tmp_path / "source")
        image = images_of(source)[0]
        image.rename(tmp_path / "elsewhere.png")
        image.symlink_to(tmp_path / "elsewhere.png")
        with pytest.raises(ValueError, match="must be a plain path inside the source's folder; it is not"):
            prepare(name, source, tmp_path / "out")


class TestDemo:
    prepare = staticmethod(importers.load("demo").prepare)

    def test_writes_the_sites_of_the_embedded_demo(self, tmp_path, monkeypatch):
        monkeypatch.setattr(segmentation, "CASES_PER_SPLIT", {"training": 1, "validation": 1, "test": 1})
        self.prepare(tmp_path / "out", sites=2)
        assert sorted(site.name for site in (tmp_path / "out").iterdir()) == ["site-1", "site-2"]
        assert read_datalist(tmp_path / "out/site-2", required=("image", "label")).source == "demo"
        with pytest.raises(ValueError, match="destination must not hold 'site-1' yet"):
            self.prepare(tmp_path / "out")

    @pytest.mark.parametrize("sites", [0, 101, -1])
    def test_rejects_numbers_of_sites(self, tmp_path, sites):
        with pytest.raises(ValueError, match="sites must be a whole number, 1 to 100; got"):
            self.prepare(tmp_path, sites=sites)
