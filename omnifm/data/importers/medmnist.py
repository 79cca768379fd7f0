"""MedMNIST v2: small 2-D and 3-D images of many modalities, for classification.

Source layout: one or more of the project's files, for example `pathmnist.npz` or `pathmnist_64.npz`, each with the
arrays `{train,val,test}_{images,labels}`.  Classes and splits: Yang et al. 2023, doi 10.1038/s41597-022-01721-8.
"""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from omnifm.data.importers._sites import Case, Head, Plan, write_sites
from omnifm.data.importers._source import MALFORMED, inside, report_left_out
from omnifm.data.items import Item
from omnifm.data.refusal import available_memory_bytes

PART_BYTES = 256 * 2**20
"""Largest size of the images in one npz file of a site.  To read one image, the whole file is decompressed."""
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
# microscopy.  chestmnist is missing, because its images have several labels at once.
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
    """One npz file; its splits are joined, in the order training, validation, test.

    Attributes:
        name: name of the subset, e.g. "pathmnist".
        images: (n, rows, columns[, 3]) or (n, slices, rows, columns).
        labels: class number of each image.
        splits: split of each image.
    """

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
    """Write sites with the official split.  The classes of several subsets are numbered one after the other.

    arXiv 2603.21660, table 1, uses the subsets pathmnist,dermamnist,bloodmnist: "hard" is dirichlet with gamma 0.1,
    "medium" is dirichlet with gamma 0.5, and "extra" is natural, with one modality per site.

    Args:
        source: folder with the npz files.
        destination: folder in which the site folders are written; it is created if it does not exist.
        seed: random seed, >= 0, of the partition; the same seed gives the same sites.
        subsets: names, separated by commas, in the order of their classes and sites. Empty: all in the source.
        size: side of the images in pixels: 28 (pathmnist.npz), 64, 128 or 224 (pathmnist_64.npz, ...).
        partition: natural (one site per subset), modality (one per modality), dirichlet (uneven classes) or count.
        sites: number of sites for dirichlet and count; 10 if not given.
        gamma: for dirichlet, > 0; 0.5 if not given. 0.1 makes the sites very different, 100 nearly alike.
        first: number of the first site folder: 4 writes site-4, site-5, ...

    Raises:
        ValueError: an option is out of range, a file does not have MedMNIST's layout or needs more memory than is
            free, or a site folder already exists.
    """
    plan = Plan(partition, sites, gamma, seed, first, usual=10)
    suffix = "" if size == 28 else f"_{size}"
    wanted = subsets.split(",") if subsets else [n for n in SUBSETS if (source / f"{n}{suffix}.npz").is_file()]
    unknown = [name for name in wanted if name not in SUBSETS]
    if unknown or not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(
            f"subsets must be among {', '.join(SUBSETS)}, each once, in files of size {size}; "
            f"got {', '.join(wanted) or 'none'}"
        )
    cases, rows = _cases([_read(source, f"{name}{suffix}.npz", name) for name in wanted], destination)
    head: Head = {"name": "MedMNIST", "labels": _labels(wanted)}
    write_sites(destination, plan, cases, head, lambda folder, own: _fill(folder, own, rows))


Rows = dict[str, tuple[Subset, int]]
"""Key of a case -> where its image is: the subset and the row in it."""


def _cases(subsets: Sequence[Subset], destination: Path) -> tuple[list[Case], Rows]:
    """The cases of all subsets, and where their images are."""
    cases: list[Case] = []
    rows: Rows = {}
    offset = 0
    num_malformed = 0
    for subset in subsets:
        code, classes = SUBSETS[subset.name]
        for row, (label, split) in enumerate(zip(subset.labels.tolist(), subset.splits, strict=True)):
            if not 0 <= label < len(classes):
                num_malformed += 1
                continue
            # MedMNIST does not name patients; its official split keeps each patient in one split.
            key = f"{subset.name} {row}"
            rows[key] = (subset, row)
            cases.append(Case({"label": offset + label}, key, code, offset + label, home=subset.name, split=split))
        offset += len(classes)
    report_left_out("images", sum(len(subset.labels) for subset in subsets), [MALFORMED] * num_malformed, destination)
    return cases, rows


def _labels(subsets: Sequence[str]) -> dict[str, str]:
    """Class number -> class name; with several subsets the name starts with its subset."""
    names = [(subset, name) for subset in subsets for name in SUBSETS[subset][1]]
    return {str(i): name if len(subsets) == 1 else f"{subset}: {name}" for i, (subset, name) in enumerate(names)}


def _read(source: Path, file: str, name: str) -> Subset:
    path = inside(source, file, "every npz file")
    if not path.is_file():
        raise ValueError(f"source must hold {file}; it does not")
    _check_memory(path)
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


def _check_memory(path: Path) -> None:
    """Refuse a file whose arrays do not fit in memory twice: as they are read, and joined."""
    try:
        with zipfile.ZipFile(path) as archive:
            needed = sum(member.file_size for member in archive.infolist())
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} must be a zip of arrays; {type(error).__name__}") from None
    free = available_memory_bytes()
    if free is not None and 2 * needed > free:
        raise ValueError(f"{path.name} must fit in memory twice; it takes {needed >> 20} MiB, {free >> 20} are free")


def _check(
    file: str, images: Shaped[np.ndarray, "..."], labels: Shaped[np.ndarray, "..."], shape: tuple[int, ...]
) -> None:
    """Refuse arrays of a wrong type or shape; `shape` is that of one image."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[1:] != shape:
        got = f"{images.dtype} of {images.shape}"
        raise ValueError(f"images of {file} must be uint8 (n, rows, columns[, 3]) or (n, slices, rows, columns); {got}")
    if labels.dtype.kind not in "iu" or labels.size != len(images):
        raise ValueError(f"labels of {file} must be one class number per image; got {labels.dtype} of {labels.shape}")


def _fill(folder: Path, cases: Sequence[Case], rows: Rows) -> list[Item]:
    """Write the images of the cases, each subset into its own npz files; returns the cases' items in their order."""
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
            chunk_rows = [rows[cases[position].patient][1] for position in chunk]
            np.savez_compressed(folder / file, images=subset.images[chunk_rows])
            for index, position in enumerate(chunk):
                items[position] = {"image": f"{file}#{index}", **cases[position].item}
    return items
