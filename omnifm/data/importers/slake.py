"""SLAKE: questions in English and Chinese about CT, MR and X-ray images.

Source layout: one or more of `train.json`, `validate.json` and `test.json`, with `imgs/<image>/source.jpg`.
Liu et al. 2021, arXiv 2102.09542.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypeGuard

from omnifm.data.importers._questions import Question, has_question, question_of, text_of, write_questions
from omnifm.data.importers._sites import Plan
from omnifm.data.importers._source import MALFORMED, inside, read_entries, report_left_out
from omnifm.records import Json

FILES = {"train.json": "training", "validate.json": "validation", "test.json": "test"}
"""File -> split."""
MODALITIES = {"CT": "CT", "MRI": "MR", "X-Ray": "CR"}
"""SLAKE's modality -> DICOM code."""
LANGUAGES = {"en": ("en",), "zh": ("zh",), "all": ("en", "zh")}
"""Option -> values of "q_lang" that it accepts."""


def prepare(
    source: Path,
    destination: Path,
    *,
    seed: int = 0,
    language: str = "en",
    partition: str = "natural",
    sites: int | None = None,
    gamma: float | None = None,
    first: int = 1,
    link: bool = False,
) -> None:
    """Write sites in which an image and all its questions are in one split only.

    The published split puts some images into several splits.  If it does so for the files that are present, the images
    are split 60/20/20 again.

    Args:
        source: folder of SLAKE.
        destination: folder in which the site folders are written; it is created if it does not exist.
        seed: random seed, >= 0, of the partition and the splits; the same seed gives the same sites.
        language: language of the questions: en, zh or all.
        partition: natural (one site), modality (CT, CR, MR), dirichlet (uneven modalities) or count (similar sites).
        sites: number of sites for dirichlet and count; 3 if not given.
        gamma: for dirichlet, > 0; 0.5 if not given. 0.1 makes the sites very different, 100 nearly alike.
        first: number of the first site folder: 4 writes site-4, site-5, ...
        link: hard links instead of copies of the images, to save disk space; whoever edits one edits the original, too.

    Raises:
        ValueError: an option is out of range, the source does not have SLAKE's layout, too many images are missing or
            cannot be read, or a site folder already exists.
    """
    plan = Plan(partition, sites, gamma, seed, first, link=link)
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}; got {language!r}")
    present = [name for name in FILES if (source / name).is_file()]
    if not present:
        raise ValueError(f"source must hold one of {', '.join(FILES)}; it has none")
    questions, modalities = _read_questions(source, present, LANGUAGES[language], destination)
    write_questions(source, destination, plan, questions, modalities, f"SLAKE ({language})")


def _read_questions(
    source: Path, names: Sequence[str], languages: Collection[str], destination: Path
) -> tuple[list[Question], dict[Path, str]]:
    """The questions in these languages, and the DICOM code of each image."""
    questions: list[Question] = []
    modalities: dict[Path, str] = {}
    num_entries = 0
    num_malformed = 0
    for name in names:
        for number, entry in enumerate(read_entries(source / name)):
            num_entries += 1
            if not _is_well_formed(entry):
                num_malformed += 1
            elif entry["q_lang"] in languages:
                image = inside(source / "imgs", entry["img_name"], f"image of entry {number} of {name}")
                modalities[image] = MODALITIES[entry["modality"]]
                question_type = text_of(entry.get("content_type")) or "Other"
                questions.append(question_of(entry, image, question_type, FILES[name]))
    report_left_out("entries", num_entries, [MALFORMED] * num_malformed, destination)
    return questions, modalities


def _is_well_formed(entry: object) -> TypeGuard[Json]:
    return (
        has_question(entry, "img_name")
        and text_of(entry.get("modality")) in MODALITIES
        and text_of(entry.get("q_lang")) in LANGUAGES["all"]
    )
