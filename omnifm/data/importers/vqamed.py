"""VQA-Med 2019, 2020 or 2021 (ImageCLEF): questions about radiology images.

Source layout: the unpacked archives, anywhere below one folder.  Question files are found by their names (`FILES`);
their lines are `image|question|answer`.  Images are found by their names, in any folder.
Ben Abacha et al., CLEF 2019, 2020, 2021.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omnifm.data.importers._questions import Question, answer_type, modalities_in_words, text_of, write_questions
from omnifm.data.importers._sites import Plan
from omnifm.data.importers._source import MALFORMED, inside, pictures, report_left_out

TRAIN_2020 = "VQAnswering_2020_Train_QA_[pP]airs.txt"
VALIDATION_2020 = "VQAnswering_2020_Val_QA_[pP]airs.txt"
# Year -> split -> groups of file name patterns; the first group with a file is used.  The training set of 2021 consists
# of the training and validation set of 2020.  Except in 2019, the answers of a test set are in a separate file
# (see `_answers_of`).
FILES: dict[int, dict[str, Sequence[Sequence[str]]]] = {
    2019: {
        "training": [["C?_*_train.txt"], ["All_QA_Pairs_train.txt"]],
        "validation": [["C?_*_val.txt"], ["All_QA_Pairs_val.txt"]],
        "test": [["VQAMed2019_Test_Questions_w_Ref_Answers.txt"]],
    },
    2020: {
        "training": [[TRAIN_2020]],
        "validation": [[VALIDATION_2020]],
        "test": [["VQAMed2020-Task1-VQAnswering-Test-Questions.txt"]],
    },
    2021: {
        "training": [[TRAIN_2020, VALIDATION_2020]],
        "validation": [["VQA-Med-2021-VQAnswering-Task1-New-ValidationSet.txt"]],
        "test": [["Task1-VQA-2021-TestSet-Questions.txt"]],
    },
}


@dataclass(frozen=True)
class Line:
    """One line of a question file: the image's name, the question, its first reference answer and its category."""

    image: str
    question: str
    answer: str
    category: str


def prepare(
    source: Path,
    destination: Path,
    *,
    seed: int = 0,
    year: int = 2019,
    partition: str = "natural",
    sites: int | None = None,
    gamma: float | None = None,
    first: int = 1,
    link: bool = False,
) -> None:
    """Write sites with the official split, which never puts an image into two splits.

    If a question has several reference answers, the first one is used.

    Args:
        source: folder with the unpacked archives; for 2021 also those of 2020, which hold the training images.
        destination: folder in which the site folders are written; it is created if it does not exist.
        seed: random seed, >= 0, of the partition, and of the splits if the official split cannot be kept.
        year: 2019, 2020 or 2021.
        partition: natural (one site), modality (as the questions name it), dirichlet (uneven modalities) or count.
        sites: number of sites for dirichlet and count; 3 if not given.
        gamma: for dirichlet, > 0; 0.5 if not given. 0.1 makes the sites very different, 100 nearly alike.
        first: number of the first site folder: 4 writes site-4, site-5, ...
        link: hard links instead of copies of the images, to save disk space; whoever edits one edits the original, too.

    Raises:
        ValueError: an option is out of range, the source holds no questions with answers, too many images are
            missing or cannot be read, or a site folder already exists.
    """
    plan = Plan(partition, sites, gamma, seed, first, link=link)
    if year not in FILES:
        raise ValueError(f"year must be one of {', '.join(map(str, FILES))}; got {year!r}")
    questions = _read_questions(source, year, destination)
    modalities = modalities_in_words(questions)
    write_questions(source, destination, plan, questions, modalities, f"VQA-Med {year}")


def _read_questions(source: Path, year: int, destination: Path) -> list[Question]:
    images = {file.stem: file for file in reversed(pictures(source))}
    questions: list[Question] = []
    num_lines = 0
    num_malformed = 0
    for split, groups in FILES[year].items():
        for number, line in enumerate(_lines(source, groups), start=1):
            num_lines += 1
            if line is None:
                num_malformed += 1
                continue
            if line.image not in images:  # reading will report it as missing, unless its path leaves the source
                images[line.image] = inside(source, f"{line.image}.jpg", f"image of line {number} of {split!r}")
            kind = answer_type(line.answer)
            questions.append(Question(images[line.image], line.question, line.answer, kind, line.category, split))
    if num_lines == 0:
        names = FILES[year]["training"][0]
        raise ValueError(f"source must hold questions with answers of VQA-Med {year}, in {names}; it has none")
    report_left_out("lines", num_lines, [MALFORMED] * num_malformed, destination)
    return questions


def _lines(source: Path, groups: Sequence[Sequence[str]]) -> Iterator[Line | None]:
    """The lines of the first group that has files; None for a line that is not a question with an answer."""
    for group in groups:
        files = sorted({file for name in group for file in source.rglob(name)})
        for file in files:
            inside(source, file.relative_to(source).as_posix(), "every question file")
            answers = _answers_of(file)
            for text in _text_lines(file):
                yield _line(text.split("|"), answers, _category(file))
        if files:
            return


def _line(fields: list[str], answers: dict[str, str] | None, category: str) -> Line | None:
    if answers is not None:  # image|question, with the answer in another file
        fields = [*fields[:2], answers.get(fields[0].strip(), "")]
    elif len(fields) == 4:  # the test set of 2019: image|category|question|answer
        category = text_of(fields[1])
        fields = [fields[0], *fields[2:]]
    if len(fields) != 3:
        return None
    image, question, answer = map(text_of, fields)
    first_answer = text_of(answer.split("#")[0])
    return Line(image, question, first_answer, category) if image and question and first_answer else None


def _answers_of(file: Path) -> dict[str, str] | None:
    """Image -> first reference answer, for a file that holds only questions; None for any other file."""
    if not file.name.endswith("-Questions.txt"):
        return None
    answers = file.with_name(file.name.replace("-Questions.txt", "-ReferenceAnswers.txt"))
    if not answers.is_file():
        raise ValueError(f"source must hold {answers.name} beside its questions; it does not")
    rows = (text.split("|") for text in _text_lines(answers))
    return {row[0].strip(): row[1] for row in rows if len(row) > 1}


def _text_lines(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8-sig", errors="replace")  # a wrong byte spoils one word only
    return [line for line in text.split("\n") if line.strip()]


def _category(file: Path) -> str:
    """The category in a file's name, e.g. "modality" for C1_Modality_train.txt.

    All questions of 2020 and 2021 are about abnormalities.
    """
    parts = file.stem.split("_")
    if parts[0] == "All":
        return "other"
    return parts[1].lower() if parts[0].startswith("C") else "abnormality"
