from collections import Counter

import pytest

from omnifm.data.partition import (
    MIN_PATIENTS,
    SHARES,
    by_count,
    by_modality,
    deal,
    dirichlet,
    fill_empty,
    seeded_order,
    split_of,
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


class TestSplitOf:
    def test_a_split_follows_from_seed_and_name_alone(self):
        """Golden: the values must never change, or every hospital's patients move."""
        assert [split_of(str(i)) for i in range(6)] == ["validation", "test", *["training"] * 3, "validation"]
        assert [split_of(str(i), 1) for i in range(3)] == ["validation", "test", "training"]

    def test_shares_are_met_by_many(self):
        counts = Counter(split_of(str(i)) for i in range(10_000))
        assert {name: round(count / 10_000, 1) for name, count in counts.items()} == SHARES

    def test_two_splits_keep_their_ratio(self):
        counts = Counter(split_of(str(i), 0, ("training", "validation")) for i in range(10_000))
        assert counts["validation"] == pytest.approx(2500, abs=150)


class TestFillEmpty:
    def test_only_who_may_be_moved_is_moved(self):
        known = {"a": "training", "b": "training", "c": "training", "d": "training"}
        assert fill_empty(known, []) == known
        assert fill_empty(known, ["c"]) == known | {"c": "test"}
        assert Counter(fill_empty(known, ["c", "d"]).values()) == {"training": 2, "test": 1, "validation": 1}

    @pytest.mark.parametrize("split", SHARES)
    @pytest.mark.parametrize("number", range(1, 6))
    def test_training_then_test_then_validation(self, split, number):
        filled = fill_empty({str(i): split for i in range(number)}, [str(i) for i in range(number)])
        assert set(filled.values()) == set(("training", "test", "validation")[:number])

    def test_a_full_site_stays(self):
        splits = {"a": "test", "b": "validation", "c": "training"}
        assert fill_empty(splits, list(splits)) == splits


class TestThreeWay:
    def test_no_patient_in_two_splits(self):
        parts = three_way(PATIENTS, seed=3)
        assert sorted(sum(parts.values(), ())) == list(range(60))
        one, two, three = ({PATIENTS[i] for i in part} for part in parts.values())
        assert not (one & two or one & three or two & three)

    @pytest.mark.parametrize("number", range(3, 12))
    def test_no_split_is_empty_from_three_patients_on(self, number):
        assert all(three_way([str(i) for i in range(number)], seed=number).values())

    @pytest.mark.parametrize(("number", "sizes"), [(0, [0, 0, 0]), (1, [1, 0, 0]), (2, [1, 0, 1])])
    def test_few_patients_train_then_test(self, number, sizes):
        assert [len(part) for part in three_way([str(i) for i in range(number)]).values()] == sizes

    @pytest.mark.parametrize("seed", range(5))
    def test_known_patients_keep_their_split_however_the_site_grows(self, seed):
        known: dict[str, str] = {}
        for number in [*range(1, 20), 3, 30]:  # patients come, go and come back, in another order
            patients = [str(i) for i in range(number)][:: -1 if number % 2 else 1]
            splits = {patients[i]: name for name, part in three_way(patients, seed, known).items() for i in part}
            assert all(splits[patient] == split for patient, split in known.items() if patient in splits)
            known |= splits


class TestByCount:
    def test_by_count_gives_unequal_sites(self):
        assert [len(site) for site in by_count(PATIENTS, (45.0, 27.0, 18.0, 10.0))] == [27, 15, 12, 6]

    @pytest.mark.parametrize("shares", [(), (1.0, 0.0), (1.0, -1.0)])
    def test_rejects_shares(self, shares):
        with pytest.raises(ValueError, match="shares must be positive numbers; got"):
            by_count(PATIENTS, shares)


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
            assert all(split.values())
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
        assert all(owners)
        assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])

    def test_whom_several_sites_have_is_in_one_split_at_all_of_them(self):
        patients = ["a", "b", "c", "d", "e", "a", "f", "g", "h", "i"]
        for seed in range(10):
            splits, _ = split_sites([range(5), range(5, 10)], patients, [""] * 10, seed)
            first, second = ({i: name for name, part in split.items() for i in part} for split in splits)
            assert first[0] == second[5]
            assert all(all(split.values()) for split in splits)

    def test_whom_several_sites_have_trains_where_a_site_has_nobody_else(self):
        for seed in range(10):
            splits, _ = split_sites([(0, 1), (2,)], ["a", "b", "a"], [""] * 3, seed)
            assert splits[0] == {"training": (0,), "validation": (), "test": (1,)}
            assert splits[1] == {"training": (2,), "validation": (), "test": ()}

    def test_known_patients_keep_their_split(self):
        known = dict.fromkeys(PATIENTS[:9], "test")
        splits, _ = split_sites([range(NUM)], PATIENTS, [""] * NUM, 0, known)
        assert set(range(9)) <= set(splits[0]["test"])
