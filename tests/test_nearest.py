import pytest

from omnifm.config import Experiment, Train, known_keys
from omnifm.nearest import did_you_mean, nearest
from omnifm.plugins import load_method, names


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("learning_rate", "lr"),
        ("LR", "lr"),
        ("wd", "weight_decay"),
        ("epochs", "local_epochs"),
        ("rounds", "num_rounds"),
        ("batch", "batch_size"),
        ("optimiser", "optimizer"),
        ("banana", None),
    ],
)
def test_what_people_write_for_the_keys_of_train(word, meant):
    assert nearest(word, known_keys(Train)) == meant


def test_nothing_is_said_where_nothing_is_near():
    assert did_you_mean("banana", names("methods")) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"learning_rate": 1}}, "unknown key 'train.learning_rate'; did you mean 'train.lr'"),
        ({"trian": {}}, "unknown key 'trian'; did you mean 'train'"),
        ({"method": {"name": "fedprox", "muu": 1}}, r"unknown key 'muu'; did you mean 'mu'\? \(keys: .*mu, share_buf"),
        ({"method": {"name": "fedpox"}}, "method must be one of .*; did you mean 'fedprox'"),
        ({"method": {"name": "omnifm", "banana": 1}}, r"unknown key 'banana' \(keys: share, "),
    ],
)
def test_an_unknown_key_or_name_suggests_the_nearest(changes, message):
    with pytest.raises(ValueError, match=message):
        load_method(Experiment.from_job("seg_fets").changed(changes))


@pytest.mark.parametrize(
    ("job", "changes", "message"),
    [
        ("seg_fet", {}, "did you mean 'seg_fets'"),
        ("seg_fets", {"preset": "papr"}, "did you mean 'paper'"),
    ],
)
def test_an_unknown_job_or_preset_suggests_the_nearest(job, changes, message):
    with pytest.raises(ValueError, match=message):
        Experiment.from_job(job, **changes)


def test_another_method_starts_its_section_anew():
    changed = Experiment.from_job("seg_fets").changed({"method": {"name": "fedprox", "mu": 0.5}})
    assert changed.method == {"name": "fedprox", "mu": 0.5}
    same = Experiment.from_job("seg_fets").changed({"train": {"lr": 0.5}})
    assert same.method == Experiment.from_job("seg_fets").method
    assert same.train.lr == 0.5
