"""`omnifm simulate`: from one command to a report."""

import json

import pytest

from omnifm.cli.choices import parsed
from omnifm.cli.simulate import _interrupted
from omnifm.run_folder import RunFolder
from tests.commands import omnifm
from tests.conftest import write_site

TINY = (
    *("--set", "train.num_rounds=1", "--set", "train.local_epochs=1"),
    *("--set", "task.patch_size=16", "--set", "model.channels=[4,8]"),
    *("--set", "method.name=fedavg"),
)


@pytest.fixture
def data(tmp_path):
    for number in (1, 2, 10):
        write_site(tmp_path / f"data/site-{number}", seed=number)
    return tmp_path / "data"


@pytest.mark.slow
def test_it_trains_all_prepared_sites_and_says_where_everything_lies(tmp_path, data):
    out = tmp_path / "run"
    done = omnifm("simulate", "seg_fets", "--data", data, "--out", out, *TINY)
    assert done.returncode == 0, done.stderr
    assert "sites site-1, site-2, site-10" in done.stdout
    assert "round 1/1  validation dice" in done.stdout
    assert "COMPLETE: seg_fets, method fedavg, 1 round" in done.stdout
    assert f"Report:  {out}/results/report.html" in done.stdout
    assert (out / "results/report.html").is_file()
    assert f"omnifm predict --personal {out}/state/site-1" in done.stdout
    assert (out / "state/site-1").is_dir()
    assert json.loads((out / "results/summary.json").read_text())["status"] == "COMPLETE"
    again = omnifm("simulate", "seg_fets", "--data", data, "--out", out, *TINY)
    assert again.returncode == 2
    assert "finished run, which is never overwritten" in again.stderr


@pytest.mark.slow
def test_a_run_that_fails_ends_with_exit_code_1(tmp_path, data):
    (data / "site-10/dataset.json").write_text("{}")
    done = omnifm(
        "simulate", "seg_fets", "--data", data, "--out", tmp_path / "run", *TINY, "--set", "train.min_sites=3"
    )
    assert done.returncode == 1
    assert "FAILED: seg_fets" in done.stdout
    assert "Reason: " in done.stdout


def test_what_to_do_after_an_interrupt_in_the_reference(tmp_path):
    assert "give the same command with --out" in _interrupted(RunFolder(tmp_path))
    (tmp_path / "results").mkdir()
    (tmp_path / "results/summary.json").touch()
    assert "The run itself is finished" in _interrupted(RunFolder(tmp_path))
    assert "with a new --out" in _interrupted(RunFolder(tmp_path))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("seg_fet",), "did you mean 'seg_fets'"),
        (("seg_fets", "--set", "train.learning_rate=1"), "did you mean 'train.lr'"),
        (("seg_fets", "--set", "lr=1"), "did you mean 'train.lr'"),
        (("seg_fets", "--set", "train.lr"), "--set must be KEY=VALUE"),
        (("seg_fets", "--set", "train.lr=fast"), "train.lr: input should be a valid number"),
        (("seg_fets", "--preset", "papr"), "did you mean 'paper'"),
        (("seg_fets", "--set", "method.name=fedpox"), "did you mean 'fedprox'"),
        (("seg_fets", "--set", "task.patchsize=16"), "did you mean 'patch_size'"),
        (("seg_fets", "--sites", "site-1"), "train.min_sites is 2, and sites that take part: 1"),
    ],
)
def test_wrong_use_is_one_line_that_says_what_to_write(args, message):
    done = omnifm("simulate", *args)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_wrong_data_are_explained(tmp_path, data):
    one = omnifm("simulate", "seg_fets", "--data", data / "site-1")
    assert "it is one site's own. Name the folder above it" in one.stderr
    none = omnifm("simulate", "seg_fets", "--data", tmp_path / "nowhere")
    assert "data must hold one folder per site" in none.stderr
    other = omnifm("simulate", "seg_fets", "--data", data, "--sites", "site-1,site-3")
    assert "sites must be of site-1, site-2, site-10; got 'site-3'; did you mean" in other.stderr


def test_values_are_json_and_bare_words_are_texts():
    assert parsed(["a.b=[1, 2]", "a.c=true", "d=word", "e=null"]) == {
        "a": {"b": [1, 2], "c": True},
        "d": "word",
        "e": None,
    }
    with pytest.raises(ValueError, match="set to a value already"):
        parsed(["a=1", "a.b=2"])
