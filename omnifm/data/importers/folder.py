"""A folder of your own: images/ and labels/ with equal names, or one folder per class.

Source layouts: `images/a.nii.gz` with the mask `labels/a.nii.gz` or `labels/a.png` (segmentation), or
`<class>/a.png` (classification).  Images are single files: NIfTI, DICOM, PNG, JPEG, TIFF or BMP.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from omnifm.data.importers._sites import Case, Plan, read_files, write_sites
from omnifm.data.importers._source import inside, readable
from omnifm.data.items import check_modality
from omnifm.data.raster import SUFFIXES
from omnifm.data.volume import read_label, read_volume

BOOKKEEPING = ("thumbs.db", "desktop.ini")
"""What Windows leaves in a folder of images."""
ENDINGS = (".nii.gz", ".nii", ".dcm", *SUFFIXES)


def prepare(
    source: Path,
    destination: Path,
    *,
    modality: str,
    labels: str,
    seed: int = 0,
    patient: str = "",
    partition: str = "natural",
    sites: int | None = None,
    gamma: float | None = None,
    first: int = 1,
) -> None:
    """Write sites split 60/20/20 by patient.

    Names of files may be names of people, so none is kept: an image becomes `images/<n>`, its patient `p<m>`, numbered
    in the alphabetical order of all images and patients in the source; that order is how you find one again.  What
    stands in the files themselves (a DICOM header) is left as it is.

    Args:
        source: folder with images/ and labels/, or with one folder per class.
        destination: folder for the sites; made if needed.
        modality: DICOM code of the images: MR, CT, US, CR, ...
        labels: names with commas: meanings of the mask values 0, 1, 2, ..., or the names of the class folders.
        seed: of the partition and the splits.
        patient: regular expression whose first group, in every image's name, is the patient; else each name is one.
        partition: natural and modality (one site), dirichlet (skewed classes) or count (alike).
        sites: number of sites of dirichlet and count, 3 by default.
        gamma: skew of dirichlet, > 0, 0.5 by default; 0.1 strong, 100 none.
        first: number of the first site.

    Raises:
        ValueError: an option is out of range, the source has neither layout, names leave open whose an image or a
            mask is, too many images are refused, or a site is already there.
    """
    plan = Plan(partition, sites, gamma, seed, first)
    check_modality(modality, "modality")
    names = [name.strip() for name in labels.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"labels must be different names with commas between them; got {len(names)}")
    pattern = _pattern(patient)
    if (source / "images").is_dir() and (source / "labels").is_dir():
        cases, read = _pairs(source, pattern, modality), _reader_of_pairs(dict(enumerate(names)))
    else:
        cases, read = _classes(source, names, pattern, modality), read_files
    kept = readable(cases, key=lambda case: str(case.item["image"]), read=read)
    head = {"name": "folder", "labels": {str(value): name for value, name in enumerate(names)}}
    write_sites(destination, plan, kept, head)


def _pattern(patient: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(patient or "(.*)", re.DOTALL)
    except re.error:
        pattern = re.compile("")
    if pattern.groups < 1:
        raise ValueError("patient must be a regular expression with a group, like '([0-9]+)_'; it is not")
    return pattern


def _files(source: Path, folder: str) -> list[Path]:
    names = sorted(file.name for file in (source / folder).iterdir())
    found = [name for name in names if not name.startswith(".") and name.lower() not in BOOKKEEPING]
    return [inside(source, f"{folder}/{name}", f"every file of {folder!r}") for name in found]


def _stem(file: Path) -> tuple[str, str]:
    """A file's name and its ending; "" for endings that no image has."""
    ending = next((end for end in ENDINGS if file.name.lower().endswith(end)), "")
    return (file.name[: -len(ending)], ending) if ending else (file.name, "")


def _pairs(source: Path, pattern: re.Pattern[str], modality: str) -> list[Case]:
    images = _files(source, "images")
    patients, masks = _patients(images, pattern), _masks(source, images)
    cases = []
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        item = {
            "image": f"images/{number:05d}{_stem(image)[1]}",
            "label": f"labels/{number:05d}{_stem(mask)[1]}",
            "patient": patients[image],
        }
        cases.append(Case(item, patients[image], modality, "", {item["image"]: image, item["label"]: mask}))
    return cases


def _masks(source: Path, images: list[Path]) -> list[Path]:
    """Each image's mask: the file of its name, else the one that only differs in its ending; or a missing file.

    Raises:
        ValueError: an image's mask could be another image's, or one of several.
    """
    masks_of: dict[str, list[Path]] = {}
    for file in _files(source, "labels"):
        masks_of.setdefault(_stem(file)[0], []).append(file)
    num_images = Counter(_stem(image)[0] for image in images)
    found, unsure = [], 0
    for image in images:
        stem, same = _stem(image)[0], source / "labels" / image.name
        fitting = masks_of.get(stem, [])
        if same in fitting or not fitting:
            found.append(same)  # a missing one is refused when it is read
        else:
            found.append(fitting[0])
            unsure += num_images[stem] > 1 or len(fitting) > 1
    if unsure:
        rule = "an image must share its whole name with a mask, or all but the ending with one mask and no other image"
        raise ValueError(f"{rule}; {unsure} of {len(images)} do not")
    return found


def _classes(source: Path, names: list[str], pattern: re.Pattern[str], modality: str) -> list[Case]:
    folders = {file.name for file in source.iterdir() if file.is_dir()} if source.is_dir() else set()
    if folders != set(names):
        rule = "source must hold images/ and labels/, or exactly the folders that labels names"
        raise ValueError(
            f"{rule}; got {len(folders & set(names))} of {len(names)} and {len(folders - set(names))} others"
        )
    images = [(image, label) for label, name in enumerate(names) for image in _files(source, name)]
    patients = _patients([image for image, _ in images], pattern)
    cases = []
    for number, (image, label) in enumerate(images):
        target = f"images/{number:05d}{_stem(image)[1]}"
        item = {"image": target, "label": label, "patient": patients[image]}
        cases.append(Case(item, patients[image], modality, label, {target: image}))
    return cases


def _patients(images: list[Path], pattern: re.Pattern[str]) -> dict[Path, str]:
    """Image -> "p1", "p2", ...

    Raises:
        ValueError: a name has no patient in it: counted as one of its own, a patient could be in two splits.
    """
    found = {image: pattern.search(image.name) for image in images}
    keys = {image: match[1] for image, match in found.items() if match and match[1]}
    if len(keys) < len(images):
        rule = "patient must find a patient in the name of every image"
        raise ValueError(f"{rule}; it does not in {len(images) - len(keys)} of {len(images)}")
    numbers = {key: number for number, key in enumerate(sorted(set(keys.values())), start=1)}
    return {image: f"p{numbers[key]}" for image, key in keys.items()}


def _reader_of_pairs(labels: dict[int, str]) -> Callable[[Case], None]:
    def read(case: Case) -> None:
        image, mask = case.files.values()
        read_label(mask, read_volume(image), labels)

    return read
