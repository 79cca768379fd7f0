"""The naming rule, on names of our tasks."""

from omnifm.metrics.rivals import rivals


def test_golden():
    names = ["accuracy", "closed_accuracy", "bleu1", "accuracy_prior", "accuracy_question_only"]
    assert rivals(names) == {
        "accuracy": {"prior": "accuracy_prior", "question only": "accuracy_question_only"},
        "closed_accuracy": {},
        "bleu1": {},
    }


def test_another_metric_with_a_common_ending_is_no_rival():
    assert rivals(["balanced_accuracy", "accuracy"]) == {"balanced_accuracy": {}, "accuracy": {}}
