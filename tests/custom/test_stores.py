"""The server's stores are inside its kit."""

import pytest

from omnifm_flare.stores import KitStorage


def test_lies_below_the_working_directory_and_is_private(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    KitStorage("jobs").create_object("/a/b", b"data", {"name": "x"})
    assert next((tmp_path / "jobs").rglob("data")).read_bytes() == b"data"
    assert (tmp_path / "jobs").stat().st_mode & 0o777 == 0o700


def test_refuses_to_leave_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="must be inside the server's kit"):
        KitStorage("../elsewhere")


def test_takes_the_path_in_the_container_that_deploy_prepare_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    KitStorage(root_dir=str(tmp_path / "snapshot-storage"))
    assert (tmp_path / "snapshot-storage").is_dir()


def test_closes_the_kit_in_which_flare_makes_open_folders(tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    KitStorage(".")
    assert tmp_path.stat().st_mode & 0o777 == 0o700
