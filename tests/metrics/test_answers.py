import math

import pytest

from omnifm.metrics.answers import AnswerPrior, answer_scores, normalise


class TestNormalise:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("The Left Lung.", ["left", "lung"]),
            ("X-ray", ["x", "ray"]),
            ("two", ["2"]),
            ("Twelve cm", ["12", "cm"]),
            ("1,5 cm", ["1.5", "cm"]),
            ("3.0", ["3.0"]),
            ("café's", ["cafes"]),
            ("T2-weighted, axial", ["t2", "weighted", "axial"]),
            ("A", ["a"]),
            ("Y", ["yes"]),
            ("False.", ["no"]),
            ("no fracture", ["no", "fracture"]),
            ("right_lung", ["right", "lung"]),
            ("肺", ["肺"]),
            (" ?! ", []),
        ],
    )
    def test_golden(self, text, words):
        assert normalise(text) == words

    def test_twice_is_once(self):
        for text in ("The two left lungs, 1,5 cm", "true", "A the", "n'"):
            assert normalise(" ".join(normalise(text))) == normalise(text)


class TestScores:
    def test_golden(self):
        """Two of three true words are held; 2 of the answer's 4 words are true, and it is not too short."""
        scores = answer_scores("left lung lung nodule", "left lung base", closed=False)
        assert scores == {
            "accuracy": 0.0,
            "closed_accuracy": None,
            "open_exact": 0.0,
            "open_recall": pytest.approx(2 / 3),
            "bleu1": 0.5,
        }

    def test_short_answers_are_punished(self):
        """BLEU's penalty: one right word of three has precision 1 and penalty exp(1 - 3 / 1)."""
        assert answer_scores("lung", "left lung base", closed=False)["bleu1"] == pytest.approx(math.exp(-2))

    @pytest.mark.parametrize(
        ("given", "truth", "right"),
        [
            ("Yes.", "yes", 1.0),
            ("yes, on the left", "Yes", 1.0),
            ("no", "yes", 0.0),
            ("", "no", 0.0),
            ("left", "left", 1.0),
            ("left side", "left", 0.0),
            ("true", "yes", 1.0),
        ],
    )
    def test_closed(self, given, truth, right):
        scores = answer_scores(given, truth, closed=True)
        assert (scores["accuracy"], scores["closed_accuracy"]) == (right, right)
        assert (scores["open_exact"], scores["open_recall"]) == (None, None)

    def test_in_an_open_question_the_first_word_does_not_decide(self):
        assert answer_scores("no fracture", "no", closed=False)["accuracy"] == 0.0

    def test_an_empty_answer_is_wrong_everywhere(self):
        assert answer_scores("", "lung", closed=False) == {
            "accuracy": 0.0,
            "closed_accuracy": None,
            "open_exact": 0.0,
            "open_recall": 0.0,
            "bleu1": 0.0,
        }

    def test_the_truth_is_perfect(self):
        scores = answer_scores("The left lung", "left lung", closed=False)
        assert {value for value in scores.values() if value is not None} == {1.0}


class TestPrior:
    ASKED = (("organ", "Lung"), ("organ", "the lung"), ("organ", "liver"), ("side", "right"), ("side", "left"))

    def test_most_frequent_by_type_after_normalisation(self):
        assert AnswerPrior(self.ASKED).answer("organ") == "lung"

    def test_ties_fall_to_the_alphabet_whatever_the_order(self):
        assert AnswerPrior(self.ASKED).answer("side") == AnswerPrior(self.ASKED[::-1]).answer("side") == "left"

    def test_an_unknown_type_gets_the_most_frequent_of_all(self):
        assert AnswerPrior(self.ASKED).answer("colour") == "lung"
