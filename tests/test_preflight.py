"""What a site checks of itself; FLARE's side of it is in tests/custom/test_preflight.py."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnifm import preflight
from omnifm.config import SiteConfig
from omnifm.federation.server import Federation
from omnifm.preflight import Check, Doubt, judged
from tests.conftest import experiment, write_site

OMNIFM = Path(sys.executable).parent / "omnifm"


@pytest.fixture
def config(tmp_path: Path) -> SiteConfig:
    return SiteConfig(str(write_site(tmp_path / "data")), str(tmp_path / "state"), "cpu")


def spoil(config: SiteConfig) -> None:
    """Leave no image that can be read."""
    for file in (Path(config.data_root) / "images").iterdir():
        file.write_bytes(b"no image")


def raising(error: Exception):
    def look() -> str:
        raise error

    return look


class TestJudged:
    def test_a_found_value_is_ok(self):
        assert judged("key", lambda: "mode 600").line() == "ok    key          mode 600"

    @pytest.mark.parametrize(
        ("error", "verdict", "value"),
        [
            (Doubt("no clock"), "warn", "no clock"),
            (ValueError("must be\n600"), "FAIL", "must be 600"),
            (PermissionError(13, "Permission denied", "/data/John_Doe"), "FAIL", "Permission denied"),
        ],
    )
    def test_an_error_is_a_verdict_of_one_line_without_a_path(self, error, verdict, value):
        assert judged("x", raising(error)) == Check("x", verdict, value)

    def test_our_own_mistake_is_not_hidden(self):
        with pytest.raises(KeyError):
            judged("x", raising(KeyError("x")))

    def test_a_long_one_says_how_long_it_took(self, monkeypatch):
        monkeypatch.setattr(preflight, "LONG_S", -1.0)
        assert judged("key", lambda: "mode 600").value == "mode 600 (checked in 0 s)"
        assert judged("key", raising(ValueError("no"))).value == "no (checked in 0 s)"


@pytest.mark.parametrize(("file", "owner"), [("fed_server.json", "the server"), ("fed_admin.json", "an admin")])
def test_another_kit_is_named(tmp_path, file, owner):
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup" / file).write_text("{}")
    with pytest.raises(ValueError, match=f"this is the kit of {owner}, not a hospital's: give the hospital's folder"):
        next(preflight.preflight(tmp_path))


class TestTaskAndData:
    def job(self, name: str):
        return replace(experiment(), task={"name": name}, model={})

    def test_that_fit(self, config):
        words = preflight.task_and_data(experiment(), config)
        assert words == "the job is for segmentation; the data hold masks"

    @pytest.mark.parametrize(
        ("name", "does"), [("classification", "classifies images"), ("vqa", "answers questions about images")]
    )
    def test_that_do_not_are_compared_in_words(self, config, name, does):
        said = rf"this job {does} \({name}\); your data hold masks \(segmentation\). Wrong job or wrong data_root\?"
        with pytest.raises(ValueError, match=said):
            preflight.task_and_data(self.job(name), config)

    @pytest.mark.parametrize("name", ["super_resolution", "a task of one's own"])
    def test_what_needs_no_labels_takes_any(self, config, name):
        preflight.task_and_data(self.job(name), config)

    def test_images_without_labels(self, config):
        file = Path(config.data_root) / "dataset.json"
        record = json.loads(file.read_text())
        record |= {split: [{"image": item["image"]} for item in record[split]] for split in ("training", "test")}
        file.write_text(json.dumps(record))
        with pytest.raises(ValueError, match="your data hold images without labels"):
            preflight.task_and_data(experiment(), config)


class TestSoftware:
    def test_names_versions(self):
        assert "torch 2." in preflight.software()

    def test_refuses_an_old_python(self, monkeypatch):
        monkeypatch.setattr(preflight, "OLDEST_PYTHON", (4, 0))
        with pytest.raises(ValueError, match=r"Python must be 4.0 or newer; got 3\."):
            preflight.software()

    def test_refuses_a_missing_package(self, monkeypatch):
        monkeypatch.setattr(preflight, "PACKAGES", ("torch", "no-such-package"))
        with pytest.raises(ValueError, match="no-such-package must be installed"):
            preflight.software()


class TestSiteFile:
    def test_is_read(self, tmp_path, config):
        file, found = tmp_path / "omnifm_site.json", []
        file.write_text(json.dumps({"data_root": config.data_root, "state_dir": config.state_dir}))
        assert preflight.site_file(file, found).startswith("device auto")
        assert found[0].data_root == config.data_root

    def test_must_be_there(self, tmp_path):
        with pytest.raises(ValueError, match="must name data_root and state_dir; this kit has none: copy"):
            preflight.site_file(tmp_path / "omnifm_site.json", [])

    def test_knows_no_other_key(self, tmp_path):
        file = tmp_path / "omnifm_site.json"
        file.write_text('{"data_root": "/tmp", "state_dir": "/tmp", "upload": true}')
        with pytest.raises(ValueError, match="unknown key 'upload'"):
            preflight.site_file(file, [])


class TestStateFolder:
    def test_is_made_private(self, tmp_path):
        assert preflight.state_folder(tmp_path / "a/state").startswith("mode 700, ")

    def test_refuses_one_that_others_may_read(self, tmp_path):
        tmp_path.chmod(0o755)
        with pytest.raises(ValueError, match=r"only the owner may read state_dir; its mode is 755, run chmod 700"):
            preflight.state_folder(tmp_path)

    def test_refuses_a_full_disk(self, tmp_path, monkeypatch):
        monkeypatch.setattr(preflight, "MIN_FREE_GIB", 1e9)
        with pytest.raises(ValueError, match=r"must have 1e\+09 GiB free; it has"):
            preflight.state_folder(tmp_path / "state")


class TestDevice:
    def test_auto_is_what_there_is(self):
        assert preflight.device("auto").startswith(("cpu, ", "cuda:0, "))

    @pytest.mark.parametrize("name", ["cuda:99", "tpu", "the big one", "meta", "mps", "xpu", ""])
    def test_refuses_what_there_is_not(self, name):
        with pytest.raises(ValueError, match=f"device must (exist|be auto, cpu or cuda:N); got '{name}'"):
            preflight.device(name)


class TestData:
    def test_counts(self, tmp_path, config):
        file = tmp_path / "omnifm_site.json"
        file.write_text(json.dumps({"data_root": config.data_root, "state_dir": config.state_dir}))
        words = preflight.data(config, file)
        assert words.startswith("segmentation: 4 training, 1 validation, 1 test cases, 0 refused")

    def test_refuses_unusable_ones(self, tmp_path, config):
        file = tmp_path / "omnifm_site.json"
        file.write_text(json.dumps({"data_root": config.data_root, "state_dir": config.state_dir}))
        spoil(config)
        with pytest.raises(ValueError, match=r"\(run omnifm check to see where\)"):
            preflight.data(config, file)


@pytest.mark.slow
class TestOneBatch:
    def test_says_what_a_round_will_take_and_touches_no_state(self, config):
        Path(config.state_dir).mkdir()
        data, one_round = preflight.one_batch(experiment(), config)
        assert data.value.startswith("segmentation: 4 training, 1 validation, 1 test cases, 0 refused")
        assert one_round.verdict == "ok"
        assert "2 rounds planned" in one_round.value
        assert not list(Path(config.state_dir).iterdir())

    def test_too_little_memory_is_a_failure(self, config, monkeypatch):
        def run(self):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(Federation, "run", run)
        _, one_round = preflight.one_batch(experiment(), config)
        words = "this machine must train the first batch; it does not (OutOfMemoryError)"
        assert (one_round.verdict, one_round.value.startswith(words)) == ("FAIL", True)

    def test_data_that_the_job_cannot_use_end_it(self, config):
        spoil(config)
        (data,) = preflight.one_batch(experiment(), config)
        assert data.verdict == "FAIL"

    def test_a_device_that_cannot_train_fails_the_data(self, config):
        (data,) = preflight.one_batch(experiment(), replace(config, device="tpu"))
        assert "device must be auto, cpu or cuda:N" in data.value


class TestPlatform:
    def test_that_does_not_answer_fails(self, tmp_path, monkeypatch):
        monkeypatch.setattr(preflight, "PLATFORM", "no_such_module")
        (check,) = preflight.platform(tmp_path)
        assert check.verdict == "FAIL"
        assert "No module named no_such_module" in check.value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--kit", "nowhere"), 2, "omnifm: kit must be a startup kit"),
        (("--kit", "kit", "--job", "nowhere"), 2, "omnifm: job must be a job folder"),
        (("--kit", "kit"), 1, "FAIL  site file    local/omnifm_site.json must name data_root"),
    ],
)
def test_the_command_says_it_in_its_exit_code(tmp_path, arguments, code, words):
    (tmp_path / "kit/startup").mkdir(parents=True)
    (tmp_path / "kit/local").mkdir()
    done = subprocess.run([OMNIFM, "preflight", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, words in done.stdout + done.stderr) == (code, True)
    assert "Traceback" not in done.stdout + done.stderr
