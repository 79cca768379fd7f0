"""VQA-RAD: questions by clinicians about images of the head, chest and abdomen.

Source layouts: `VQA_RAD Dataset Public.json` with `VQA_RAD Image Folder/` (the original), `trainset.json` and
`testset.json` with `images/`, or `qa.json` with `images/`.  Lau et al. 2018, doi 10.1038/sdata.2018.251.
"""

from collections.abc import Sequence
from pathlib import Path

from omnifm.data.importers._questions import (
    Question,
    has_question,
    modalities_in_words,
    question_of,
    text_of,
    write_questions,
)
from omnifm.data.importers._sites import Plan
from omnifm.data.importers._source import MALFORMED, inside, read_entries, report_left_out
from omnifm.records import Json

LAYOUTS = {
    "VQA_RAD Image Folder": ("VQA_RAD Dataset Public.json",),
    "images": ("trainset.json", "testset.json", "qa.json"),
}
"""Folder of images -> question files beside it."""
MODALITIES = {"CHEST": "CR", "ABD": "CT"}
"""Organ -> DICOM code, as the paper describes the images: chest x-rays and CT of the abdomen.  Images of the head are
CT or MR; their questions tell which."""
TYPOS = {"ATRIB": "ATTRIB", "PRSE": "PRES"}
"""Misspelt question type -> correct spelling."""


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
    """Write sites with the images split 60/20/20 into training, validation and test.

    The official split is not used, because it asks about the same images in training and test.

    Args:
        source: folder of VQA-RAD.
        destination: folder in which the site folders are written; it is created if it does not exist.
        seed: random seed, >= 0, of the partition and the splits; the same seed gives the same sites.
        partition: natural (one site), modality (one site each), dirichlet (uneven modalities) or count (similar sites).
        sites: number of sites for dirichlet and count; 3 if not given.
        gamma: for dirichlet, > 0; 0.5 if not given. 0.1 makes the sites very different, 100 nearly alike.
        first: number of the first site folder: 4 writes site-4, site-5, ...
        link: hard links instead of copies of the images, to save disk space; whoever edits one edits the original, too.

    Raises:
        ValueError: an option is out of range, the source does not have VQA-RAD's layout, too many images are missing
            or cannot be read, or a site folder already exists.
    """
    plan = Plan(partition, sites, gamma, seed, first, link=link)
    files = [(source / folder, source / name) for folder, names in LAYOUTS.items() for name in names]
    present = [(folder, file) for folder, file in files if file.is_file()]
    if not present:
        raise ValueError(f"source must hold one of {', '.join(file.name for _, file in files)}; it has none")
    questions, organs = _read_questions(present, destination)
    in_words = modalities_in_words(questions)
    modalities = {image: MODALITIES.get(organs[image]) or in_words[image] for image in in_words}
    write_questions(source, destination, plan, questions, modalities, "VQA-RAD")


def _read_questions(files: Sequence[tuple[Path, Path]], destination: Path) -> tuple[list[Question], dict[Path, str]]:
    """The questions of all (folder of images, question file), and the organ of each image in capitals."""
    questions: list[Question] = []
    organs: dict[Path, str] = {}
    num_entries = 0
    num_malformed = 0
    for folder, file in files:
        for number, entry in enumerate(read_entries(file)):
            num_entries += 1
            if not has_question(entry, "image_name"):
                num_malformed += 1
                continue
            image = inside(folder, entry["image_name"], f"image of entry {number} of {file.name}")
            organs[image] = text_of(entry.get("image_organ")).upper()
            questions.append(question_of(entry, image, _question_type(entry)))
    report_left_out("entries", num_entries, [MALFORMED] * num_malformed, destination)
    return questions, organs


def _question_type(entry: Json) -> str:
    """The entry's question types in capitals, sorted, correctly spelt and joined by commas."""
    kinds = {kind.strip() for kind in text_of(entry.get("question_type")).upper().split(",")} - {""}
    return ", ".join(sorted({TYPOS.get(kind, kind) for kind in kinds})) or "OTHER"
