"""The walks in docs/extending.md add a method and a task to a copy of the project; what they promise holds there."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

BLOCK = re.compile(r"```python\n# (\S+)\n(.*?)```|`(\S+\.json)`:\n\n```json\n(.*?)```", re.DOTALL)


def blocks():
    """Each file that the walks write, with its text."""
    for found in BLOCK.finditer((ROOT / "docs/extending.md").read_text()):
        name, text = filter(None, found.groups())
        yield name, text


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A copy of the project after both walks."""
    copy = tmp_path_factory.mktemp("walk") / "project"
    for part in ("omnifm", "custom", "jobs", "tests"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    shutil.copytree(copy / "jobs/seg_fets", copy / "jobs/reg_density")
    meta = copy / "jobs/reg_density/meta.json"
    meta.write_text(meta.read_text().replace("seg_fets", "reg_density"))
    for name, text in blocks():
        (copy / name).write_text(text)
    return copy


def run(copy, *command):
    path = os.pathsep.join([str(copy), str(copy / "custom")])
    done = subprocess.run(
        [sys.executable, *command],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


def test_the_new_method_passes_the_roster_and_its_own_test(walked):
    said = run(
        walked,
        "-m",
        "pytest",
        "-n",
        "0",
        "tests/methods/test_roster.py",
        "tests/methods/test_fedexp.py",
        "-k",
        "fedexp",
    )
    assert int(re.search(r"(\d+) passed", said)[1]) >= 14
    assert "skipped" not in said


def test_the_new_task_passes_the_roster_and_its_own_test(walked):
    chosen = "regression or reg_density"
    said = run(walked, "-m", "pytest", "tests/tasks/test_roster.py", "tests/tasks/test_regression.py", "-k", chosen)
    assert int(re.search(r"(\d+) passed", said)[1]) >= 18
    assert "skipped" not in said


def test_the_job_learns_more_than_the_mean(walked, tmp_path):
    """The experiment as it is written, on its demo data, in one process."""
    code = (
        "import json; from omnifm import simulation; from omnifm.config import Experiment\n"
        "text = open('jobs/reg_density/app/config/experiment.json').read()\n"
        "print(json.dumps(simulation.run(Experiment.from_json(text), None, ['site-1', 'site-2'])['aggregate']))"
    )
    scores = json.loads(run(walked, "-c", code).splitlines()[-1])
    assert scores["mae"]["mean"] < scores["mae_mean"]["mean"]


def test_the_walks_edit_no_existing_file():
    written = [name for name, _ in blocks()]
    assert len(written) == 6
    assert not [name for name in written if (ROOT / name).exists()]
