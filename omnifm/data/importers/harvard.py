"""Harvard brain atlas pairs (CT-MRI, PET-MRI, SPECT-MRI), registered slices for image fusion.

Source layout: `<kind>/<CT|PET|SPECT>/<case><slice>.png` with its partner of the same name in `<kind>/MRI/`; the last
three digits are the slice.  Images: the Whole Brain Atlas, www.med.harvard.edu/AANLIB.
"""

import re
from pathlib import Path

from omnifm.data.importers._sites import Case, Plan, read_files, write_sites
from omnifm.data.importers._source import MALFORMED, inside, pictures, readable, report_left_out

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
) -> None:
    """Write one site per kind of pair in alphabetical order, as arXiv 2603.21660, sec. 4.5; split by case.

    Some cases have both CT-MRI and SPECT-MRI pairs, of the same MR image.  A case that several sites know trains at
    all of them and is tested at none.

    Args:
        source: folder with CT-MRI, PET-MRI or SPECT-MRI.
        destination: folder for the sites; made if needed.
        seed: of the partition and the splits.
        partition: natural and modality (one site per kind of pair), dirichlet (skewed kinds) or count (alike).
        sites: number of sites of dirichlet and count, 3 by default.
        gamma: skew of dirichlet, > 0, 0.5 by default; 0.1 strong, 100 none.
        first: number of the first site.

    Raises:
        ValueError: an option is out of range, the source has no pairs, too many lack their partner or cannot be
            read, or a site is already there.
    """
    plan = Plan(partition, sites, gamma, seed, first)
    found = [file for file in pictures(source) if file.parent.name in MODALITIES]
    if not found:
        raise ValueError("source must hold pairs such as CT-MRI/CT/2004.png and CT-MRI/MRI/2004.png; it has none")
    cases = [case for file in found if (case := _case(source, file)) is not None]
    report_left_out("pairs", len(found), [MALFORMED] * (len(found) - len(cases)))
    read = readable(cases, key=lambda case: str(case.item["image_a"]), read=read_files)
    write_sites(destination, plan, read, {"name": "Harvard brain atlas"})


def _case(source: Path, file: Path) -> Case | None:
    match = NAME.fullmatch(file.stem)
    if match is None:
        return None
    kind = f"{file.parent.name}-MRI"
    partner = file.parent.parent / "MRI" / file.name
    inside(source, partner.relative_to(source).as_posix(), "every picture")
    targets = {f"images/{kind}/{side.parent.name}/{file.name}": side for side in (file, partner)}
    code, patient = MODALITIES[file.parent.name], str(int(match[1]))
    image_a, image_b = targets
    item = {"image_a": image_a, "image_b": image_b, "modality_a": code, "modality_b": "MR", "patient": patient}
    return Case(item, patient, code, kind, targets, home=kind)
