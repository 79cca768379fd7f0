from collections import Counter

import pytest

from omnifm.data.partition import by_count, by_modality, dirichlet, seeded_order, split_by_patient, three_way

PATIENTS = [f"p{i // 3}" for i in range(60)]  # 20 patients of 3 items


class TestSeededOrder:
    def test_golden(self):
        """sha256("0:a") = 9df3..., sha256("0:b") = e021..., sha256("0:c") = be08...: never another order."""
        assert seeded_order(["a", "b", "c", "a"], seed=0) == ["a", "c", "b"]

    def test_a_newcomer_leaves_the_others_order_alone(self):
        before, after = seeded_order(PATIENTS, 1), seeded_order([*PATIENTS, "new"], 1)
        assert [name for name in after if name != "new"] == before

    def test_seed_matters(self):
        assert seeded_order(PATIENTS, 1) != seeded_order(PATIENTS, 2)


class TestSplitByPatient:
    def test_sizes_and_no_patient_in_two_splits(self):
        parts = split_by_patient(PATIENTS, seed=3)
        assert [len(part) for part in parts] == [36, 12, 12]
        assert sorted(sum(parts, ())) == list(range(60))
        owners = [{PATIENTS[i] for i in part} for part in parts]
        assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])

    @pytest.mark.parametrize("number", range(3, 12))
    def test_no_split_is_empty_from_three_patients_on(self, number):
        assert all(split_by_patient([str(i) for i in range(number)], seed=number))

    @pytest.mark.parametrize(("number", "sizes"), [(0, [0, 0, 0]), (1, [1, 0, 0]), (2, [1, 1, 0])])
    def test_few_patients_serve_the_first_splits(self, number, sizes):
        assert [len(part) for part in split_by_patient([str(i) for i in range(number)])] == sizes

    @pytest.mark.parametrize("shares", [(), (1.0, 0.0), (1.0, -1.0)])
    def test_rejects_shares(self, shares):
        with pytest.raises(ValueError, match="shares must be positive numbers; got"):
            split_by_patient(PATIENTS, shares)

    def test_three_way_prefers_a_test_to_a_validation(self):
        assert {name: len(part) for name, part in three_way(["a", "b"]).items()} == {
            "training": 1,
            "validation": 0,
            "test": 1,
        }

    def test_by_count_gives_unequal_sites(self):
        assert [len(site) for site in by_count(PATIENTS, (45.0, 27.0, 18.0, 10.0))] == [27, 15, 12, 6]


LABELS = [i % 4 for i in range(400)]


class TestDirichlet:
    def test_deals_every_item_once(self):
        sites = dirichlet(LABELS, 5, 0.5, seed=1)
        assert len(sites) == 5
        assert sorted(sum(sites, ())) == list(range(400))

    def test_small_alpha_skews_and_large_alpha_does_not(self):
        def largest_share(alpha):
            counts = [Counter(LABELS[i] for i in site) for site in dirichlet(LABELS, 4, alpha, seed=1)]
            return sum(max(count.values()) for count in counts if count) / 400

        assert largest_share(0.1) > 0.6
        assert largest_share(1000.0) < 0.3

    def test_seed_repeats(self):
        assert dirichlet(LABELS, 3, 0.5, 7) == dirichlet(LABELS, 3, 0.5, 7)
        assert dirichlet(LABELS, 3, 0.5, 7) != dirichlet(LABELS, 3, 0.5, 8)

    @pytest.mark.parametrize(("sites", "alpha"), [(0, 1.0), (2, 0.0), (2, -1.0), (2, float("nan"))])
    def test_rejects(self, sites, alpha):
        with pytest.raises(ValueError, match="num_sites must be >= 1 and alpha > 0; got"):
            dirichlet(LABELS, sites, alpha)


def test_by_modality_is_one_site_each():
    assert by_modality(["MR", "CT", "MR"]) == {"CT": (1,), "MR": (0, 2)}
