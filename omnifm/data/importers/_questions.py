"""Questions about images: the code that the importers for visual question answering share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from omnifm.data.importers._modality_words import modality_of
from omnifm.data.importers._sites import Case, Plan, read_files, write_sites
from omnifm.data.importers._source import readable
from omnifm.records import Json

ANSWER_TYPES = ("OPEN", "CLOSED")


@dataclass(frozen=True)
class Question:
    """One question about one image.

    Attributes:
        image: the source's file.
        question: not empty.
        answer: not empty.
        answer_type: "CLOSED" (yes or no, or one of a few choices) or "OPEN" (free text).
        question_type: what is asked about, in the data set's own words.
        split: the official split, or "".
    """

    image: Path
    question: str
    answer: str
    answer_type: str
    question_type: str
    split: str


def has_question(entry: object, image_key: str) -> TypeGuard[Json]:
    """Whether an entry is a JSON object with an image name, a question, an answer and a known answer type."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get(image_key), str)
        and bool(text_of(entry.get("question")))
        and bool(text_of(entry.get("answer")))
        and text_of(entry.get("answer_type")).upper() in ANSWER_TYPES
    )


def question_of(entry: Json, image: Path, question_type: str, split: str = "") -> Question:
    """The question of an entry for which `has_question` is true."""
    return Question(
        image=image,
        question=text_of(entry["question"]),
        answer=text_of(entry["answer"]),
        answer_type=text_of(entry["answer_type"]).upper(),
        question_type=question_type,
        split=split,
    )


def answer_type(answer: str) -> str:
    """The answer type for data sets that do not give one: "CLOSED" for yes and no, otherwise "OPEN".

    >>> answer_type("Yes"), answer_type("left lung")
    ('CLOSED', 'OPEN')
    """
    return "CLOSED" if answer.lower() in ("yes", "no") else "OPEN"


def text_of(value: object) -> str:
    """A text or number as one line without extra spaces; "" for anything else.  Some data sets hold numeric answers.

    >>> text_of("left  lung "), text_of(3), text_of(None)
    ('left lung', '3', '')
    """
    is_text = isinstance(value, str | int | float) and not isinstance(value, bool)
    return " ".join(str(value).split()) if is_text else ""


def modalities_in_words(questions: Sequence[Question]) -> dict[Path, str]:
    """Image -> the DICOM code that its questions and answers name; see `modality_of`."""
    pairs: dict[Path, list[tuple[str, str]]] = {}
    for question in questions:
        pairs.setdefault(question.image, []).append((question.question, question.answer))
    return {image: modality_of(own) for image, own in pairs.items()}


def write_questions(
    source: Path,
    destination: Path,
    plan: Plan,
    questions: Sequence[Question],
    modalities: dict[Path, str],
    name: str,
) -> None:
    """Read every image once, then write the sites.  An image and all its questions stay in one split.

    Args:
        source: the data set's folder; below "images" in the site's folder the images keep their relative paths.
        destination: folder for the sites; created if it does not exist.
        plan: how cases become sites; "dirichlet" distributes modalities unevenly.
        questions: at least one.
        modalities: DICOM code of each image.
        name: name of the data set.

    Raises:
        ValueError: too many images cannot be read, or see `_sites.write_sites`.
    """
    cases = [_case(source, question, modalities[question.image]) for question in questions]
    read = readable(cases, lambda case: case.patient, read_files, destination)
    write_sites(destination, plan, read, {"name": name})


def _case(source: Path, question: Question, modality: str) -> Case:
    place = question.image.relative_to(source).as_posix()
    item = {
        "image": f"images/{place}",
        "question": question.question,
        "answer": question.answer,
        "answer_type": question.answer_type,
        "question_type": question.question_type,
        "patient": place,
    }
    files = {f"images/{place}": question.image}
    return Case(item, place, modality, modality, files, split=question.split)
