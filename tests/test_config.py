import json

import pytest

from omnifm.config import Experiment, SiteConfig, parse, read_site_file, site_config
from tests.conftest import ROOT, experiment

JOBS = sorted(ROOT.glob("jobs/*/app/config/experiment.json"))


def text(**changes):
    record = json.loads(JOBS[0].read_text()) | changes
    return json.dumps(record)


class TestExperiment:
    @pytest.mark.parametrize("file", JOBS, ids=lambda f: f.parts[-4])
    def test_every_job_and_its_paper_preset_are_valid(self, file):
        raw = json.loads(file.read_text())
        assert Experiment.from_json(file.read_text()).job == file.parts[-4]
        paper = Experiment.from_json(json.dumps(raw | {"preset": "paper"}))
        assert paper.train.num_rounds > Experiment.from_json(file.read_text()).train.num_rounds

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"colour": 1}, "unknown key 'colour'"),
            ({"train": {"num_rounds": 2, "local_epochs": 1, "batch_size": 2}}, "key 'train.lr' is missing"),
            (
                {"train": {"num_rounds": 0, "local_epochs": 1, "batch_size": 2, "lr": 0.1}},
                "train.num_rounds: .*; got 0",
            ),
            (
                {"train": {"num_rounds": "2", "local_epochs": 1, "batch_size": 2, "lr": 0.1}},
                "train.num_rounds: .*got '2'",
            ),
            ({"task": {"classes": 2}}, "key 'task.name' is missing"),
            ({"job": "../../evil"}, "job: string should match pattern .*; got '../../evil'"),
            ({"presets": None}, "presets must be an object of objects"),
            ({"preset": "huge"}, "preset must be one of .*paper.* or null; got 'huge'"),
        ],
    )
    def test_refuses_by_name(self, changes, message):
        with pytest.raises(ValueError, match=message):
            Experiment.from_json(text(**changes))

    def test_refuses_what_is_not_json(self):
        with pytest.raises(ValueError, match=r"must be JSON; got .* in line 2"):
            Experiment.from_json("{\n,}")

    def test_refuses_a_key_that_stands_twice(self):
        twice = text().replace('"seed"', '"lr": 1, "lr": 2, "seed"')
        with pytest.raises(ValueError, match=r"experiment\.json: key 'lr' must stand once; it stands twice"):
            Experiment.from_json(twice)

    def test_the_hash_ignores_the_seed_alone(self):
        assert experiment(seed=1).hash() == experiment(seed=2).hash()
        assert experiment(train={"lr": 0.1}).hash() != experiment(train={"lr": 0.2}).hash()


class TestSiteConfig:
    def test_the_file_wins_over_the_environment(self, tmp_path):
        (tmp_path / "a").mkdir()
        file = tmp_path / "omnifm_site.json"
        file.write_text(json.dumps({"data_root": str(tmp_path / "a"), "state_dir": str(tmp_path / "s")}))
        assert site_config("x", file, {"OMNIFM_DATA": str(tmp_path)}).data_root.endswith("/a")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("data_root", "data"),
            ("state_dir", "~/state"),
            ("allowed_roots", ["/archive", "archive"]),
        ],
    )
    def test_folders_do_not_hang_on_where_a_command_was_typed(self, tmp_path, key, value):
        file = tmp_path / "omnifm_site.json"
        file.write_text(json.dumps({"data_root": "/data", "state_dir": "/state", key: value}))
        with pytest.raises(ValueError, match=f"^omnifm_site.json: {key} must be an absolute path") as caught:
            read_site_file(file)
        assert "archive" not in str(caught.value)

    def test_the_environment_names_a_folder_per_site(self, tmp_path):
        (tmp_path / "x").mkdir()
        found = site_config("x", tmp_path / "none", {"OMNIFM_DATA": str(tmp_path), "OMNIFM_STATE": str(tmp_path)})
        assert found.data_root == found.state_dir == str(tmp_path / "x")

    def test_neither_is_none(self, tmp_path):
        assert site_config("x", tmp_path / "none", {}) is None

    def test_refuses_an_absent_folder(self, tmp_path):
        with pytest.raises(ValueError, match="data_root must be an existing folder"):
            site_config("x", tmp_path / "none", {"OMNIFM_DATA": str(tmp_path)})

    def test_refuses_a_key_that_stands_twice(self):
        with pytest.raises(ValueError, match=r"omnifm_site\.json: key 'state_dir' must stand once; it stands twice"):
            parse(SiteConfig, '{"data_root": "a", "state_dir": "b", "state_dir": "c"}', "omnifm_site.json")

    def test_refuses_unknown_keys(self):
        with pytest.raises(ValueError, match="unknown key 'colour'"):
            parse(SiteConfig, '{"data_root": "a", "state_dir": "b", "colour": 1}', "omnifm_site.json")


def test_of_what_is_no_json_nothing_is_repeated():
    """Whatever file was named by mistake, its content stays out of the message."""
    with pytest.raises(ValueError, match="site file: invalid JSON") as error:
        parse(SiteConfig, b"PatientName: Mueller", "site file")
    assert "Mueller" not in str(error.value)
