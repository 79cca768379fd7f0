"""Synthetic demo data, written as the site folders of a federation; no source is needed."""

from pathlib import Path

from omnifm.data.demo import make_site
from omnifm.data.importers._sites import already_there

MAX_SITES = 100


def prepare(destination: Path, *, seed: int = 0, task: str = "segmentation", sites: int = 2) -> None:
    """Write demo data for `site-1`, `site-2`, ...

    Args:
        destination: folder in which the site folders are written; it is created if it does not exist.
        seed: random seed; another seed gives other cases and other differences between the sites.
        task: name of a task that has demo data, for example segmentation or classification.
        sites: number of sites, 1 to 100.

    Raises:
        ValueError: an option is out of range, or a site folder already exists.
    """
    if not 1 <= sites <= MAX_SITES:
        raise ValueError(f"sites must be a whole number, 1 to {MAX_SITES}; got {sites!r}")
    for number in range(1, sites + 1):
        site = f"site-{number}"
        try:
            make_site(task, site, destination / site, seed)
        except FileExistsError:
            raise ValueError(already_there(site)) from None
