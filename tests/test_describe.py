"""Records of methods and settings: they are read from the code, and nothing is missing."""

import inspect

import pytest

from omnifm import describe
from omnifm.plugins import names, plugin


@pytest.mark.parametrize("name", names("methods"))
def test_every_method_says_what_it_is_whose_it_is_and_when_to_choose_it(name):
    kind, record = plugin("methods", name), describe.method(name)
    assert record.arxiv or record.paper in ("ours", "no paper"), "the first line of a method's file is like FedAvg's"
    assert record.summary
    assert record.about
    assert "when" in vars(kind), "a method has its own sentence, not its parent's"
    assert record.when.endswith(".")
    changes_what_travels = {"partition", "sends"} & set(vars(kind))
    assert "travels" in vars(kind) or not changes_what_travels


@pytest.mark.parametrize("section", describe.sections())
def test_every_setting_is_explained(section):
    for setting in describe.settings(section):
        assert setting.text, setting.key
        assert setting.kind


def test_a_setting_has_its_key_range_default_and_text():
    settings = {setting.key: setting for setting in describe.settings("fedprox")}
    mu = settings["method.mu"]
    assert (mu.kind, mu.default, mu.shared) == ("number, >= 0", "0.01", False)
    assert mu.text.startswith("Weight mu of the pull")
    assert settings["method.capacity"].shared
    assert {s.key: s.default for s in describe.settings("train")}["train.lr"] is None
    assert {s.key: s.kind for s in describe.settings("segmentation")}["task.spacing_mm"].startswith('"auto", or list')


def test_an_unknown_section_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'fedprox'"):
        describe.settings("fedprxo")


def test_the_first_line_of_a_file_is_where_title_and_paper_come_from():
    record = describe.method("fedavg")
    assert (record.title, record.paper, record.arxiv) == ("FedAvg", "McMahan et al. 2017", "1602.05629")
    assert record.summary in (inspect.getmodule(plugin("methods", "fedavg")).__doc__ or "")
