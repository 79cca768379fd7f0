"""What comes with the package: found in a checkout, and in an installed wheel."""

import pytest

import omnifm
from omnifm import shipped
from omnifm.config import Experiment
from tests.conftest import ROOT


class TestCheckout:
    def test_its_own_folders_are_used(self):
        assert shipped.shipped("jobs") == ROOT / "jobs"
        assert shipped.shipped("provisioning") == ROOT / "provisioning"

    def test_a_job_is_named_by_folder_file_or_name(self):
        folder = ROOT / "jobs/seg_fets"
        named = [Experiment.from_job(job) for job in (folder, folder / shipped.EXPERIMENT, "seg_fets")]
        assert named[0] == named[1] == named[2]

    @pytest.mark.parametrize("job", ["nowhere", "jobs", ROOT / "jobs", "../jobs/seg_fets/app"])
    def test_refuses_what_is_no_job(self, job):
        with pytest.raises(
            ValueError, match=r"job must be a job folder .* or one of cls_medmnist, .*; '\w+' is neither"
        ):
            Experiment.from_job(job)

    def test_refuses_a_file_that_is_no_text(self, tmp_path):
        (tmp_path / "experiment.json").write_bytes(b"\xff\xfe")
        with pytest.raises(ValueError, match=r"experiment\.json must be UTF-8 text"):
            Experiment.from_job(tmp_path / "experiment.json")


class TestWheel:
    """The installed package: no pyproject.toml beside it, the folders inside it."""

    @pytest.fixture(autouse=True)
    def package(self, monkeypatch, tmp_path):
        monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "omnifm")
        return tmp_path / "omnifm"

    def test_the_packages_own_copy_is_used(self, package):
        (package / "_shipped/jobs").mkdir(parents=True)
        assert shipped.shipped("jobs") == package / "_shipped/jobs"

    def test_says_what_is_missing(self):
        with pytest.raises(ValueError, match="must hold the folder 'jobs'; install the package again"):
            shipped.job_names()


def test_the_front_door_gives_what_it_promises():
    assert dir(omnifm) == sorted(omnifm.__all__)
    assert all(getattr(omnifm, name) is not None for name in omnifm.__all__)
    with pytest.raises(AttributeError, match="module 'omnifm' has no attribute 'nothing'"):
        omnifm.nothing  # noqa: B018
