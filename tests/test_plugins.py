import pytest

from omnifm.plugins import load_method, load_task, names, plugin
from tests.conftest import experiment


def test_names_are_the_files():
    assert {"fedavg", "fedper", "local", "omnifm"} <= set(names("methods"))
    assert "segmentation" in names("tasks")


def test_refuses_an_unknown_name():
    with pytest.raises(ValueError, match=r"method must be one of .*omnifm.*; got 'os'"):
        plugin("methods", "os")


def test_refuses_unknown_settings_before_anything_starts():
    with pytest.raises(ValueError, match="method: unknown key 'mu'"):
        load_method(experiment(method={"name": "fedavg", "mu": 1}))
    with pytest.raises(ValueError, match=r"task: patch_size: .*; got 20"):
        load_task(experiment(task={"patch_size": 20}))


@pytest.mark.parametrize("name", names("methods"))
def test_every_method_loads_with_its_defaults(name):
    assert load_method(experiment(method={"name": name})).settings is not None
