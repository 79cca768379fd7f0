"""`site-report.html`: the page of a site's own test, for its own staff.  It shows its cases and never leaves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from omnifm.config import Experiment
from omnifm.records import SiteRecord
from omnifm.report.site_page import site_page
from omnifm.state import write_atomic

NAME = "site-report.html"
logger = logging.getLogger("omnifm.site")


def write_site_page(
    site: str, experiment: Experiment, record: SiteRecord, pictures: Mapping[str, bytes], folder: Path
) -> None:
    """Write the page into the job's folder in the site's state folder, readable by its owner only.

    A page that cannot be drawn does not fail the run.

    Args:
        site: the site's name in the federation.
        record: the site's scores, with all statistics, also those that rest on few cases and stay here.
        pictures: PNG files by caption.
    """
    try:
        write_atomic(folder / NAME, site_page(site, experiment, record, pictures))
    except Exception as error:  # noqa: BLE001  # whatever is wrong with the page, the scores are right
        logger.error("%s could not be written (%s); the scores are complete", NAME, type(error).__name__)
