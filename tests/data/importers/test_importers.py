import inspect
from pathlib import Path

import pytest

from omnifm.data import demo, importers
from omnifm.data.datalist import read_datalist


def test_every_file_is_an_importer_with_a_help_line():
    files = {file.stem for file in Path(importers.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(importers.names()) == files
    for name in importers.names():
        module = importers.load(name)
        arguments = inspect.signature(module.prepare).parameters
        assert "destination" in arguments
        assert arguments["seed"].default == 0
        assert len(module.__doc__.splitlines()[0]) > 20


@pytest.mark.parametrize("name", ["nothing", "../demo", "__init__"])
def test_rejects_unknown_names(name):
    with pytest.raises(ValueError, match=r"importer must be one of \['demo', .*\]; got"):
        importers.load(name)


class TestDemo:
    prepare = staticmethod(importers.load("demo").prepare)

    def test_writes_the_sites_of_the_embedded_demo(self, tmp_path, monkeypatch):
        monkeypatch.setattr(demo, "COUNTS", {"training": 1, "validation": 1, "test": 1})
        self.prepare(tmp_path / "out", sites=2)
        assert sorted(site.name for site in (tmp_path / "out").iterdir()) == ["site-1", "site-2"]
        assert read_datalist(tmp_path / "out/site-2", required=("image", "label")).source == "demo"
        with pytest.raises(ValueError, match="destination must not hold 'site-1' yet"):
            self.prepare(tmp_path / "out")

    @pytest.mark.parametrize("sites", [0, 101, -1])
    def test_rejects_numbers_of_sites(self, tmp_path, sites):
        with pytest.raises(ValueError, match="sites must be a whole number, 1 to 100; got"):
            self.prepare(tmp_path, sites=sites)
