from collections import Counter

import pytest

from omnifm.data.partition import (
    MIN_PATIENTS,
    by_count,
    by_modality,
    deal,
    dirichlet,
    seeded_order,
    split_by_patient,
    split_sites,
    three_way,
)

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


NUM = len(PATIENTS)
KINDS = [i // 3 % 4 for i in range(NUM)]  # one label per patient


def dealt(partition, num_sites=4, gamma=1.0, seed=0):
    homes = ["b" if i < 9 else "a" for i in range(NUM)]
    modalities = ["MR" if i % 2 else "CT" for i in range(NUM)]
    return deal(
        partition,
        PATIENTS,
        homes=homes,
        modalities=modalities,
        labels=KINDS,
        num_sites=num_sites,
        gamma=gamma,
        seed=seed,
    )


class TestDeal:
    @pytest.mark.parametrize("partition", ["natural", "modality", "dirichlet", "count"])
    def test_deals_every_item_once(self, partition):
        assert sorted(sum(dealt(partition), ())) == list(range(NUM))

    def test_natural_keeps_the_homes_in_their_order(self):
        assert [site[:1] for site in dealt("natural")] == [(0,), (9,)]

    def test_modality_is_in_alphabetical_order(self):
        assert [site[:2] for site in dealt("modality")] == [(0, 2), (1, 3)]

    @pytest.mark.parametrize("partition", ["dirichlet", "count"])
    def test_no_patient_is_at_two_sites_and_each_site_has_some(self, partition):
        owners = [{PATIENTS[i] for i in site} for site in dealt(partition)]
        assert sum(map(len, owners)) == 20
        assert min(map(len, owners)) >= MIN_PATIENTS

    def test_count_makes_sites_alike(self):
        assert [len(site) for site in dealt("count")] == [15] * 4

    def test_gamma_skews_labels(self):
        def most(gamma):
            counts = [Counter(KINDS[i] for i in site) for site in dealt("dirichlet", gamma=gamma)]
            return sum(max(count.values()) for count in counts) / NUM

        assert most(0.3) > most(100.0)

    def test_a_patients_label_is_the_most_frequent_one(self):
        """Eight patients with labels x x y or y y x: dealt as eight items with labels x and y are."""
        patients = [f"p{i // 3}" for i in range(24)]
        labels = [label for i in range(8) for label in ("xxy" if i % 2 else "yyx")]
        none = [""] * 24
        sites = deal("dirichlet", patients, homes=none, modalities=none, labels=labels, num_sites=2, gamma=5.0, seed=2)
        wanted = dirichlet(["y", "x"] * 4, 2, 5.0, seed=2)
        assert min(map(len, wanted)) >= MIN_PATIENTS  # else another draw is taken
        assert [sorted({int(patients[i][1:]) for i in site}) for site in sites] == [list(site) for site in wanted]

    def test_seed_repeats_and_matters(self):
        assert dealt("dirichlet", seed=1) == dealt("dirichlet", seed=1) != dealt("dirichlet", seed=2)

    def test_rejects_partitions(self):
        with pytest.raises(ValueError, match=r"partition must be one of natural, .*; got 'hospital'"):
            dealt("hospital")

    @pytest.mark.parametrize("partition", ["dirichlet", "count"])
    def test_rejects_more_sites_than_patients_allow(self, partition):
        with pytest.raises(ValueError, match="sites must have 3 patients each; got 20 for 7 sites"):
            dealt(partition, num_sites=7)

    def test_rejects_a_gamma_that_starves_sites(self):
        with pytest.raises(ValueError, match="gamma must leave 3 patients to each of 6 sites; 1e-06 never did"):
            dealt("dirichlet", num_sites=6, gamma=1e-6)


class TestSplitSites:
    def test_without_official_splits_every_site_is_split_by_patient(self):
        sites = dealt("count", num_sites=2)
        splits, num_cut = split_sites(sites, PATIENTS, [""] * NUM, seed=1)
        assert num_cut == 0
        for site, split in zip(sites, splits, strict=True):
            assert [len(split[name]) for name in ("training", "validation", "test")] == [18, 6, 6]
            assert sorted(sum(split.values(), ())) == list(site)

    def test_official_splits_that_respect_patients_are_kept(self):
        official = ["test" if patient == "p3" else "training" for patient in PATIENTS]
        splits, num_cut = split_sites([range(NUM)], PATIENTS, official)
        assert num_cut == 0
        assert splits[0]["test"] == (9, 10, 11)
        assert splits[0]["validation"] == ()

    def test_official_splits_through_patients_are_replaced(self):
        official = ["test" if i in (0, 4) else "training" for i in range(NUM)]
        splits, num_cut = split_sites([range(NUM)], PATIENTS, official)
        assert num_cut == 2
        owners = [{PATIENTS[i] for i in part} for part in splits[0].values()]
        assert [len(patients) for patients in owners] == [12, 4, 4]
        assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])

    def test_whom_several_sites_know_trains_at_all_of_them(self):
        patients = ["a", "b", "c", "d", "e", "a", "f", "g", "h", "i"]
        splits, _ = split_sites([range(5), range(5, 10)], patients, [""] * 10)
        assert 0 in splits[0]["training"] and 5 in splits[1]["training"]
        for split, site in zip(splits, (range(5), range(5, 10)), strict=True):
            assert sorted(sum(split.values(), ())) == list(site)
            assert [len(split[name]) for name in ("training", "validation", "test")] == [3, 1, 1]

    def test_the_only_patient_of_a_sites_own_is_its_test(self):
        splits, _ = split_sites([(0, 1), (2,)], ["a", "b", "a"], [""] * 3)
        assert splits[0] == {"training": (0,), "validation": (), "test": (1,)}
        assert splits[1] == {"training": (2,), "validation": (), "test": ()}
