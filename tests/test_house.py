"""The house keeps its own rules: layers, style, types, wiring, pins, and nothing secret or foreign in it."""

import doctest
import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

from tests.conftest import ROOT

JOBS = sorted(path for path in (ROOT / "jobs").iterdir() if path.is_dir())
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["lint-imports"],
        pytest.param(["mypy"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_tool_is_satisfied(command):
    tool = Path(sys.executable).parent / command[0]
    done = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.parametrize("part", ["config_fed_server.json", "config_fed_client.json"])
def test_jobs_share_their_wiring(part):
    assert len({(job / "app/config" / part).read_bytes() for job in JOBS}) == 1


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_a_job_is_configuration_only(job):
    assert not list(job.rglob("*.py"))
    assert json.loads((job / "meta.json").read_text())["name"] == job.name
    assert [path.name for path in (job / "app/custom").iterdir()] == ["README.md"]
    text = (job / "app/config/experiment.json").read_text()
    assert not re.search(r'"[a-z_]+(\.[a-z_]+)+\.[A-Z]\w+"', text), (
        "a class path: configuration that names a class can run code"
    )


def modules_with_examples():
    """Modules of omnifm whose docstrings hold examples."""
    for file in sorted((ROOT / "omnifm").rglob("*.py")):
        if ">>> " in file.read_text():
            parts = file.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings_hold(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


class TestFigures:
    """The figures that the house asks for: `pytest -n 0 -s tests/test_house.py -k Figures` prints them."""

    def test_no_modules_import_each_other_in_a_circle(self):
        """The front door's imports for type checkers do not count."""
        graph = grimp.build_graph("omnifm", "omnifm_flare", exclude_type_checking_imports=True, cache_dir=None)
        uses = {name: graph.find_upstream_modules(name) for name in graph.modules}
        circles = sorted(name for name in uses if any(name in uses[other] for other in uses[name]))
        print(f"\nmodules in import circles: {len(circles)}")
        assert circles == []

    def test_the_formatter_is_never_switched_off(self):
        words = "fmt: " + "skip"
        found = [name for name in TRACKED if name.endswith(".py") and words in (ROOT / name).read_text()]
        print(f"\n{words}: {len(found)}")
        assert found == []

    def test_any_is_rare(self):
        folders = ("omnifm/", "custom/", "provisioning/")
        texts = [(ROOT / name).read_text() for name in TRACKED if name.endswith(".py") and name.startswith(folders)]
        count = sum(len(re.findall(r"\bAny\b", text)) for text in texts)
        lines = sum(len(text.splitlines()) for text in texts)
        print(f"\nAny: {count} in {lines} lines, {1000 * count / lines:.1f} per 1,000")
        assert 1000 * count / lines < 10

    def test_the_layers_are_exhaustive(self):
        contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        layers = next(contract for contract in contracts if contract["type"] == "layers")
        assert layers["exhaustive"] is True
        assert layers["containers"] == ["omnifm"]

    def test_the_readme_is_short(self):
        size = (ROOT / "README.md").stat().st_size
        print(f"\nREADME.md: {size} bytes")
        assert size <= 10_240


def test_requirements_are_exact_and_the_readme_shows_the_commands():
    lines = [line.strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    packages = [line for line in lines if line and not line.startswith("#") and line != "-e ."]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.]+", line) for line in packages)
    assert "torch==2.13.0" in packages
    readme = (ROOT / "README.md").read_text()
    assert "pip install -r requirements.txt" in readme
    assert "nvflare simulator -w ws jobs/seg_fets" in readme


def test_nothing_unsafe_is_imported_or_called():
    """No pickle of any kind, no shell, no unpacking of archives: state is safetensors and JSON."""
    calls = r"shell=True|extractall|allow_pickle=True|(?<!safetensors\.)torch\.load\("
    banned = re.compile(rf"\bimport (pickle|joblib|torchvision)\b|{calls}")
    sources = [
        name for name in TRACKED if name.endswith(".py") and name.startswith(("omnifm/", "custom/", "provisioning/"))
    ]
    assert sources
    assert [name for name in sources if banned.search((ROOT / name).read_text())] == []


def test_no_key_and_no_machine_path_is_committed():
    words = re.compile("BEGIN [A-Z ]*PRIVATE " + "KEY|/" + "root/|/" + "work/")
    texts = [
        name
        for name in TRACKED
        if (ROOT / name).suffix in {".py", ".json", ".toml", ".md", ".txt", ".yml", ".yaml", ""}
    ]
    found = [
        name for name in texts if (ROOT / name).is_file() and words.search((ROOT / name).read_text(errors="ignore"))
    ]
    assert found == []
