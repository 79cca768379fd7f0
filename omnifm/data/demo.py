"""The embedded demo data: small synthetic sites, made on first use, so that no job needs a download.

They are not patients.  Sites differ as hospitals do: contrast, coil shading, noise, spacing, orientation.
One function per task in `MAKERS`; the same task, name and seed give the same site.
"""

import gzip
import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import Float, Shaped

from omnifm.data.datalist import DEMO_NAME
from omnifm.data.demo_heads import TISSUES, Scanner, draw_head, positions
from omnifm.data.site_folder import new_folder, write_datalist

VERSION = "v1"
"""Part of the cache's path: raise it when the data change."""
COUNTS = {"training": 12, "validation": 4, "test": 5}


def demo_site(task: str, site: str, seed: int = 0, cache: Path | None = None) -> Path:
    """The folder of one demo site, made if it is not there yet (a few seconds).

    Args:
        task: a key of `MAKERS`.
        site: any name; it seeds what makes this site differ.
        seed: another seed gives other cases and other sites.
        cache: where made sites are kept; default $XDG_CACHE_HOME/omnifm/demo or ~/.cache/omnifm/demo, or the
            temporary folder where that cannot be written.

    Returns:
        a folder with `dataset.json`.

    Raises:
        ValueError: no demo data for this task, or a site's name that cannot be a folder's.
    """
    _check_names(task, site)
    folder = (cache or _cache()) / VERSION / task / f"seed-{seed}" / site
    if not (folder / "dataset.json").is_file():
        with suppress(FileExistsError):  # another process made the same site meanwhile
            make_site(task, site, folder, seed)
    return folder


def make_site(task: str, site: str, folder: Path, seed: int = 0) -> None:
    """Make one demo site at `folder`, all of it or nothing.

    Raises:
        ValueError: as `demo_site`.
        FileExistsError: the folder is already there.
    """
    _check_names(task, site)
    with new_folder(folder) as work:
        MAKERS[task](work, site, seed)


def _check_names(task: str, site: str) -> None:
    if task not in MAKERS:
        raise ValueError(f"task must have demo data: one of {sorted(MAKERS)}; got {task!r}")
    if not site or Path(site).name != site or site.startswith("."):
        raise ValueError(f"site must be a plain name without '/' or a leading '.'; got {site!r}")


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omnifm" / "demo"
    try:
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    except OSError:
        pass
    # A name of our own per user: another user's folder in the shared temporary folder is not ours to trust.
    fallback = Path(tempfile.gettempdir()) / f"omnifm-demo-{os.getuid()}"
    fallback.mkdir(mode=0o700, exist_ok=True)
    if fallback.is_symlink() or fallback.stat().st_uid != os.getuid():
        raise ValueError("the demo data's cache must be our own folder; it is not: set XDG_CACHE_HOME")
    return fallback


def _generator(*words: object) -> np.random.Generator:
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _make_segmentation(folder: Path, site: str, seed: int) -> None:
    scanner = Scanner.of_site(site, _generator("scanner", site, seed))
    content: dict[str, Any] = {
        "name": DEMO_NAME,
        "description": "made by omnifm.data.demo; heads and lesions are drawn, nobody was scanned",
        "modality": {"0": "MR"},
        "labels": {"0": "background", "1": "enhancing lesion"},
    }
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for split, count in COUNTS.items():
        content[split] = []
        for index in range(count):
            name = f"{split}-{index:02d}"
            generator = _generator("case", site, seed, name)
            tissue = draw_head(positions(scanner.affine()), generator)
            image, label = scanner.scan(tissue, generator), (tissue == TISSUES.index("rim")).astype(np.uint8)
            item = {"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz", "patient": name}
            _write_nifti(folder / item["image"], image, scanner.affine())
            _write_nifti(folder / item["label"], label, scanner.affine())
            content[split].append(item)
    write_datalist(folder, content)


def _write_nifti(path: Path, array: Shaped[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]) -> None:
    # No time stamp in the gzip header: the same site has the same bytes everywhere.
    path.write_bytes(gzip.compress(nibabel.Nifti1Image(array, affine).to_bytes(), compresslevel=4, mtime=0))


MAKERS: dict[str, Callable[[Path, str, int], None]] = {"segmentation": _make_segmentation}
"""Task -> what fills a folder with one site's demo data."""
