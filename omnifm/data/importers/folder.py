"""Your own data: a folder with images/ and labels/ (masks of the same names), or with one folder per class.

Source layouts: `images/a.nii.gz` with the mask `labels/a.nii.gz` or `labels/a.png` (for segmentation), `<class>/a.png`
(for classification), or images alone, without `--labels`.  Each image is a single file: NIfTI, DICOM, PNG, JPEG, TIFF
or BMP.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from omnifm.data.importers._sites import Case, Head, Plan, read_files, write_sites
from omnifm.data.importers._source import inside, readable
from omnifm.data.items import check_modality
from omnifm.data.local_lists import LeftOut, in_words, write_left_out
from omnifm.data.raster import SUFFIXES
from omnifm.data.volume import read_label, read_volume

BOOKKEEPING = ("thumbs.db", "desktop.ini")
"""Files that Windows adds to a folder of images, in lower case."""
ENDINGS = (".nii.gz", ".nii", ".dcm", *SUFFIXES)
FOREIGN = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}")
"""How the ending of a file that is no image looks, if it is none of `ENDINGS`.  A DICOM file may have no ending, or the
last number of a UID."""
UNKNOWN_PATIENTS = (
    "WARNING: every file counts as its own patient, because --patient is not given. If a patient has several pictures, "
    "name the part of the file names that tells patients apart: --patient '(P[0-9]+)'. Otherwise pictures of one "
    "patient can be in training and in test, and scores will be too good."
)
GUESSES = (r"(.+)[-_ ]", r"([A-Za-z]*[0-9]+)")
"""Regular expressions for `patient` that are suggested where several names share what they find."""
WHOLE = re.compile("(.*)", re.DOTALL)
"""Finds the whole name of a file."""
MIN_GUESSED = 3
"""Smallest number of patients for which an expression is suggested."""


def prepare(
    source: Path,
    destination: Path,
    *,
    modality: str,
    labels: str = "",
    seed: int = 0,
    patient: str = "",
    partition: str = "natural",
    sites: int | None = None,
    gamma: float | None = None,
    first: int = 1,
    link: bool = False,
) -> None:
    """Write sites with the patients split 60/20/20 into training, validation and test.

    Images and masks are copied; the source is never changed.  File names may contain the names of patients, so they are
    not kept: an image becomes `images/<n>` and its patient `p<m>`.  The numbers follow the alphabetical order of all
    images and patients in the source; `names.txt` in the destination leads from the new names to yours.  The content of
    the files is copied as it is: a DICOM header still names the patient.

    Without `patient`, the patients are unknown: no item names one, and every file counts as its own.

    Args:
        source: folder with images/ and labels/, or with one folder per class.
        destination: folder in which the site folders are written; it is created if it does not exist.
        modality: DICOM code of all images: MR, CT, US, CR, ...
        labels: names, separated by commas: of mask values 0, 1, 2, ... or of class folders. Empty: images only.
        seed: random seed, >= 0, of the partition and the splits; the same seed gives the same sites.
        patient: regular expression; its first group in a file name is the patient. Empty: patients are unknown.
        partition: natural or modality (one site), dirichlet (uneven classes) or count (similar sites).
        sites: number of sites for dirichlet and count; 3 if not given.
        gamma: for dirichlet, > 0; 0.5 if not given. 0.1 makes the sites very different, 100 nearly alike.
        first: number of the first site folder: 4 writes site-4, site-5, ...
        link: hard links instead of copies of the images, to save disk space; whoever edits one edits the original, too.

    Raises:
        ValueError: an option is out of range, the source has neither layout, the patient or the mask of an image is
            not clear from its name, too many images cannot be read, or a site folder already exists.
    """
    plan = Plan(partition, sites, gamma, seed, first, link=link)
    check_modality(modality, "modality")
    names = [name.strip() for name in labels.split(",")] if labels else []
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"labels must be different names, separated by commas; got {len(names)} names")
    pattern = _pattern(patient) if patient else None
    read: Callable[[Case], None] = read_files
    if not names:
        cases = _images_alone(source, pattern, modality, destination)
    elif (source / "images").is_dir() and (source / "labels").is_dir():
        cases = _pairs(source, pattern, modality, destination)
        read = _reader_of_pairs(dict(enumerate(names)))
    else:
        cases = _classes(source, names, pattern, modality, destination)
    if pattern is None:
        print(_warning([next(iter(case.files.values())).name for case in cases]))
    kept = readable(cases, lambda case: str(case.item["image"]), read, destination)
    head: Head = {"name": "folder"}
    if names:
        head["labels"] = {str(value): name for value, name in enumerate(names)}
    write_sites(destination, plan, kept, head)


def _pattern(patient: str) -> re.Pattern[str]:
    """The compiled option `patient`."""
    try:
        pattern = re.compile(patient, re.DOTALL)
    except re.error:
        pattern = re.compile("")  # has no group: refused below
    if pattern.groups < 1:
        raise ValueError("patient must be a regular expression with a group, like '([0-9]+)_'; it is not")
    return pattern


def _warning(names: list[str]) -> str:
    """What is said about files whose patients are unknown, with an expression to try if several names share one."""
    for guess in GUESSES:
        found = [match[1] for name in names if (match := re.search(guess, name))]
        if len(found) == len(names) and MIN_GUESSED <= len(set(found)) < len(names):
            seen = f"The {len(names)} names share {len(set(found))} beginnings, as if a patient had several pictures"
            return f"{UNKNOWN_PATIENTS} {seen}: try --patient '{guess}'."
    return UNKNOWN_PATIENTS


def _files(source: Path, folder: str, destination: Path) -> list[Path]:
    """The images of a folder in alphabetical order.

    Hidden files are passed over.  A file whose name does not end like an image's is passed over, too, and said.
    """
    names = sorted(file.name for file in (source / folder).iterdir())
    visible = [name for name in names if not name.startswith(".") and name.lower() not in BOOKKEEPING]
    if folder == ".":
        visible = [name for name in visible if not (source / name).is_dir()]
    foreign = [name for name in visible if not _stem(Path(name))[1] and FOREIGN.fullmatch(Path(name).suffix)]
    if foreign:
        rows = [LeftOut("no_image_name", str(source / folder / name)) for name in foreign]
        write_left_out(destination, rows)
        print(f"passed over {len(foreign)} of {len(visible)} files in one folder. {in_words(rows)}")
    images = [name for name in visible if name not in set(foreign)]
    return [inside(source, f"{folder}/{name}", "every image of a folder") for name in images]


def _stem(file: Path) -> tuple[str, str]:
    """A file's name without its ending, and the ending; the ending is "" if it is not one of `ENDINGS`."""
    ending = next((end for end in ENDINGS if file.name.lower().endswith(end)), "")
    return (file.name[: -len(ending)], ending) if ending else (file.name, "")


def _images_alone(source: Path, pattern: re.Pattern[str] | None, modality: str, destination: Path) -> list[Case]:
    """The cases of images without labels: for `omnifm predict`, or to draw masks."""
    folder = "images" if (source / "images").is_dir() else "."
    images = _files(source, folder, destination) if source.is_dir() else []
    if not images:
        rule = "source must hold images, in images/ or in itself, if --labels is not given"
        raise ValueError(f"{rule}; it holds none: for class folders or masks add --labels")
    patients = _patients(images, pattern)
    cases = []
    for number, image in enumerate(images):
        target = f"images/{number:05d}{_stem(image)[1]}"
        item = {"image": target, **_named(patients[image], pattern)}
        cases.append(Case(item, patients[image], modality, "", {target: image}))
    return cases


def _pairs(source: Path, pattern: re.Pattern[str] | None, modality: str, destination: Path) -> list[Case]:
    """The cases of the layout with images/ and labels/."""
    images = _files(source, "images", destination)
    patients = _patients(images, pattern)
    masks = _masks(source, images, _files(source, "labels", destination))
    cases = []
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        item = {
            "image": f"images/{number:05d}{_stem(image)[1]}",
            "label": f"labels/{number:05d}{_stem(mask)[1]}",
            **_named(patients[image], pattern),
        }
        cases.append(Case(item, patients[image], modality, "", {item["image"]: image, item["label"]: mask}))
    return cases


def _named(patient: str, pattern: re.Pattern[str] | None) -> dict[str, str]:
    """The patient as it stands in an item: not at all, if nobody has said how to find it."""
    return {} if pattern is None else {"patient": patient}


def _masks(source: Path, images: list[Path], masks: list[Path]) -> list[Path]:
    """The mask of each image: the file with the same name, or else the one that differs only in its ending.

    If there is no such file, the path of a missing file is returned, which is refused when it is read.

    Raises:
        ValueError: a mask could belong to several images, or several masks to one image.
    """
    masks_of: dict[str, list[Path]] = {}
    for file in masks:
        masks_of.setdefault(_stem(file)[0], []).append(file)
    num_images = Counter(_stem(image)[0] for image in images)
    found = []
    num_unclear = 0
    for image in images:
        stem = _stem(image)[0]
        same_name = source / "labels" / image.name
        candidates = masks_of.get(stem, [])
        if same_name in candidates or not candidates:
            found.append(same_name)
        else:
            found.append(candidates[0])
            num_unclear += num_images[stem] > 1 or len(candidates) > 1
    if num_unclear:
        rule = "an image must share its whole name with a mask, or all but the ending with one mask and no other image"
        raise ValueError(f"{rule}; {num_unclear} of {len(images)} do not")
    return found


def _classes(
    source: Path, names: list[str], pattern: re.Pattern[str] | None, modality: str, destination: Path
) -> list[Case]:
    """The cases of the layout with one folder per class."""
    folders = {file.name for file in source.iterdir() if file.is_dir()} if source.is_dir() else set()
    if folders != set(names):
        rule = "source must hold images/ and labels/, or exactly the folders that labels names"
        num_known = len(folders & set(names))
        num_others = len(folders - set(names))
        raise ValueError(
            f"{rule}; got {num_known} of {len(names)} and {num_others} others: "
            "name every class folder in --labels, and move other folders away"
        )
    images = [(image, label) for label, name in enumerate(names) for image in _files(source, name, destination)]
    patients = _patients([image for image, _ in images], pattern)
    cases = []
    for number, (image, label) in enumerate(images):
        target = f"images/{number:05d}{_stem(image)[1]}"
        item = {"image": target, "label": label, **_named(patients[image], pattern)}
        cases.append(Case(item, patients[image], modality, label, {target: image}))
    return cases


def _patients(images: list[Path], pattern: re.Pattern[str] | None) -> dict[Path, str]:
    """Image -> "p1", "p2", ...; without a pattern every image has its own.

    Raises:
        ValueError: the pattern finds no patient in a name.  To count such an image as a patient of its own could put
            one patient into two splits.
    """
    found = {image: (pattern or WHOLE).search(image.name) for image in images}
    keys = {image: match[1] for image, match in found.items() if match and match[1]}
    if len(keys) < len(images):
        rule = "patient must find a patient in the name of every image"
        raise ValueError(
            f"{rule}; it does not in {len(images) - len(keys)} of {len(images)}: "
            "change the expression, or take files that are no images out of the folder"
        )
    numbers = {key: number for number, key in enumerate(sorted(set(keys.values())), start=1)}
    return {image: f"p{numbers[key]}" for image, key in keys.items()}


def _reader_of_pairs(labels: dict[int, str]) -> Callable[[Case], None]:
    """A function that reads the image and the mask of a case, to see whether they can be read."""

    def read(case: Case) -> None:
        image, mask = case.files.values()
        read_label(mask, read_volume(image), labels)

    return read
