"""BreakHis: breast tumour histology in eight types, for super-resolution (the label is its type).

Source layout: `BreaKHis_v1/histology_slides/breast/{benign,malignant}/SOB/<type>/<slide>/<magnification>X/*.png`;
only the names count (SOB_B_TA-14-4659-40-001.png: benign, tubular adenoma, slide 14-4659, 40X, image 1), so any
folder of such files will do, crops with a suffix _x<column>_y<row> too.  Spanhol et al. 2016,
doi 10.1109/TBME.2015.2496264.
"""

import re
from pathlib import Path

from omnifm.data.importers._sites import Case, Plan, read_files, write_sites
from omnifm.data.importers._source import MALFORMED, pictures, readable, report_left_out

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
) -> None:
    """Write sites split 60/20/20 by patient.  "natural" is one site: BreakHis comes from one laboratory.

    A slide's letters (22549AB, 22549CD) name parts of one patient's biopsy, and some patients have two tumour types:
    the number alone is the patient.

    Args:
        source: BreakHis' folder, or any folder with its images.
        destination: folder for the sites; made if needed.
        seed: of the partition and the splits.
        magnification: 40, 100, 200 or 400; images of other magnifications are left alone.
        partition: natural (one site), dirichlet (skewed tumour types), modality (one site) or count (alike).
        sites: number of sites of dirichlet and count, 4 by default.
        gamma: skew of dirichlet, > 0, 0.5 by default; 0.1 strong, 100 none.
        first: number of the first site.

    Raises:
        ValueError: an option is out of range, the source is not BreakHis, or a site is already there.
    """
    plan = Plan(partition, sites, gamma, seed, first, usual=4)
    if magnification not in MAGNIFICATIONS:
        raise ValueError(f"magnification must be one of {list(MAGNIFICATIONS)}; got {magnification!r}")
    found = pictures(source, "SOB_*.png")
    if not found:
        raise ValueError("source must hold BreakHis images named like SOB_B_TA-14-4659-40-001.png; it has none")
    cases = [_case(source, file) for file in found]
    known = [case for case in cases if case is not None]
    report_left_out("images", len(cases), [MALFORMED] * (len(cases) - len(known)))
    wanted = [case for zoom, case in known if zoom == magnification]
    read = readable(wanted, key=lambda case: case.patient + str(sorted(case.files)), read=read_files)
    labels = {str(number): name for number, name in enumerate(TYPES.values())}
    write_sites(destination, plan, read, {"name": f"BreakHis {magnification}X", "labels": labels})


def _case(source: Path, file: Path) -> tuple[int, Case] | None:
    """(magnification, case), or None for a name that is not BreakHis'."""
    match = NAME.fullmatch(file.name)
    if match is None or match[2] not in TYPES or TYPES[match[2]][0] != match[1].lower():
        return None
    target = f"images/{file.relative_to(source).as_posix()}"
    label, patient = list(TYPES).index(match[2]), f"{match[3]}-{match[4]}"
    item = {"image": target, "label": label, "patient": patient}
    return int(match[5]), Case(item, patient, "SM", label, {target: file})
