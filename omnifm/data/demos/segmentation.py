"""Demo data for segmentation: drawn heads with enhancing lesions, one simulated scanner per site."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
from jaxtyping import Float, Shaped

from omnifm.data.datalist import DEMO_NAME
from omnifm.data.demos import CASES_PER_SPLIT, generator
from omnifm.data.demos._heads import TISSUES, Scanner, draw_head, positions
from omnifm.data.site_folder import write_datalist
from omnifm.records import Json


def make(folder: Path, site: str, seed: int) -> None:
    """Write one institution: heads with lesions, all scanned by the institution's own scanner."""
    scanner = Scanner.of_site(site, generator("scanner", site, seed))
    content: Json = {
        "name": DEMO_NAME,
        "description": "made by omnifm.data.demos; heads and lesions are drawn, nobody was scanned",
        "modality": {"0": "MR"},
        "labels": {"0": "background", "1": "enhancing lesion"},
    }
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for split, count in CASES_PER_SPLIT.items():
        content[split] = []
        for index in range(count):
            name = f"{split}-{index:02d}"
            random = generator("case", site, seed, name)
            tissue = draw_head(positions(scanner.affine()), random)
            image = scanner.scan(tissue, random)
            label = (tissue == TISSUES.index("rim")).astype(np.uint8)
            item = {"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz", "patient": name}
            _write_nifti(folder / item["image"], image, scanner.affine())
            _write_nifti(folder / item["label"], label, scanner.affine())
            content[split].append(item)
    write_datalist(folder, content)


def _write_nifti(path: Path, array: Shaped[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]) -> None:
    # Without the time in the gzip header, the same site has the same bytes on every machine.
    path.write_bytes(gzip.compress(nibabel.Nifti1Image(array, affine).to_bytes(), compresslevel=4, mtime=0))
