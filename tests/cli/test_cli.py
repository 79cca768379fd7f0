import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import omnifm as in_process
from tests.conftest import ROOT

OMNIFM = Path(sys.executable).parent / "omnifm"


def omnifm(*args):
    return subprocess.run([OMNIFM, *map(str, args)], capture_output=True, text=True)


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("predict",),
        ("prepare",),
        ("prepare", "fets2022"),
        ("prepare", "demo"),
        ("report",),
        ("bench", "tables"),
        ("bench", "cost"),
        ("bench", "lint"),
        ("jobs",),
        ("new",),
        ("check",),
        ("preflight",),
        ("simulate",),
        ("compare",),
        ("methods",),
        ("settings",),
    ],
)
def test_every_command_explains_itself(command):
    done = in_process(*command, "--help")
    assert done.returncode == 0
    assert "Usage: omnifm" in done.stdout


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ("report", "/nowhere"),
            "omnifm: path must be a summary.json or a run directory that holds one; it is neither",
        ),
        (("prepare", "fets2022", "/nowhere", "/tmp/none"), "omnifm: source must be FeTS 2022's folder"),
        (("prepare", "demo", "/tmp/none", "--sites", "0"), "omnifm: sites must be a whole number, 1 to 100; got 0"),
        (("bench", "tables", "--data", "/nowhere", "--out", "/tmp/none"), "omnifm: data must hold at least 2 sites"),
        (("prepare", "breakhis", "/nowhere", "/nowhere/in"), "omnifm: destination must lie outside the source"),
        (("prepare", "nothing"), "No such command 'nothing'"),
        (("bench", "tables"), "Missing option '--out'"),
        (("bench", "tables", "--out", "/tmp/none"), "omnifm: data must be given without --scale; there is none"),
        (("bench", "tables", "--out", "/tmp/none", "--scale", "huge"), "omnifm: scale must be one of smoke, cpu"),
        (
            ("bench", "tables", "--out", "/tmp/none", "--scale", "smoke", "--row", "Local"),
            "omnifm: row, seeds, rounds, epochs and no-ablations go without --scale",
        ),
        (("bench", "tables", "--out", "/tmp/none", "--scale", "smoke", "--seeds", "3"), "omnifm: row, seeds, rounds"),
        (("bench", "tables", "--out", "/tmp/none", "--scale", "smoke", "--no-ablations"), "omnifm: row, seeds, rounds"),
        (("check", "/nowhere", "--html", "dataset.json"), "omnifm: html must be a file whose name ends in .html"),
        (("new", "nowhere", "/tmp/none"), "omnifm: job must be a job folder"),
        (("new", "seg_fets", "/tmp"), "omnifm: destination must be a new folder; it exists already"),
        (("bench", "lint", "/nowhere"), "omnifm: folder must hold a table's JSON; it holds none"),
    ],
)
def test_wrong_use_costs_one_line_and_exit_code_2(command, message):
    done = in_process(*command)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_prepare_fets2022_reads_the_real_layout(tmp_path, shared_data):
    done = in_process("prepare", "fets2022", shared_data / "native/fets2022", tmp_path / "out", "--group", 1)
    assert done.stdout == "prepared fets2022: site-1 1/0/1, site-2 1/0/1 (training/validation/test)\n"
    assert json.loads((tmp_path / "out/site-1/dataset.json").read_text())["labels"]["1"] == "enhancing tumour"


def test_jobs_lists_every_shipped_job():
    done = in_process("jobs")
    assert [line.split()[0] for line in done.stdout.splitlines()] == sorted(
        path.name for path in (ROOT / "jobs").iterdir()
    )
    assert "seg_fets        segmentation" in done.stdout


def test_new_copies_a_job_to_edit(tmp_path):
    done = omnifm("new", "seg_fets", tmp_path / "mine")
    assert done.returncode == 0
    assert str(tmp_path / "mine/app/config/experiment.json") in done.stdout
    for file in (ROOT / "jobs/seg_fets").rglob("*.*"):
        assert (tmp_path / "mine" / file.relative_to(ROOT / "jobs/seg_fets")).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("module", ["omnifm", "omnifm.cli"])
def test_the_front_door_loads_nothing_heavy(module):
    """So that `import omnifm` and `omnifm --help` answer at once."""
    code = f"import sys, {module}; print(sorted({{'torch', 'numpy', 'pydantic', 'nibabel'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"
