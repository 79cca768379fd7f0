"""A site's folders come from its site file, else the environment, else (simulator only) the demo data."""

import json
from pathlib import Path

import pytest
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace

from omnifm_flare import site_state
from tests.conftest import experiment


@pytest.fixture
def clean(monkeypatch):
    for name in ("OMNIFM_DATA", "OMNIFM_STATE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def context(root: Path, *, simulated: bool, name: str = "site-1") -> FLContext:
    """The context of a FLARE process of this site."""
    for folder in ("startup", "local"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    fl_ctx = FLContext()
    fl_ctx.set_prop(FLContextKey.WORKSPACE_OBJECT, Workspace(str(root), name), private=True, sticky=False)
    fl_ctx.set_prop(FLContextKey.SIMULATE_MODE, simulated, private=True, sticky=False)
    fl_ctx.set_prop(ReservedKey.IDENTITY_NAME, name, private=True, sticky=False)
    return fl_ctx


class TestFindSite:
    def test_the_simulator_falls_back_to_demo_data(self, tmp_path, clean):
        clean.setattr("omnifm.data.demo.demo_site", lambda task, site: tmp_path / task / site)
        found = site_state.find_site(context(tmp_path / "ws/site-1", simulated=True), experiment())
        assert (found.source, found.data_root) == ("demo", str(tmp_path / "segmentation/site-1"))
        assert found.state_dir == str(tmp_path / "ws/state/site-1")

    def test_a_provisioned_site_never_does(self, tmp_path, clean):
        with pytest.raises(ValueError, match=r"omnifm_site\.json must name data_root .* file is missing"):
            site_state.find_site(context(tmp_path, simulated=False), experiment())

    def test_a_kit_that_claims_to_be_simulated_does_not_either(self, tmp_path, clean):
        fl_ctx = context(tmp_path, simulated=True)
        (tmp_path / "startup/fed_client.json").write_text("{}")
        with pytest.raises(ValueError, match="the file is missing"):
            site_state.find_site(fl_ctx, experiment())

    def test_the_environment_names_a_folder_per_site(self, tmp_path, clean):
        (tmp_path / "data/site-1").mkdir(parents=True)
        clean.setenv("OMNIFM_DATA", str(tmp_path / "data"))
        found = site_state.find_site(context(tmp_path / "ws/site-1", simulated=True), experiment())
        assert (found.source, found.data_root) == ("site", str(tmp_path / "data/site-1"))
        assert found.state_dir == str(tmp_path / "ws/state/site-1")
        clean.setenv("OMNIFM_STATE", str(tmp_path / "kept"))
        found = site_state.find_site(context(tmp_path / "ws/site-1", simulated=True), experiment())
        assert found.state_dir == str(tmp_path / "kept/site-1")

    def test_a_relative_folder_is_meant_from_where_the_command_was_typed(self, tmp_path, clean):
        (tmp_path / "data/site-1").mkdir(parents=True)
        (tmp_path / "elsewhere").mkdir()
        clean.setenv("PWD", str(tmp_path))
        clean.setenv("OMNIFM_DATA", "data")
        clean.chdir(tmp_path / "elsewhere")
        found = site_state.find_site(context(tmp_path / "ws/site-1", simulated=True), experiment())
        assert found.data_root == str(tmp_path / "data/site-1")

    def test_the_site_file_wins(self, tmp_path, clean):
        (tmp_path / "mine").mkdir()
        clean.setenv("OMNIFM_DATA", str(tmp_path / "data"))
        fl_ctx = context(tmp_path / "kit", simulated=False)
        record = {"data_root": str(tmp_path / "mine"), "state_dir": str(tmp_path / "state")}
        (tmp_path / "kit/local/omnifm_site.json").write_text(json.dumps(record))
        assert site_state.find_site(fl_ctx, experiment()).data_root == str(tmp_path / "mine")

    def test_data_without_a_place_for_state_is_refused(self, tmp_path, clean):
        (tmp_path / "data/site-1").mkdir(parents=True)
        clean.setenv("OMNIFM_DATA", str(tmp_path / "data"))
        with pytest.raises(ValueError, match="OMNIFM_STATE must name a folder"):
            site_state.find_site(context(tmp_path / "kit", simulated=False), experiment())


class TestFindServerState:
    def test_simulator(self, tmp_path, clean):
        fl_ctx = context(tmp_path / "ws/server", simulated=True, name="server")
        assert site_state.find_server_state(fl_ctx) == tmp_path / "ws/state/server"
        clean.setenv("OMNIFM_STATE", str(tmp_path / "kept"))
        assert site_state.find_server_state(fl_ctx) == tmp_path / "kept/server"

    def test_a_kit_keeps_it_beside_its_jobs_or_where_its_file_says(self, tmp_path, clean):
        fl_ctx = context(tmp_path / "kit", simulated=False, name="server")
        assert site_state.find_server_state(fl_ctx) == tmp_path / "kit/state"
        (tmp_path / "kit/local/omnifm_site.json").write_text(json.dumps({"state_dir": "/srv/omnifm"}))
        assert site_state.find_server_state(fl_ctx) == Path("/srv/omnifm")

    def test_a_wrong_file_is_refused(self, tmp_path, clean):
        fl_ctx = context(tmp_path / "kit", simulated=False, name="server")
        (tmp_path / "kit/local/omnifm_site.json").write_text('{"stat_dir": "x"}')
        with pytest.raises(ValueError, match="unknown key 'stat_dir'"):
            site_state.find_server_state(fl_ctx)

    def test_a_relative_folder_is_refused(self, tmp_path, clean):
        fl_ctx = context(tmp_path / "kit", simulated=False, name="server")
        (tmp_path / "kit/local/omnifm_site.json").write_text('{"state_dir": "state"}')
        with pytest.raises(ValueError, match=r"^omnifm_site\.json: state_dir must be an absolute path"):
            site_state.find_server_state(fl_ctx)


def test_private_folder_is_its_owners_alone(tmp_path):
    (tmp_path / "a").mkdir(mode=0o755)
    assert site_state.private_folder(tmp_path / "a").stat().st_mode & 0o777 == 0o700
