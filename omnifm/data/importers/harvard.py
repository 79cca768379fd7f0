"""Harvard brain atlas: registered slice pairs (CT-MRI, PET-MRI, SPECT-MRI) for image fusion.

Source layout: `<kind>/<CT|PET|SPECT>/<case><slice>.png`, and the MR image of the same name in `<kind>/MRI/`.  The last
three digits of a name are the slice.  Images: the Whole Brain Atlas, www.med.harvard.edu/AANLIB.
"""

import re
from pathlib import Path

from omnifm.data.importers._sites import Case, Plan, read_files, write_sites
from omnifm.data.importers._source import inside, pictures, readable, report_left_out
from omnifm.data.local_lists import LeftOut

MODALITIES = {"CT": "CT", "PET": "PT", "SPECT": "NM"}
"""Folder -> DICOM code of the image that is fused with MR."""
NAME = re.compile(r"(\d+)(\d{3})")


def prepare(
    source: Path,
    destination: Path,
    *,
    seed: int = 0,
    partition: str = "natural",
    sites: int | None = None,
    gamma: float | None = None,
    first: int = 1,
    link: bool = False,
) -> None:
    """Write one site per kind of pair, in alphabetical order, as in arXiv 2603.21660, section 4.5.

    The cases of a site are split 60/20/20.  Some cases have a CT-MRI and a SPECT-MRI pair with the same MR image.  A
    case that several sites have is a training case at all of them, never a validation or test case.

    Args:
        source: folder that holds one or more of the folders CT-MRI, PET-MRI and SPECT-MRI.
        destination: folder in which the site folders are written; it is created if it does not exist.
        seed: random seed, >= 0, of the partition and the splits; the same seed gives the same sites.
        partition: natural or modality (one site per kind of pair), dirichlet (uneven kinds) or count (similar sites).
        sites: number of sites for dirichlet and count; 3 if not given.
        gamma: for dirichlet, > 0; 0.5 if not given. 0.1 makes the sites very different, 100 nearly alike.
        first: number of the first site folder: 4 writes site-4, site-5, ...
        link: hard links instead of copies of the images, to save disk space; whoever edits one edits the original, too.

    Raises:
        ValueError: an option is out of range, the source has no pairs, too many images are missing or cannot be read,
            or a site folder already exists.
    """
    plan = Plan(partition, sites, gamma, seed, first, link=link)
    found = [file for file in pictures(source) if file.parent.name in MODALITIES]
    if not found:
        raise ValueError("source must hold pairs such as CT-MRI/CT/2004.png and CT-MRI/MRI/2004.png; it has none")
    read = {file: _case(source, file) for file in found}
    malformed = [LeftOut("malformed", str(file)) for file, case in read.items() if case is None]
    report_left_out("pairs", len(found), malformed, destination)
    cases = [case for case in read.values() if case is not None]
    kept = readable(cases, lambda case: str(case.item["image_a"]), read_files, destination)
    write_sites(destination, plan, kept, {"name": "Harvard brain atlas"})


def _case(source: Path, file: Path) -> Case | None:
    """The case of a CT, PET or SPECT image and its MR image; None if its name holds no case and slice."""
    match = NAME.fullmatch(file.stem)
    if match is None:
        return None
    kind = f"{file.parent.name}-MRI"
    partner = file.parent.parent / "MRI" / file.name
    inside(source, partner.relative_to(source).as_posix(), "every picture")
    targets = {f"images/{kind}/{side.parent.name}/{file.name}": side for side in (file, partner)}
    code = MODALITIES[file.parent.name]
    patient = str(int(match[1]))
    image_a, image_b = targets
    item = {"image_a": image_a, "image_b": image_b, "modality_a": code, "modality_b": "MR", "patient": patient}
    return Case(item, patient, code, kind, targets, home=kind)
