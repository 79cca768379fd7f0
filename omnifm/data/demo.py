"""The demo data: small synthetic sites, made on first use, so that no job needs a download.

They show no patients.  Sites differ as hospitals do: in contrast, coil shading, noise, spacing and orientation.
Each task has one file in `demos/` with `make(folder, site, seed)`.  The same task, name and seed give the same site.
"""

import importlib
import os
import pkgutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from omnifm.data import demos
from omnifm.data.site_folder import new_folder

VERSION = "v1"
"""Part of the cache's path.  Raise it when the demo data change."""


def demo_site(task: str, site: str, seed: int = 0, cache: Path | None = None) -> Path:
    """The folder of one demo site, which is made if it is not there yet (a few seconds).

    Args:
        task: the name of a file in `demos/`.
        site: any name of a folder.  Sites of other names look different.
        seed: another seed gives other cases and other sites.
        cache: folder in which sites are kept.  Default: $XDG_CACHE_HOME/omnifm/demo or ~/.cache/omnifm/demo, or the
            temporary folder if that cannot be written to.

    Returns:
        a folder with `dataset.json`.

    Raises:
        ValueError: there are no demo data for this task, or the site's name cannot be that of a folder.
    """
    _check_names(task, site)
    folder = (cache or cache_folder()) / VERSION / task / f"seed-{seed}" / site
    if not (folder / "dataset.json").is_file():
        with suppress(FileExistsError):  # another process has made the same site in the meantime
            make_site(task, site, folder, seed)
    return folder


def make_site(task: str, site: str, folder: Path, seed: int = 0) -> None:
    """Make one demo site at `folder`; if that fails, no part of it is left.

    Raises:
        ValueError: as `demo_site`.
        FileExistsError: the folder is already there.
    """
    _check_names(task, site)
    with new_folder(folder) as work:
        maker(task)(work, site, seed)


def maker(task: str) -> Callable[[Path, str, int], None]:
    """The function that writes one site's demo data of this task into a folder: `make(folder, site, seed)`.

    Raises:
        ValueError: there are no demo data for this task.
    """
    names = sorted(m.name for m in pkgutil.iter_modules(demos.__path__) if not m.name.startswith("_"))
    if task not in names:
        raise ValueError(f"task must have demo data: one of {', '.join(names)}; got {task!r}")
    make: Callable[[Path, str, int], None] = importlib.import_module(f"{demos.__name__}.{task}").make
    return make


def _check_names(task: str, site: str) -> None:
    maker(task)
    if not site or Path(site).name != site or site.startswith("."):
        raise ValueError(f"site must be a plain name without '/' or a leading '.'; got {site!r}")


def cache_folder() -> Path:
    """The folder in which demo data are kept, see `demo_site`.

    Raises:
        ValueError: the cache is in the temporary folder, and another user owns it.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omnifm" / "demo"
    try:
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    except OSError:
        pass
    # One folder per user: the temporary folder is shared, and another user's files must not be trusted.
    fallback = Path(tempfile.gettempdir()) / f"omnifm-demo-{os.getuid()}"
    fallback.mkdir(mode=0o700, exist_ok=True)
    if fallback.is_symlink() or fallback.stat().st_uid != os.getuid():
        raise ValueError(
            "the demo data's cache must be our own folder; it is not: set XDG_CACHE_HOME to another folder"
        )
    return fallback
