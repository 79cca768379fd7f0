"""Routed averaging: closed forms, and the edges where it is the plain average or none at all."""

import math

import numpy as np
import pytest
import torch

from omnifm.method import weighted_mean
from omnifm.parts.routing import contradict, is_profile, likeness, mixtures, profile
from omnifm.update import Update


def reply(site, value, num_samples):
    shared = {"w": torch.full((2,), float(value)), "other": torch.ones(1)}
    return Update(site, "train", 1, "", shared=shared, num_samples=num_samples)


REPLIES = [reply("a", 1, 10), reply("b", 2, 30), reply("c", 7, 20)]


def test_a_profile_is_the_mean_and_the_mean_squared_distance_from_it():
    tokens = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    mean = tokens.mean(0)
    expected = [*mean, ((tokens - mean) ** 2).sum(1).mean()]
    torch.testing.assert_close(profile(torch.from_numpy(tokens)), torch.tensor(expected))


class TestLikeness:
    def test_golden(self):
        """Means 0 and (3, 4), spreads 2 and 3: squared distance 25 in units of reach 5 times 5."""
        found = likeness(torch.tensor([[0.0, 0.0, 2.0], [3.0, 4.0, 3.0]]), 5.0)
        np.testing.assert_allclose(found.numpy(), [[1, math.exp(-1)], [math.exp(-1), 1]])

    def test_equal_sites_without_spread_are_alike_and_others_are_not(self):
        found = likeness(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.0]]), 1.0)
        np.testing.assert_allclose(found.numpy(), [[1, 1, 0], [1, 1, 0], [0, 0, 1]])


class TestMixtures:
    def test_golden(self):
        profiles = {"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([2.0, 2.0])}
        e = math.exp(-1)  # distance 4, spreads 4; "c" has no profile and counts fully
        found = mixtures(REPLIES, profiles, ["w"], 1.0, {}, {})
        assert {site: list(own) for site, own in found.items()} == {"a": ["w"], "b": ["w"]}
        a = (10 * 1 + e * 30 * 2 + 20 * 7) / (10 + e * 30 + 20)
        b = (e * 10 * 1 + 30 * 2 + 20 * 7) / (e * 10 + 30 + 20)
        torch.testing.assert_close(found["a"]["w"], torch.full((2,), a))
        torch.testing.assert_close(found["b"]["w"], torch.full((2,), b))

    def test_a_huge_reach_is_the_plain_average(self):
        profiles = {site: torch.rand(5) for site in "abc"}
        plain = weighted_mean(REPLIES[0].shared, REPLIES)
        for own in mixtures(REPLIES, profiles, ["w"], 1e12, {}, {}).values():
            torch.testing.assert_close(own["w"], plain["w"])

    def test_a_tiny_reach_keeps_every_site_to_itself(self):
        profiles = {site: torch.tensor([float(i), 0.5]) for i, site in enumerate("abc")}
        found = mixtures(REPLIES, profiles, ["w"], 1e-6, {}, {})
        assert {site: own["w"].tolist() for site, own in found.items()} == {"a": [1, 1], "b": [2, 2], "c": [7, 7]}

    def test_an_absent_site_receives_from_those_like_it(self):
        profiles = {"a": torch.tensor([0.0, 1e-9]), "b": torch.tensor([1.0, 1e-9]), "late": torch.tensor([1.0, 1e-9])}
        assert mixtures(REPLIES[:2], profiles, ["w"], 1.0, {}, {})["late"]["w"].tolist() == [2, 2]

    def test_a_site_that_none_is_like_gets_the_plain_average_of_the_server(self):
        assert mixtures(
            REPLIES[:1], {"far": torch.tensor([9.0, 0.0]), "a": torch.tensor([0.0, 0.0])}, ["w"], 1.0, {}, {}
        ).keys() == {"a"}

    def test_a_site_keeps_what_it_has_where_those_like_it_weigh_less_than_it_should(self):
        """Distance 1, spreads 1: c is e^-1 like a and b, whose 10 and 30 cases are worth 14.7 of its own."""
        profiles = {"a": torch.tensor([0.0, 0.5]), "b": torch.tensor([0.0, 0.5]), "c": torch.tensor([1.0, 0.5])}
        for least, expected in ((14, {"a", "b", "c"}), (15, {"a", "b"})):
            assert mixtures(REPLIES[:2], profiles, ["w"], 1.0, {}, {"a": 10, "b": 30, "c": least}).keys() == expected

    def test_a_site_without_profile_averages_those_it_does_not_contradict(self):
        labels = {"a": {"1": "vessel"}, "b": {"1": "lesion"}, "c": {"1": "lesion"}}
        found = mixtures(REPLIES, {}, ["w"], 1.0, labels, {})
        assert found["a"]["w"].tolist() == [1, 1]
        torch.testing.assert_close(found["c"]["w"], torch.full((2,), (30 * 2 + 20 * 7) / 50))

    def test_sites_whose_labels_contradict_average_nothing(self):
        """All are equally like, and "c" has no profile; "a" alone calls label 1 a vessel."""
        profiles = dict.fromkeys("ab", torch.tensor([0.0, 1.0]))
        labels = {"a": {"0": "background", "1": "vessel"}, "b": {"1": "Lesion"}, "c": {"1": "lesion"}}
        found = mixtures(REPLIES, profiles, ["w"], 1.0, labels, {})
        assert found["a"]["w"].tolist() == [1, 1]
        torch.testing.assert_close(found["b"]["w"], torch.full((2,), (30 * 2 + 20 * 7) / 50))

    @pytest.mark.parametrize(
        ("one", "other", "expected"),
        [
            ({"1": "tumour"}, {"1": "vessel"}, True),
            ({"1": "tumour"}, {"1": "Tumour", "2": "vessel"}, False),
            ({"1": "tumour"}, {"2": "vessel"}, False),
            ({}, {"1": "vessel"}, False),
        ],
    )
    def test_contradict(self, one, other, expected):
        assert contradict(one, other) == contradict(other, one) == expected

    def test_nobody_with_a_profile(self):
        assert mixtures(REPLIES, {}, ["w"], 1.0, {}, {}) == {}


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(4),
        torch.zeros(5, dtype=torch.float64),
        torch.full((5,), float("nan")),
        torch.tensor([0.0, 0, 0, 0, -1]),
        torch.tensor([0.0, 0, 0, 0, 2]),
        torch.tensor([1.0, 0, 0, 0, 0.5]),
    ],
)
def test_what_cannot_be_a_profile(values):
    assert not is_profile(values, 4)
    assert is_profile(profile(torch.nn.functional.normalize(torch.randn(6, 4), dim=1)), 4)
