"""SLAKE: questions in English and Chinese about CT, MR and X-ray images.

Source layout: `train.json`, `validate.json`, `test.json` (any of them) and `imgs/<image>/source.jpg`.
Liu et al. 2021, arXiv 2102.09542.
"""

from pathlib import Path
from typing import Any

from omnifm.data.importers._questions import Question, text_of, write_questions
from omnifm.data.importers._sites import Plan
from omnifm.data.importers._source import MALFORMED, inside, read_entries, report_left_out

FILES = {"train.json": "training", "validate.json": "validation", "test.json": "test"}
MODALITIES = {"CT": "CT", "MRI": "MR", "X-Ray": "CR"}
LANGUAGES = {"en": ("en",), "zh": ("zh",), "all": ("en", "zh")}


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
) -> None:
    """Write sites whose images, with all their questions, are in one split only.

    The published split cuts through images; if the files at hand do, images are dealt 60/20/20 anew.

    Args:
        source: SLAKE's folder.
        destination: folder for the sites; made if needed.
        seed: of the partition and the splits.
        language: of the questions: en, zh or all.
        partition: natural (one site), modality (CT, CR, MR), dirichlet (skewed modalities) or count (alike).
        sites: number of sites of dirichlet and count, 3 by default.
        gamma: skew of dirichlet, > 0, 0.5 by default; 0.1 strong, 100 none.
        first: number of the first site.

    Raises:
        ValueError: an option is out of range, the source is not laid out like SLAKE, too many images are missing or
            cannot be read, or a site is already there.
    """
    plan = Plan(partition, sites, gamma, seed, first)
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {list(LANGUAGES)}; got {language!r}")
    present = [name for name in FILES if (source / name).is_file()]
    if not present:
        raise ValueError(f"source must hold one of {list(FILES)}; it has none")
    questions: list[Question] = []
    modalities: dict[Path, str] = {}
    num_entries = num_malformed = 0
    for name in present:
        for number, entry in enumerate(read_entries(source / name)):
            num_entries += 1
            if not _is_well_formed(entry):
                num_malformed += 1
            elif entry["q_lang"] in LANGUAGES[language]:
                image = inside(source / "imgs", entry["img_name"], f"image of entry {number} of {name}")
                modalities[image] = MODALITIES[entry["modality"]]
                questions.append(_question(image, entry, FILES[name]))
    report_left_out("entries", num_entries, [MALFORMED] * num_malformed)
    write_questions(source, destination, plan, questions, modalities, f"SLAKE ({language})")


def _is_well_formed(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("img_name"), str)
        and text_of(entry.get("modality")) in MODALITIES
        and text_of(entry.get("q_lang")) in LANGUAGES["all"]
        and bool(text_of(entry.get("question")))
        and bool(text_of(entry.get("answer")))
        and text_of(entry.get("answer_type")).upper() in ("OPEN", "CLOSED")
    )


def _question(image: Path, entry: dict[str, Any], split: str) -> Question:
    return Question(
        image,
        text_of(entry["question"]),
        text_of(entry["answer"]),
        text_of(entry["answer_type"]).upper(),
        text_of(entry.get("content_type")) or "Other",
        split,
    )
