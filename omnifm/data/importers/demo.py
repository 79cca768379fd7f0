"""The embedded synthetic demo data, written out as a federation (no source needed)."""

from pathlib import Path

from omnifm.data.demo import make_site


def prepare(destination: Path, *, seed: int = 0, task: str = "segmentation", sites: int = 2) -> None:
    """Write `site-1` ... `site-K` of demo data.

    Args:
        destination: folder for the sites; made if needed.
        seed: another seed gives other cases and other sites.
        task: a task with demo data.
        sites: how many, 1 to 100.

    Raises:
        ValueError: an option is out of range, or a site is already there.
    """
    if not 1 <= sites <= 100:
        raise ValueError(f"sites must be a whole number, 1 to 100; got {sites!r}")
    for number in range(1, sites + 1):
        try:
            make_site(task, f"site-{number}", destination / f"site-{number}", seed)
        except FileExistsError:
            raise ValueError(f"destination must not hold 'site-{number}' yet; it does") from None
