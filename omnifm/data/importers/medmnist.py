"""MedMNIST v2: thumbnails of many modalities, 2-D and 3-D, for classification.

Source layout: one or several of the project's files, `pathmnist.npz` or `pathmnist_64.npz`, each with
`{train,val,test}_{images,labels}`.  Classes and splits: Yang et al. 2023, doi 10.1038/s41597-022-01721-8.
"""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from omnifm.data.importers._sites import Case, Plan, write_sites
from omnifm.data.importers._source import MALFORMED, inside, report_left_out
from omnifm.data.items import Item
from omnifm.data.refusal import available_memory_bytes

PART_BYTES = 256 * 2**20
"""A site's images go into npz files of at most this size: what one reading inflates."""
SPLITS = {"train": "training", "val": "validation", "test": "test"}
ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)
ORGANS_3D = (
    "liver",
    "kidney-right",
    "kidney-left",
    "femur-right",
    "femur-left",
    "bladder",
    "heart",
    "lung-right",
    "lung-left",
    "spleen",
    "pancreas",
)
# Subset -> (DICOM code, classes in the order of their numbers).  CR stands for any radiograph, OT for electron
# microscopy; chestmnist is missing because its images have several labels at once.
SUBSETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "pathmnist": (
        "SM",
        (
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
    ),
    "dermamnist": (
        "XC",
        (
            "actinic keratosis",
            "basal cell carcinoma",
            "benign keratosis",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevus",
            "vascular lesion",
        ),
    ),
    "octmnist": ("OPT", ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal")),
    "pneumoniamnist": ("CR", ("normal", "pneumonia")),
    "retinamnist": ("OP", ("grade 0", "grade 1", "grade 2", "grade 3", "grade 4")),
    "breastmnist": ("US", ("malignant", "normal or benign")),
    "bloodmnist": (
        "SM",
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocyte",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
    ),
    "tissuemnist": (
        "GM",
        (
            "collecting duct, connecting tubule",
            "distal convoluted tubule",
            "glomerular endothelial cell",
            "interstitial endothelial cell",
            "leukocyte",
            "podocyte",
            "proximal tubule segment",
            "thick ascending limb",
        ),
    ),
    "organamnist": ("CT", ORGANS),
    "organcmnist": ("CT", ORGANS),
    "organsmnist": ("CT", ORGANS),
    "organmnist3d": ("CT", ORGANS_3D),
    "nodulemnist3d": ("CT", ("benign", "malignant")),
    "adrenalmnist3d": ("CT", ("normal", "hyperplasia")),
    "fracturemnist3d": ("CT", ("buckle", "nondisplaced", "displaced")),
    "vesselmnist3d": ("MR", ("vessel", "aneurysm")),
    "synapsemnist3d": ("OT", ("inhibitory", "excitatory")),
}


@dataclass(frozen=True, eq=False)
class Subset:
    """One npz: `images` (n, rows, columns[, 3]) or (n, slices, rows, columns), all splits in a row."""

    name: str
    images: UInt8[np.ndarray, " n *axes"]
    labels: Int[np.ndarray, " n"]
    splits: tuple[str, ...]


def prepare(
    source: Path,
    destination: Path,
    *,
    seed: int = 0,
    subsets: str = "",
    size: int = 28,
    partition: str = "natural",
    sites: int | None = None,
    gamma: float | None = None,
    first: int = 1,
) -> None:
    """Write sites with the official split; classes of several subsets are numbered one after the other.

    arXiv 2603.21660, table 1: subsets pathmnist,dermamnist,bloodmnist; "hard" is dirichlet with gamma 0.1, "medium"
    with 0.5, "extra" is natural, one modality per site.

    Args:
        source: folder with the npz files.
        destination: folder for the sites; made if needed.
        seed: of the partition.
        subsets: names with commas, in the order of their classes and sites; all that are there by default.
        size: side of the thumbnails in pixels: 28 (pathmnist.npz), 64, 128 or 224 (pathmnist_64.npz).
        partition: natural (a site per subset), dirichlet (skewed classes), modality (a site per modality) or count.
        sites: number of sites of dirichlet and count, 10 by default.
        gamma: skew of dirichlet, > 0, 0.5 by default; 0.1 strong, 100 none.
        first: number of the first site.

    Raises:
        ValueError: an option is out of range, a file is not laid out like MedMNIST or needs more memory than is
            free, or a site is already there.
    """
    plan = Plan(partition, sites, gamma, seed, first, usual=10)
    suffix = "" if size == 28 else f"_{size}"
    wanted = subsets.split(",") if subsets else [n for n in SUBSETS if (source / f"{n}{suffix}.npz").is_file()]
    unknown = [name for name in wanted if name not in SUBSETS]
    if unknown or not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"subsets must be among {list(SUBSETS)}, each once, in files of size {size}; got {wanted}")
    read = [_read(source, f"{name}{suffix}.npz", name) for name in wanted]
    cases: list[Case] = []
    rows: dict[str, tuple[Subset, int]] = {}
    offset = num_malformed = 0
    for subset in read:
        code, classes = SUBSETS[subset.name]
        for row, (label, split) in enumerate(zip(subset.labels.tolist(), subset.splits, strict=True)):
            if not 0 <= label < len(classes):
                num_malformed += 1
                continue
            key = f"{subset.name} {row}"  # MedMNIST names no patients: the official split stands in for them
            rows[key] = (subset, row)
            cases.append(Case({"label": offset + label}, key, code, offset + label, home=subset.name, split=split))
        offset += len(classes)
    report_left_out("images", sum(len(subset.labels) for subset in read), [MALFORMED] * num_malformed)
    write_sites(
        destination,
        plan,
        cases,
        {"name": "MedMNIST", "labels": _labels(wanted)},
        lambda folder, own: _fill(folder, own, rows),
    )


def _labels(subsets: Sequence[str]) -> dict[str, str]:
    """Class names, with the subset before them where there are several."""
    names = [(subset, name) for subset in subsets for name in SUBSETS[subset][1]]
    return {str(i): name if len(subsets) == 1 else f"{subset}: {name}" for i, (subset, name) in enumerate(names)}


def _read(source: Path, file: str, name: str) -> Subset:
    path = inside(source, file, "every npz file")
    if not path.is_file():
        raise ValueError(f"source must hold {file}; it does not")
    try:
        with zipfile.ZipFile(path) as archive:
            needed = sum(member.file_size for member in archive.infolist())
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} must be a zip of arrays; {type(error).__name__}") from None
    free = available_memory_bytes()
    if free is not None and 2 * needed > free:  # the arrays, and their copies in one row
        raise ValueError(f"{file} must fit in memory twice; it takes {needed >> 20} MiB, {free >> 20} are free")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = {split: arrays[f"{split}_images"] for split in SPLITS}
            labels = {split: arrays[f"{split}_labels"] for split in SPLITS}
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} must hold {{train,val,test}}_{{images,labels}}; {type(error).__name__}") from None
    for split in SPLITS:
        _check(file, images[split], labels[split], images["train"].shape[1:])
    return Subset(
        name,
        np.concatenate(list(images.values())),
        np.concatenate([own.reshape(-1) for own in labels.values()]).astype(np.int64),
        tuple(name for split, name in SPLITS.items() for _ in range(len(labels[split]))),
    )


def _check(file: str, images: Shaped[np.ndarray, "..."], labels: Shaped[np.ndarray, "..."], shape: Any) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[1:] != shape:
        got = f"{images.dtype} of {images.shape}"
        raise ValueError(f"images of {file} must be uint8 (n, rows, columns[, 3]) or (n, slices, rows, columns); {got}")
    if labels.dtype.kind not in "iu" or labels.size != len(images):
        raise ValueError(f"labels of {file} must be one class number per image; got {labels.dtype} of {labels.shape}")


def _fill(folder: Path, cases: Sequence[Case], rows: Mapping[str, tuple[Subset, int]]) -> list[Item]:
    """Write the cases' thumbnails, each subset into its own npz files."""
    items: list[Item] = [{} for _ in cases]
    positions: dict[str, list[int]] = {}
    for position, case in enumerate(cases):
        positions.setdefault(rows[case.patient][0].name, []).append(position)
    for name, own in positions.items():
        subset = rows[cases[own[0]].patient][0]
        per_part = max(1, PART_BYTES // max(1, subset.images[0].nbytes))
        for part, start in enumerate(range(0, len(own), per_part)):
            chunk = own[start : start + per_part]
            file = f"{name}-{part}.npz"
            np.savez_compressed(folder / file, images=subset.images[[rows[cases[i].patient][1] for i in chunk]])
            for index, position in enumerate(chunk):
                items[position] = {"image": f"{file}#{index}", **cases[position].item}
    return items
