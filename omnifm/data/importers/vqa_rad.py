"""VQA-RAD: clinicians' questions about head, chest and abdomen images.

Source layouts: `VQA_RAD Dataset Public.json` with `VQA_RAD Image Folder/` (the original), `trainset.json` and
`testset.json` with `images/`, or `qa.json` with `images/`.  Lau et al. 2018, doi 10.1038/sdata.2018.251.
"""

from pathlib import Path
from typing import Any

from omnifm.data.importers._modality_words import modality_of
from omnifm.data.importers._questions import Question, text_of, write_questions
from omnifm.data.importers._sites import Plan
from omnifm.data.importers._source import MALFORMED, inside, read_entries, report_left_out

LAYOUTS = {
    "VQA_RAD Image Folder": ("VQA_RAD Dataset Public.json",),
    "images": ("trainset.json", "testset.json", "qa.json"),
}
"""Folder of images -> lists of questions beside it."""
MODALITIES = {"CHEST": "CR", "ABD": "CT"}
"""The paper's collection: chest x-rays, axial CT of the abdomen; heads are CT or MR, as their questions say."""
TYPOS = {"ATRIB": "ATTRIB", "PRSE": "PRES"}


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
    """Write sites split 60/20/20 by image: the official split asks about the same images in training and test.

    Args:
        source: VQA-RAD's folder.
        destination: folder for the sites; made if needed.
        seed: of the partition and the splits.
        partition: natural (one site), modality (one each), dirichlet (skewed modalities) or count (alike).
        sites: number of sites of dirichlet and count, 3 by default.
        gamma: skew of dirichlet, > 0, 0.5 by default; 0.1 strong, 100 none.
        first: number of the first site.

    Raises:
        ValueError: an option is out of range, the source is not laid out like VQA-RAD, too many images are missing
            or cannot be read, or a site is already there.
    """
    plan = Plan(partition, sites, gamma, seed, first)
    files = [(source / folder, source / name) for folder, names in LAYOUTS.items() for name in names]
    present = [(folder, file) for folder, file in files if file.is_file()]
    if not present:
        raise ValueError(f"source must hold one of {[file.name for _, file in files]}; it has none")
    questions: list[Question] = []
    organs: dict[Path, str] = {}
    num_entries = num_malformed = 0
    for folder, file in present:
        for number, entry in enumerate(read_entries(file)):
            num_entries += 1
            if _is_well_formed(entry):
                image = inside(folder, entry["image_name"], f"image of entry {number} of {file.name}")
                organs[image] = text_of(entry.get("image_organ")).upper()
                questions.append(_question(image, entry))
            else:
                num_malformed += 1
    report_left_out("entries", num_entries, [MALFORMED] * num_malformed)
    pairs: dict[Path, list[tuple[str, str]]] = {}
    for question in questions:
        pairs.setdefault(question.image, []).append((question.question, question.answer))
    modalities = {image: MODALITIES.get(organs[image]) or modality_of(pairs[image]) for image in pairs}
    write_questions(source, destination, plan, questions, modalities, "VQA-RAD")


def _is_well_formed(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("image_name"), str)
        and bool(text_of(entry.get("question")))
        and bool(text_of(entry.get("answer")))
        and text_of(entry.get("answer_type")).upper() in ("OPEN", "CLOSED")
    )


def _question(image: Path, entry: dict[str, Any]) -> Question:
    kinds = {kind.strip() for kind in text_of(entry.get("question_type")).upper().split(",")} - {""}
    return Question(
        image,
        text_of(entry["question"]),
        text_of(entry["answer"]),
        text_of(entry["answer_type"]).upper(),
        ", ".join(sorted({TYPOS.get(kind, kind) for kind in kinds})) or "OTHER",
        split="",
    )
