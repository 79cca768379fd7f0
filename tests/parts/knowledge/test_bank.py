"""The knowledge bank: inserts, projection, use, removal, shortlists, state."""

import json
import math

import numpy as np
import pytest
import torch

from omnifm.parts.knowledge import KnowledgeBank
from tests.parts.knowledge.vectors import bank_of, vectors


def ids(bank: KnowledgeBank) -> list[int]:
    return [entry.id for entry in bank.entries]


def frequencies(bank: KnowledgeBank) -> list[float]:
    return [entry.frequency(bank.decay, 9.0) for entry in bank.entries]


class TestInsertAndProject:
    def test_ids_are_unique_and_increasing(self):
        bank = KnowledgeBank(4)
        assert bank.insert(vectors(2), "a", "ct", 0) == [0, 1]
        assert bank.insert(vectors(1), "b", "mr", 0) == [2]
        assert [(e.site, e.modality) for e in bank.entries] == [("a", "ct"), ("a", "ct"), ("b", "mr")]

    def test_ids_are_not_reused_after_eviction(self):
        bank = bank_of("a", "a", ring=1)
        bank.step(0, {})
        assert [bank.insert(vectors(1), "a", "", 1) for _ in range(2)] == [[2], [3]]

    def test_projection_golden(self):
        """(3, 4) has norm 5: on the ball of radius 2 it is (1.2, 1.6); (0.6, 0.8) stays inside."""
        bank = KnowledgeBank(2, radius=2.0)
        bank.insert(torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, 0.0]]), "a", "", 0)
        bank.project()
        torch.testing.assert_close(bank.vectors, torch.tensor([[1.2, 1.6], [0.6, 0.8], [0.0, 0.0]]))

    def test_bank_does_not_share_memory_with_the_sender(self):
        sent = vectors(1)
        bank = KnowledgeBank(4)
        bank.insert(sent, "a", "", 0)
        sent.zero_()
        assert bank.vectors.abs().sum() > 0

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_rejects_non_finite(self, bad: float):
        with pytest.raises(ValueError, match="vectors must be finite; got NaN or infinity from site 'a'"):
            KnowledgeBank(2).insert(torch.tensor([[bad, 0.0]]), "a", "", 0)

    def test_rejects_another_width(self):
        with pytest.raises(ValueError, match=r"vectors must be \(m, 4\); got shape \(1, 3\)"):
            KnowledgeBank(4).insert(vectors(1, d=3), "a", "", 0)


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"max_size": 0}, "dim, max_size, ring and ttl must be at least 1"),
            ({"ring": 0}, "dim, max_size, ring and ttl must be at least 1"),
            ({"ttl": 0}, "dim, max_size, ring and ttl must be at least 1"),
            ({"radius": 0.0}, "radius must be positive and finite; got 0.0"),
            ({"decay": 1.0}, r"decay must be in \[0, 1\); got 1.0"),
            ({"grace": -1}, "grace and prune must be at least 0"),
            ({"prune": math.inf}, "grace and prune must be at least 0 and finite"),
        ],
    )
    def test_rejects(self, settings: dict[str, object], message: str):
        with pytest.raises(ValueError, match=message):
            KnowledgeBank(4, **settings)

    def test_rejects_dim_zero(self):
        with pytest.raises(ValueError, match="dim, max_size, ring and ttl"):
            KnowledgeBank(0)


class TestFrequency:
    def test_golden(self):
        """Shares 1, 0, 0.5 with decay 0.9: raw EMA .1, .09, .131; over 1 - .9^3 = .271 it is .4834."""
        bank = bank_of("a", "b")
        for share in (1.0, 0.0, 0.5):
            bank.step(0, {"b": {0: share}}, 1)
        assert frequencies(bank)[0] == pytest.approx(0.131 / 0.271)
        assert bank.entries[0].age == 3

    def test_sites_count_equally(self):
        bank = bank_of("a", "b", "c")
        bank.step(0, {"b": {0: 1.0}, "c": {0: 0.5}}, 1)
        assert frequencies(bank)[0] == pytest.approx(0.75)

    def test_not_being_asked_changes_nothing(self):
        """An absent site, or a shortlist without the entry, leaves its frequency and its age alone."""
        bank = bank_of("a", "b")
        bank.step(0, {"b": {0: 0.5}}, 1)
        before = frequencies(bank)
        for round in range(1, 6):
            bank.step(round, {}, 1)
        assert frequencies(bank) == before
        assert bank.entries[0].age == 1

    def test_no_vote_for_oneself(self):
        bank = bank_of("a", "b")
        bank.step(0, {"a": {0: 1.0, 1: 0.25}}, 1)
        assert [entry.age for entry in bank.entries] == [0, 1]

    def test_hits_of_evicted_entries_are_passed_over(self):
        bank = bank_of("a", "b")
        bank.step(0, {"a": {77: 1.0}}, 1)
        assert [entry.age for entry in bank.entries] == [0, 0]

    @pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
    def test_rejects_shares_outside_range(self, share: float):
        with pytest.raises(ValueError, match=r"hits must be shares in \[0, 1\]; got"):
            bank_of("a", "b").step(0, {"b": {0: share}}, 1)

    def test_rejects_no_retrieval(self):
        with pytest.raises(ValueError, match="num_retrieved must be at least 1; got 0"):
            bank_of("a").step(0, {}, 0)


class TestPrune:
    def test_unused_entry_leaves_after_grace(self):
        """M = 4, k = 2: the bar is 0.25 * 2 / 4 = 0.125.  Entry 0 gets 0.12, entry 1 gets 0.13."""
        bank = bank_of("a", "a", "a", "b")
        hits = {"b": {0: 0.12, 1: 0.13, 2: 0.9}}
        assert [bank.step(round, hits, 2) for round in range(3)] == [[], [], [0]]
        assert ids(bank) == [1, 2, 3]

    def test_entries_that_nobody_was_offered_stay(self):
        bank = bank_of("a", "a", "b")
        for round in range(8):
            assert bank.step(round, {}, 2) == []

    def test_zero_never_prunes(self):
        bank = bank_of("a", "a", "b", prune=0.0)
        for round in range(8):
            assert bank.step(round, {"b": {0: 0.0}}, 2) == []

    def test_grace_zero_judges_at_once_but_never_unheard(self):
        bank = bank_of("a", "a", "b", "b", grace=0, prune=1.5)
        assert bank.step(0, {"b": {0: 0.0}}, 2) == [0]

    def test_last_entry_of_a_site_stays(self):
        bank = bank_of("a", "b")
        for round in range(8):
            assert bank.step(round, {"b": {0: 0.0}, "a": {1: 0.0}}, 2) == []

    def test_last_entry_of_a_modality_stays(self):
        """Site a has two entries, but its only PET one is the federation's only one."""
        bank = KnowledgeBank(4)
        bank.insert(vectors(1), "a", "pet", 0)
        bank.insert(vectors(1, seed=1), "a", "ct", 0)
        bank.insert(vectors(1, seed=2), "b", "ct", 0)
        for round in range(5):
            bank.step(round, {"b": {0: 0.0, 1: 0.0}}, 2)
        assert [(e.site, e.modality) for e in bank.entries] == [("a", "pet"), ("b", "ct")]

    def test_unnamed_modality_protects_nothing(self):
        """The empty name is no modality: its last entry may go while its site keeps another."""
        bank = KnowledgeBank(4, grace=0)
        bank.insert(vectors(1), "a", "", 0)
        bank.insert(vectors(1, seed=1), "a", "ct", 0)
        bank.insert(vectors(1, seed=2), "b", "ct", 0)
        assert bank.step(0, {"b": {0: 0.0}}, 2) == [0]


class TestRingTtlCap:
    def test_ring_drops_the_oldest_of_a_site(self):
        bank = bank_of("a", "b", "a", "a", "a", "a", "b")
        assert bank.step(0, {}) == [0]
        bank = bank_of("a", "b", "a", "a", "a", "a", "b", ring=2)
        bank.step(0, {})
        assert ids(bank) == [1, 4, 5, 6]

    def test_ring_passes_over_the_last_of_a_modality(self):
        bank = KnowledgeBank(4, ring=2)
        for seed, modality in enumerate(["pet", "ct", "ct", "ct"]):
            bank.insert(vectors(1, seed=seed), "a", modality, 0)
        bank.step(0, {})
        assert ids(bank) == [0, 3]

    def test_old_entries_expire(self):
        """ttl 10: an entry of round 0 stays to round 10 and is gone after round 11, unless the last."""
        bank = KnowledgeBank(4)
        bank.insert(vectors(1), "a", "ct", 0)
        bank.insert(vectors(1, seed=1), "b", "mr", 0)
        bank.insert(vectors(1, seed=2), "a", "ct", 5)
        assert bank.step(10, {}) == []
        assert bank.step(11, {}) == [0]
        assert bank.step(99, {}) == []  # 1 and 2 are the last of their sites

    def test_cap_drops_the_least_used_first(self):
        bank = bank_of("a", "a", "a", "b", max_size=2, prune=0.0)
        bank.step(0, {"b": {0: 0.9, 1: 0.1, 2: 0.5}}, 2)
        assert ids(bank) == [0, 3]

    def test_cap_drops_the_oldest_of_equals(self):
        bank = bank_of("a", "a", "a", "b", max_size=3)
        bank.step(0, {})
        assert ids(bank) == [1, 2, 3]

    def test_cap_treats_newcomers_as_average(self):
        """The even share is 2 / 4 = 0.5: an entry used less leaves before one nobody was asked about."""
        bank = bank_of("a", "a", "b", max_size=3, prune=0.0)
        bank.insert(vectors(1, seed=9), "a", "", 1)
        bank.step(1, {"b": {0: 0.9, 1: 0.4}}, 2)
        assert ids(bank) == [0, 2, 3]

    def test_more_sites_than_the_cap_all_stay(self):
        bank = bank_of(*"abcdef", max_size=3)
        assert bank.step(50, {}) == []

    def test_projects_even_without_replies(self):
        bank = KnowledgeBank(2)
        bank.insert(torch.tensor([[3.0, 4.0]]), "a", "", 0)
        bank.step(0, {})
        torch.testing.assert_close(bank.vectors, torch.tensor([[0.6, 0.8]]))

    def test_rows_follow_their_entries(self):
        bank = bank_of("a", "b", "a", "a", "b", ring=1)
        kept = bank.vectors.clone()
        bank.step(0, {})
        assert ids(bank) == [3, 4]
        assert torch.equal(bank.vectors, kept[[3, 4]])


class TestShortlist:
    def test_golden(self):
        """Mean (0.5, 0.5, 0); centred (.5, -.5, 0), (-.5, .5, 0), (0, 0, 1), (0, 0, -1); the query minus it
        is (.5, -.5, .5): cosines .816, -.816, .577, -.577."""
        bank = KnowledgeBank(3)
        rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 1.0], [0.5, 0.5, -1.0]])
        bank.insert(rows, "a", "", 0)
        chosen, found = bank.shortlist(torch.tensor([[1.0, 0.0, 0.5]]), "b", 3)
        assert chosen == [0, 2, 3]
        assert torch.equal(found, rows[[0, 2, 3]])

    @pytest.mark.parametrize(("center", "order"), [(True, [1, 0, 2]), (False, [0, 1, 2])])
    def test_centring_changes_the_order(self, center: bool, order: list[int]):
        """The query is at 12 degrees, rows 0 and 1 at 6 and 24: row 0 is nearer.  Seen from the mean (.967, 0)
        the query points to 95 degrees, the rows to 72 and 99: row 1 is nearer."""
        bank = KnowledgeBank(2, center=center)
        bank.insert(torch.tensor([[1.0, 0.1], [0.9, 0.4], [1.0, -0.5]]), "a", "", 0)
        assert bank.shortlist(torch.tensor([[0.95, 0.2]]), "b")[0] == order

    def test_score_is_the_best_over_queries(self):
        bank = KnowledgeBank(2, center=False)
        bank.insert(torch.tensor([[0.8, 0.6], [1.0, 0.0], [0.0, 1.0]]), "a", "", 0)
        assert bank.shortlist(torch.eye(2), "b", 2)[0] == [1, 2]
        assert bank.shortlist(torch.eye(2).mean(dim=0, keepdim=True), "b", 1)[0] == [0]

    def test_never_returns_own_entries(self):
        bank = bank_of("a", "b", "a", "c")
        assert set(bank.shortlist(vectors(1), "a")[0]) == {1, 3}
        assert set(bank_of("a", "b", exclude_self=False).shortlist(vectors(1), "a")[0]) == {0, 1}

    def test_ties_go_to_the_older_entry(self):
        bank = KnowledgeBank(4)
        for site in "abc":
            bank.insert(vectors(1), site, "", 0)
        bank.insert(vectors(1, seed=1), "d", "", 0)
        assert bank.shortlist(vectors(1), "z", 2)[0] == [0, 1]

    @pytest.mark.parametrize(("sites", "site"), [((), "a"), (("a",), "a"), (("a", "a"), "a")])
    def test_empty(self, sites: tuple[str, ...], site: str):
        chosen, found = bank_of(*sites).shortlist(vectors(1), site)
        assert chosen == []
        assert found.shape == (0, 4)

    def test_without_queries_is_empty(self):
        assert bank_of("a", "b").shortlist(torch.zeros(0, 4), "a")[0] == []

    def test_a_bank_of_one_is_its_own_mean_and_still_found(self):
        bank = bank_of("a")
        assert torch.equal(bank.mean, bank.vectors[0])
        chosen, found = bank.shortlist(vectors(1), "b")
        assert chosen == [0]
        assert torch.isfinite(found).all()

    def test_empty_bank_has_zero_mean(self):
        assert torch.equal(KnowledgeBank(4).mean, torch.zeros(4))

    def test_rejects_bad_queries(self):
        with pytest.raises(ValueError, match=r"queries must be finite and \(q, 4\); got shape \(1, 3\)"):
            bank_of("a").shortlist(vectors(1, d=3), "b")
        with pytest.raises(ValueError, match="queries must be finite"):
            bank_of("a").shortlist(torch.full((1, 4), float("nan")), "b")
        with pytest.raises(ValueError, match="size must be at least 0; got -1"):
            bank_of("a").shortlist(vectors(1), "b", -1)


class TestMonitors:
    def test_golden(self):
        """Orthonormal rows: equal singular values, so the effective rank is 3 and every cosine 0."""
        bank = KnowledgeBank(4)
        bank.insert(torch.eye(4)[:2], "b", "mr", 0)
        bank.insert(torch.eye(4)[2:3], "a", "ct", 0)
        monitors = bank.monitors()
        assert monitors["effective_rank"] == pytest.approx(3)
        assert monitors["mean_cosine"] == pytest.approx(0)
        assert (monitors["size"], monitors["collapsed"]) == (3, False)
        assert monitors["by_site"] == {"a": 1, "b": 2}
        assert monitors["by_modality"] == {"ct": 1, "mr": 2}

    def test_golden_unequal(self):
        """numpy: exp of the entropy of s / sum(s); mean of the off-diagonal cosines."""
        bank = KnowledgeBank(8)
        bank.insert(0.5 * vectors(5, d=8), "a", "", 0)
        x = bank.vectors.numpy().astype(np.float64)
        share = np.linalg.svd(x, compute_uv=False)
        share /= share.sum()
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        cosines = (unit @ unit.T)[~np.eye(5, dtype=bool)]
        assert bank.monitors()["effective_rank"] == pytest.approx(np.exp(-np.sum(share * np.log(share))))
        assert bank.monitors()["mean_cosine"] == pytest.approx(cosines.mean())

    def test_equal_vectors_are_a_collapse(self):
        bank = KnowledgeBank(4)
        bank.insert(vectors(1).expand(5, -1), "a", "", 0)
        assert bank.monitors()["effective_rank"] == pytest.approx(1, abs=1e-4)
        assert bank.monitors()["mean_cosine"] == pytest.approx(1)
        assert bank.monitors()["collapsed"]
        assert bank.monitors()["alike"]

    def test_aligned_vectors_of_two_sites_are_not_alike(self):
        """Cosine 0.9997, as alignment leaves them: centred, they are two directions, and retrieval tells them apart."""
        bank = KnowledgeBank(2)
        bank.insert(torch.tensor([[1.0, 0.012], [1.0, 0.012]]), "a", "", 0)
        bank.insert(torch.tensor([[1.0, -0.012], [1.0, -0.012]]), "b", "", 0)
        monitors = bank.monitors()
        assert monitors["mean_cosine"] > 0.9997
        assert monitors["collapsed"]
        assert not monitors["alike"]
        assert monitors["centred_rank"] == pytest.approx(1)
        assert monitors["centred_cosine"] == pytest.approx(-1 / 3)  # 2 of 6 pairs agree, 4 are opposite

    @pytest.mark.parametrize("size", [0, 1])
    def test_fewer_than_two_vectors_are_not_alike(self, size):
        bank = KnowledgeBank(4)
        bank.insert(vectors(size), "a", "", 0)
        assert not bank.monitors()["alike"]

    @pytest.mark.parametrize("rows", [torch.zeros(1, 4), torch.ones(1, 4), torch.zeros(3, 4)])
    def test_rank_is_at_least_one(self, rows: torch.Tensor):
        bank = KnowledgeBank(4)
        bank.insert(rows, "a", "", 0)
        assert bank.monitors()["effective_rank"] >= 1

    def test_empty_bank_is_json(self):
        monitors = KnowledgeBank(4).monitors()
        assert monitors["effective_rank"] == 0
        json.dumps(monitors, allow_nan=False)


class TestState:
    def test_round_trip_goes_on_exactly(self):
        bank = KnowledgeBank(4, ring=2, decay=0.7, prune=0.3)
        for round in range(3):
            for seed, site in enumerate("abc"):
                bank.insert(vectors(1, seed=10 * round + seed), site, "mr" if site == "a" else "", round)
            bank.step(round, {"a": {1: 1 / 3, 2: 0.1}, "b": {0: 0.7}})
        tensors, record = bank.state()
        again = KnowledgeBank.from_state(tensors, json.loads(json.dumps(record)))
        for one in (bank, again):
            one.insert(vectors(2, seed=99), "d", "", 3)
            one.step(3, {"d": {4: 0.2, 5: 0.4}})
        assert torch.equal(again.vectors, bank.vectors)
        assert again.entries == bank.entries
        assert again.state()[1] == bank.state()[1]

    def test_empty_round_trip(self):
        again = KnowledgeBank.from_state(*KnowledgeBank(4).state())
        assert len(again) == 0
        assert again.insert(vectors(1), "a", "", 0) == [0]

    def test_state_is_a_copy(self):
        bank = bank_of("a")
        bank.state()[0]["vectors"].zero_()
        assert bank.vectors.abs().sum() > 0

    def test_replies_in_any_order_give_one_bank(self):
        """Inserts are sorted by the caller; the order of hits must not matter either."""
        hits = {"b": {0: 0.1, 1: 0.3}, "c": {0: 0.7, 1: 0.2}, "d": {0: 0.3, 1: 0.1}}
        banks = [bank_of("a", "a", "b", "c", "d") for _ in range(2)]
        banks[0].step(0, hits)
        banks[1].step(0, {site: dict(reversed(hits[site].items())) for site in reversed(hits)})
        assert banks[0].entries == banks[1].entries

    def test_rejects_a_missing_part(self):
        tensors, record = bank_of("a").state()
        del tensors["hits"], record["site"]
        with pytest.raises(ValueError, match=r"missing \['hits', 'site'\]"):
            KnowledgeBank.from_state(tensors, record)

    def test_rejects_parts_of_different_length(self):
        tensors, record = bank_of("a", "b").state()
        tensors["age"] = tensors["age"][:1]
        with pytest.raises(ValueError, match="a bank's parts must have one length"):
            KnowledgeBank.from_state(tensors, record)


class TestBankKeepsWhatItCompares:
    """The bank keeps its centred unit vectors between shortlists; never longer than true."""

    @pytest.mark.parametrize("change", ["insert", "in place"])
    def test_a_changed_bank_answers_as_a_fresh_one(self, change):
        bank = KnowledgeBank(4)
        bank.insert(torch.eye(4)[:3], "a", "MR", 0)
        query = torch.tensor([[0.0, 0.1, 0.0, 1.0]])
        bank.shortlist(query, "b")
        if change == "insert":
            bank.insert(torch.eye(4)[3:], "a", "MR", 1)
        else:
            bank.vectors[2] = torch.eye(4)[3]
        fresh = KnowledgeBank.from_state(*bank.state())
        assert bank.shortlist(query, "b")[0] == fresh.shortlist(query, "b")[0]
        assert bank.shortlist(query, "b")[0][0] == (3 if change == "insert" else 2)
