"""`omnifm methods` and `omnifm settings`."""

from omnifm.plugins import names
from tests.commands import omnifm


def test_methods_lists_every_method_and_explains_one():
    lines = omnifm("methods").stdout
    assert all(f"\n{name:10}  " in f"\n{lines}" for name in names("methods"))
    one = omnifm("methods", "fedprox").stdout
    assert "https://arxiv.org/abs/1812.06127" in one
    assert "method.mu  (number, >= 0; default 0.01)" in one
    assert "Choose it where" in one
    wrong = omnifm("methods", "fedpox")
    assert (wrong.returncode, "did you mean 'fedprox'" in wrong.stderr) == (2, True)
    assert "method must be one of deer, ditto, " in wrong.stderr


def test_settings_explains_a_section():
    assert "train.lr  (number, > 0; required)" in omnifm("settings", "train").stdout
    assert "model.channels" in omnifm("settings", "segmentation").stdout
    assert "data_root  (text; required)" in omnifm("settings", "site").stdout
    assert "omnifm settings SECTION" in omnifm("settings").stdout
