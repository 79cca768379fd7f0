"""What is too large a change and what too large a size, by hand."""

import math

import pytest
import torch

from omnifm.federation.limits import capped, change, outliers

EQUAL = {"a": 1, "b": 1, "c": 1}


class TestChange:
    def test_golden(self):
        """3-4-5, and the tensor that changed by 4."""
        sent = {"v": torch.zeros(2), "w": torch.ones(1)}
        assert change(sent, {"v": torch.tensor([3.0, 0.0]), "w": torch.tensor([5.0])}) == (5.0, "w")

    def test_does_not_overflow(self):
        norm, _ = change({"w": torch.zeros(4)}, {"w": torch.full((4,), 3e38)})
        assert norm == pytest.approx(6e38)

    def test_of_nothing_is_nothing(self):
        assert change({}, {}) == (0.0, "")


class TestOutliers:
    def test_ten_times_the_median_is_the_most(self):
        assert outliers({"a": 1.0, "b": 2.0, "c": 20.0}, EQUAL, [], 10.0) == {}
        assert outliers({"a": 1.0, "b": 2.0, "c": 20.1}, EQUAL, [], 10.0) == {"c": 20.0}
        assert outliers({"a": 1.0, "b": 2.0, "c": math.inf}, EQUAL, [], 10.0) == {"c": 20.0}

    def test_a_larger_site_takes_more_steps(self):
        assert outliers({"a": 1.0, "b": 1.0, "c": 25.0}, {"a": 10, "b": 10, "c": 30}, [], 10.0) == {}
        assert outliers({"a": 1.0, "b": 1.0, "c": 31.0}, {"a": 10, "b": 10, "c": 30}, [], 10.0) == {"c": 30.0}

    def test_of_two_replies_one_must_stick_out_from_the_other_and_from_the_rounds_before(self):
        assert outliers({"a": 1.0, "b": 50.0}, EQUAL, [1.0, 2.0, 1.5], 10.0) == {"b": 15.0}
        assert outliers({"a": 20.0, "b": 50.0}, EQUAL, [1.0], 10.0) == {}  # all grow together

    def test_without_a_reference_nobody_is_refused(self):
        assert outliers({"a": 1.0, "b": 1e9}, EQUAL, [], 10.0) == {}
        assert outliers({"a": 0.0, "b": 0.0, "c": 1.0}, EQUAL, [], 10.0) == {}
        assert outliers({}, {}, [1.0], 10.0) == {}


class TestCapped:
    def test_golden(self):
        assert capped({"a": 10, "b": 20, "c": 1000}, 3.0) == {"a": 10, "b": 20, "c": 60}

    def test_of_two_nobody_can_say_which_is_wrong(self):
        assert capped({"a": 1, "b": 1000}, 3.0) == {"a": 1, "b": 1000}

    def test_sites_without_cases_do_not_lower_the_median(self):
        assert capped({"a": 0, "b": 0, "c": 0, "d": 9}, 3.0) == {"a": 0, "b": 0, "c": 0, "d": 9}

    def test_equal_sites_keep_what_they_have(self):
        assert capped(EQUAL, 1.0) == EQUAL
