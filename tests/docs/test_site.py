"""The documentation builds without a warning and without a network, and its generated tables are complete."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from omnifm.data.refusal import REASONS
from omnifm.model import Capacity
from omnifm.plugins import names, plugin
from omnifm.shipped import job_names
from tests.conftest import ROOT

SHARED = Capacity.__dataclass_fields__
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site.  `--strict` makes a broken link, a broken anchor or a page outside the navigation an error."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    tool = Path(sys.executable).parent / "mkdocs"
    done = subprocess.run(
        [tool, "build", "--quiet", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.mark.slow
class TestSite:
    def test_it_loads_nothing_from_elsewhere(self, site):
        loads = re.compile(
            r'(?:<script[^>]* src|<link[^>]* rel="?stylesheet"?[^>]* href|<img[^>]* src)="?(?:https?:)?//'
        )
        pages = list(site.rglob("*.html"))
        assert len(pages) > len(PAGES)
        assert [page.name for page in pages if loads.search(page.read_text())] == []

    def test_it_can_be_searched_as_files(self, site):
        assert "__index" in (site / "search/search_index.js").read_text()[:100]
        assert "iframe-worker.js" in (site / "index.html").read_text()

    @pytest.mark.parametrize("name", names("methods"))
    def test_every_method_and_each_of_its_settings_is_explained(self, site, name):
        page = (site / "methods.html").read_text()
        section = page.split(f'<h3 id="{name}"')[1].split("<h3 ")[0]
        for key in plugin("methods", name).Settings.__dataclass_fields__:
            explained = rf"<code>{key}</code></td>\n(<td.*>.*</td>\n){{2}}<td.*>\w.*</td>"
            shared = key in SHARED and f"<code>{key}</code>" in section
            assert re.search(explained, page if shared else section), key

    @pytest.mark.parametrize("name", names("tasks"))
    def test_every_task_is_explained(self, site, name):
        page = (site / "settings.html").read_text()
        section = page.split(f'<h3 id="{name}"')[1].split("<h3 ")[0]
        for key in [
            *plugin("tasks", name).Settings.__dataclass_fields__,
            *plugin("tasks", name).Model.__dataclass_fields__,
        ]:
            assert f"<code>{key}</code></td>" in section

    def test_every_reason_and_every_job_is_listed(self, site):
        data, jobs = (site / "data.html").read_text(), (site / "jobs.html").read_text()
        assert all(f"<code>{reason}</code></td>" in data for reason in REASONS)
        assert all(f"<code>{job}</code></td>" in jobs for job in job_names())


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "provisioning/README.md"])
def test_links_of_a_document_lead_to_files(document):
    file = ROOT / document
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text())
    assert links
    assert [link for link in links if not (file.parent / link).exists()] == []


@pytest.mark.parametrize("name", names("methods"))
def test_a_page_says_when_to_choose_a_method(name):
    section = (ROOT / "docs/methods.md").read_text().split("## When to choose which")[1].split("\n## ")[0]
    assert f"`{name}`" in section


def test_old_tables_stand_below_a_warning():
    text = (ROOT / "docs/evidence.md").read_text()
    assert "!!! warning" in text.split("## ")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_begins_with_its_title(page):
    assert page.read_text().startswith("# ")
