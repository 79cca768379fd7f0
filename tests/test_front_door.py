"""What `from omnifm import ...` gives."""

import inspect
from typing import get_type_hints

import omnifm
from tests.conftest import write_site


def test_the_names_are_functions_and_classes_and_no_modules():
    from omnifm import Experiment, check, predict, simulate

    assert inspect.isclass(Experiment)
    for function in (check, predict, simulate):
        assert inspect.isfunction(function)
        assert set(inspect.signature(function).parameters) <= set(get_type_hints(function))
    assert set(omnifm.__all__) <= set(dir(omnifm))


def test_check_returns_the_report(tmp_path):
    write_site(tmp_path / "site")
    report = omnifm.check(tmp_path / "site")
    assert (report["task"], report["usable"]) == ("segmentation", True)
