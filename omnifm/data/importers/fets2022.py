"""FeTS 2022: enhancing tumour on T1ce MR scans, one site per institution of one of the paper's four groups.

Source layout: `partitioning_1.csv` (columns Partition_ID and Subject_ID) and, for each subject,
`FeTS2022_XXXXX/FeTS2022_XXXXX_{t1ce,seg}.nii.gz`.
The groups are those of arXiv 2603.21660, section 4.4 ("Group 1: clients 2-10; Group 2: 11-15, 17; Group 3: 19-23;
Group 4: 19, 22, 23").  We assume that the paper's "client" is the Partition_ID of `partitioning_1.csv`, which divides
the data by institution.
"""

import csv
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel
import numpy as np

from omnifm.data.importers._sites import already_there
from omnifm.data.importers._source import report_left_out
from omnifm.data.importers._splits import SplitMemory
from omnifm.data.local_lists import LeftOut
from omnifm.data.site_folder import new_folder, place, write_datalist
from omnifm.data.volume import RefusedImage, read_label, read_volume

GROUPS: dict[int, tuple[int, ...]] = {
    1: (2, 3, 4, 5, 6, 7, 8, 9, 10),
    2: (11, 12, 13, 14, 15, 17),
    3: (19, 20, 21, 22, 23),
    4: (19, 22, 23),
}
PARTITION = "partitioning_1.csv"
ENHANCING = 4
"""Value of the enhancing tumour in FeTS' masks."""
SEGMENTATION_VALUES = dict.fromkeys(range(5), "")
"""The values that FeTS' masks may hold, as `read_label` takes them; their names are not needed."""
SUBJECT = re.compile(r"FeTS2022_\d{5}")


def prepare(source: Path, destination: Path, *, seed: int = 0, group: int = 1, link: bool = False) -> None:
    """Write `site-1`, `site-2`, ... in the order of Partition_ID, each with its patients split 60/20/20.

    Images are copied.  Masks are written anew: 1 is enhancing tumour, 0
    is everything else.  A subject that cannot be read is left out and counted.  The importer stops if more than 5 % of
    an institution's subjects cannot be read.

    Args:
        source: folder of FeTS 2022.
        destination: folder in which the site folders are written; it is created if it does not exist.
        seed: random seed of the splits; the same seed gives the same splits.
        group: group of institutions in the paper, 1 to 4; those that the CSV file does not list are left out.
        link: hard links instead of copies of the images, to save disk space; whoever edits one edits the original, too.

    Raises:
        ValueError: the group is unknown, the source does not have FeTS 2022's layout, too many subjects cannot be
            read, or a site folder already exists.
    """
    if group not in GROUPS:
        raise ValueError(f"group must be one of {', '.join(map(str, GROUPS))}; got {group!r}")
    institutions = _institutions(source)
    members = [number for number in GROUPS[group] if number in institutions]
    if not members:
        wanted = f"an institution of group {group} ({', '.join(map(str, GROUPS[group]))})"
        raise ValueError(f"{PARTITION} must list {wanted}; got {', '.join(map(str, sorted(institutions)))}")
    for number, institution in enumerate(members, start=1):
        site = f"site-{number}"
        try:
            with new_folder(destination / site) as folder:
                cases = partial(_write_case, folder=folder, link=link)
                items, left_out = _write_cases([source / subject for subject in institutions[institution]], cases)
                what, total = f"subjects of institution {institution}", len(items) + len(left_out)
                report_left_out(what, total, left_out, destination)
                _write_list(folder, items, SplitMemory(destination, seed))
        except FileExistsError:
            raise ValueError(already_there(site)) from None


def _institutions(source: Path) -> dict[int, list[str]]:
    """Partition_ID -> its subjects, in the order of the CSV file."""
    file = source / PARTITION
    if not file.is_file():
        raise ValueError(f"source must be FeTS 2022's folder with {PARTITION}; it has none")
    institutions: dict[int, list[str]] = {}
    with file.open(newline="", encoding="utf-8-sig") as text:
        for line, row in enumerate(csv.DictReader(text), start=2):
            number = row.get("Partition_ID") or ""
            subject = row.get("Subject_ID") or ""
            if not number.isdecimal() or not SUBJECT.fullmatch(subject):
                rule = "must hold a whole Partition_ID and a Subject_ID like FeTS2022_00001"
                raise ValueError(f"line {line} of {PARTITION} {rule}; it does not")
            institutions.setdefault(int(number), []).append(subject)
    listed = [subject for subjects in institutions.values() for subject in subjects]
    if len(set(listed)) < len(listed):
        rule = f"{PARTITION} must list every subject once"
        raise ValueError(f"{rule}; {len(listed) - len(set(listed))} of {len(listed)} lines repeat one")
    return institutions


def _write_cases(
    subjects: list[Path], write: Callable[[Path], dict[str, str]]
) -> tuple[list[dict[str, str]], list[LeftOut]]:
    """The items of the subjects that can be read, and the others."""
    items, left_out = [], []
    for subject in subjects:
        try:
            items.append(write(subject))
        except RefusedImage as refusal:
            left_out.append(LeftOut(refusal.reason, str(subject), str(refusal)))
    return items, left_out


def _write_list(folder: Path, items: list[dict[str, str]], memory: SplitMemory) -> None:
    content: dict[str, object] = {
        "name": "FeTS 2022, enhancing tumour on T1ce",
        "modality": {"0": "MR"},
        "labels": {"0": "background", "1": "enhancing tumour"},
    }
    splits = memory.three_way([item["patient"] for item in items])
    content |= {split: [items[i] for i in part] for split, part in splits.items()}
    write_datalist(folder, content)


def _write_case(case: Path, folder: Path, link: bool) -> dict[str, str]:
    """Copy the scan of one subject and write its mask; returns its item."""
    subject = case.name
    scan = case / f"{subject}_t1ce.nii.gz"
    image = read_volume(scan)
    tumour = read_label(case / f"{subject}_seg.nii.gz", image, SEGMENTATION_VALUES)
    item = {"image": f"images/{subject}.nii.gz", "label": f"labels/{subject}.nii.gz", "patient": subject}
    for name in ("images", "labels"):
        (folder / name).mkdir(exist_ok=True)
    place(scan, folder / item["image"], link=link)
    mask = nibabel.Nifti1Image((tumour == ENHANCING).astype(np.uint8), image.affine)
    nibabel.save(mask, folder / item["label"])
    return item
