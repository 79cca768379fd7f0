"""BreakHis: microscope images of eight types of breast tumour, for super-resolution (the label is the type).

Source layout: `BreaKHis_v1/histology_slides/breast/{benign,malignant}/SOB/<type>/<slide>/<magnification>X/*.png`.
Only the file names are used (SOB_B_TA-14-4659-40-001.png: benign, tubular adenoma, slide 14-4659, 40X, image 1), so any
folder with such files will do.  Crops whose names end in _x<column>_y<row> are accepted too.
Spanhol et al. 2016, doi 10.1109/TBME.2015.2496264.
"""

import re
from pathlib import Path

from omnifm.data.importers._sites import Case, Plan, read_files, write_sites
from omnifm.data.importers._source import pictures, readable, report_left_out
from omnifm.data.local_lists import LeftOut

NAME = re.compile(r"SOB_([BM])_([A-Z]{1,2})-(\d\d)-(\d+)[A-Z]*-(40|100|200|400)-\d+(?:_x\d+_y\d+)?\.png")
TYPES = {
    "A": "benign: adenosis",
    "F": "benign: fibroadenoma",
    "PT": "benign: phyllodes tumour",
    "TA": "benign: tubular adenoma",
    "DC": "malignant: ductal carcinoma",
    "LC": "malignant: lobular carcinoma",
    "MC": "malignant: mucinous carcinoma",
    "PC": "malignant: papillary carcinoma",
}
MAGNIFICATIONS = (40, 100, 200, 400)


def prepare(
    source: Path,
    destination: Path,
    *,
    seed: int = 0,
    magnification: int = 100,
    partition: str = "natural",
    sites: int | None = None,
    gamma: float | None = None,
    first: int = 1,
    link: bool = False,
) -> None:
    """Write sites with the patients split 60/20/20 into training, validation and test.

    The partition "natural" gives one site, because all BreakHis images come from one laboratory.  The number in a
    slide's name identifies the patient.  Its letters (22549AB, 22549CD) only name parts of the biopsy, and some
    patients have two tumour types, so neither is used to tell patients apart.

    Args:
        source: folder of BreakHis, or any folder with its images.
        destination: folder in which the site folders are written; it is created if it does not exist.
        seed: random seed, >= 0, of the partition and the splits; the same seed gives the same sites.
        magnification: 40, 100, 200 or 400; images of other magnifications are not used.
        partition: natural (one site), dirichlet (uneven tumour types), modality (one site) or count (similar sites).
        sites: number of sites for dirichlet and count; 4 if not given.
        gamma: for dirichlet, > 0; 0.5 if not given. 0.1 makes the sites very different, 100 nearly alike.
        first: number of the first site folder: 4 writes site-4, site-5, ...
        link: hard links instead of copies of the images, to save disk space; whoever edits one edits the original, too.

    Raises:
        ValueError: an option is out of range, the source holds no BreakHis images, too many images cannot be read,
            or a site folder already exists.
    """
    plan = Plan(partition, sites, gamma, seed, first, usual=4, link=link)
    if magnification not in MAGNIFICATIONS:
        raise ValueError(f"magnification must be one of {', '.join(map(str, MAGNIFICATIONS))}; got {magnification!r}")
    found = pictures(source, "SOB_*.png")
    if not found:
        raise ValueError("source must hold BreakHis images named like SOB_B_TA-14-4659-40-001.png; it has none")
    cases = [_case(source, file) for file in found]
    known = [case for case in cases if case is not None]
    malformed = [LeftOut("malformed", str(file)) for file, case in zip(found, cases, strict=True) if case is None]
    report_left_out("images", len(cases), malformed, destination)
    wanted = [case for zoom, case in known if zoom == magnification]
    read = readable(wanted, lambda case: case.patient + str(sorted(case.files)), read_files, destination)
    labels = {str(number): name for number, name in enumerate(TYPES.values())}
    write_sites(destination, plan, read, {"name": f"BreakHis {magnification}X", "labels": labels})


def _case(source: Path, file: Path) -> tuple[int, Case] | None:
    """(magnification, case), or None if the file name is not one of BreakHis."""
    match = NAME.fullmatch(file.name)
    if match is None or match[2] not in TYPES or TYPES[match[2]][0] != match[1].lower():
        return None
    target = f"images/{file.relative_to(source).as_posix()}"
    label = list(TYPES).index(match[2])
    patient = f"{match[3]}-{match[4]}"
    item = {"image": target, "label": label, "patient": patient}
    return int(match[5]), Case(item, patient, "SM", label, {target: file})
