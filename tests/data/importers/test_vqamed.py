import pytest

from omnifm.data.datalist import read_datalist
from omnifm.data.importers.vqamed import FILES, prepare
from tests.data.importers import layouts
from tests.data.importers.layouts import VQA, picture


def splits_of(folder):
    return read_datalist(folder / "site-1", required=VQA).splits()


def numbers(items):
    return sorted(int(item["image"].stem[6:]) for item in items)


@pytest.mark.parametrize(
    ("year", "make", "wanted"),
    [
        (2019, layouts.vqamed2019, [range(16), range(16, 20), range(20, 24)]),
        (2020, layouts.vqamed2020, [range(16), range(16, 20), range(20, 24)]),
        (2021, layouts.vqamed2020, [range(20), range(24, 28), range(28, 32)]),
    ],
)
def test_official_splits(tmp_path, year, make, wanted):
    prepare(make(tmp_path / "source"), tmp_path / "out", year=year)
    assert [numbers(items) for items in splits_of(tmp_path / "out").values()] == [list(own) for own in wanted]


def test_an_item_of_2019(tmp_path):
    prepare(layouts.vqamed2019(tmp_path / "source"), tmp_path / "out")
    training, _, test = splits_of(tmp_path / "out").values()
    wanted = {
        "question": "what kind of scan is this?",
        "answer": "ct noncontrast",
        "answer_type": "OPEN",
        "question_type": "modality",
        "modality": "CT",
    }
    assert {key: training[1][key] for key in wanted} == wanted
    assert {item["answer"] for item in test} == {"flair"}  # of "flair#t2"
    assert {item["question_type"] for item in test} == {"modality"}


def test_answers_in_a_file_of_their_own_are_found_by_image(tmp_path):
    prepare(layouts.vqamed2020(tmp_path / "source"), tmp_path / "out", year=2021)
    answers = {item["image"].stem[6:]: item["answer"] for item in splits_of(tmp_path / "out")["test"]}
    assert answers == {str(n): f"first {n}" for n in range(28, 32)}


def test_yes_and_no_close_a_question(tmp_path):
    prepare(layouts.vqamed2020(tmp_path / "source"), tmp_path / "out", year=2020)
    training, _, test = splits_of(tmp_path / "out").values()
    assert {item["answer_type"] for item in test} == {"CLOSED"}
    assert {item["answer_type"] for item in training} == {"OPEN"}


def test_all_pairs_are_read_where_categories_are_missing(tmp_path):
    source = layouts.vqamed2019(tmp_path / "source")
    for file in source.rglob("C1_*.txt"):
        file.unlink()
    prepare(source, tmp_path / "out")
    assert {item["question_type"] for item in splits_of(tmp_path / "out")["training"]} == {"other"}


@pytest.mark.parametrize("line", ["synpic1", "synpic1|what?", "synpic1|what?| ", "a|b|c|d|e", "|what?|this"])
def test_a_malformed_line_is_left_out_and_counted(tmp_path, capsys, line):
    file = layouts.vqamed2019(tmp_path / "source") / "train/QAPairsByCategory/C1_Modality_train.txt"
    file.write_text(file.read_text() + line + "\n")
    prepare(tmp_path / "source", tmp_path / "out")
    assert "left out 1 of 25 lines. 1 malformed: " in capsys.readouterr().out


def test_odd_letters_stop_nothing(tmp_path):
    file = layouts.vqamed2019(tmp_path / "source") / "train/QAPairsByCategory/C1_Modality_train.txt"
    file.write_bytes(file.read_bytes().replace(b"mr - flair", b"mr \x96 flair", 1))
    prepare(tmp_path / "source", tmp_path / "out")
    assert len(splits_of(tmp_path / "out")["training"]) == 16


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd"])
def test_rejects_names_that_leave_the_source(tmp_path, name):
    file = layouts.vqamed2019(tmp_path / "source") / "train/QAPairsByCategory/C1_Modality_train.txt"
    file.write_text(f"{name}|what?|this\n{file.read_text()}")
    with pytest.raises(ValueError, match=r"^image of line 1 of 'training' must be a plain path"):
        prepare(tmp_path / "source", tmp_path / "out")


def test_rejects_a_test_without_its_answers(tmp_path):
    source = layouts.vqamed2020(tmp_path / "source")
    (source / "texts/Task1-VQA-2021-TestSet-ReferenceAnswers.txt").unlink()
    with pytest.raises(ValueError, match=r"source must hold Task1-VQA-2021-TestSet-ReferenceAnswers\.txt beside"):
        prepare(source, tmp_path / "out", year=2021)


def test_rejects_years(tmp_path):
    with pytest.raises(ValueError, match=rf"year must be one of {', '.join(map(str, FILES))}; got 2018"):
        prepare(tmp_path, tmp_path / "out", year=2018)


@pytest.mark.slow
def test_real_questions_without_images_cost_one_line(shared_data, tmp_path):
    with pytest.raises(ValueError, match=r"got 3700, left out 3700. 3700 missing_file: "):
        prepare(shared_data / "native/vqamed2019", tmp_path / "out")


def test_questions_without_answers_are_no_task_of_ours(shared_data, tmp_path):
    """The question generation set of 2021 has several questions per line and no answer."""
    with pytest.raises(ValueError, match="source must hold questions with answers of VQA-Med 2021"):
        prepare(shared_data / "native/vqamed2021_vqg", tmp_path / "out", year=2021)


def test_real_questions_with_made_images(shared_data, tmp_path):
    source = tmp_path / "source"
    images = set()
    for file in sorted((shared_data / "native/vqamed2019").glob("*.txt")):
        lines = file.read_text(encoding="utf-8").splitlines()[:30]
        images |= {line.split("|")[0] for line in lines}
        (source / "texts").mkdir(parents=True, exist_ok=True)
        (source / "texts" / file.name).write_text("\n".join(lines), encoding="utf-8")
    for image in images:
        picture(source / "images" / f"{image}.jpg")
    prepare(source, tmp_path / "out")
    training, validation, test = splits_of(tmp_path / "out").values()
    assert len(training) + len(test) == len(validation) == 120  # no answers to the test here: cut out of training
    kinds = {item["question_type"] for item in validation}
    assert kinds == {"modality", "plane", "organ", "abnormality"}
