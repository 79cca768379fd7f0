"""The fault suite itself starts, and refuses a row that it does not have.  It runs on a schedule, not with pytest."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.faults import suite


def test_every_row_has_its_own_name():
    names = [row.__name__ for row in suite.ROWS]
    assert len(set(names)) == len(names) > 10


@pytest.mark.slow
def test_refuses_an_unknown_row():
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.suite", "no_such_row"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "rows must be among" in done.stderr
