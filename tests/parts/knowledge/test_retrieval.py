"""Retrieval of the nearest prototypes by one token."""

import pytest
import torch

from omnifm.parts.knowledge import retrieve
from tests.parts.knowledge.vectors import bank_of, vectors


class TestRetrieve:
    def test_golden(self):
        """Per sample; (1, 0.1) is nearest to row 0 and then 2, (0, -1) to row 1 and then 2."""
        candidates = torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.7, -0.7]])
        chosen = retrieve(torch.tensor([[1.0, 0.1], [0.0, -1.0]]), candidates, None, 2)
        assert chosen.tolist() == [[0, 2], [1, 2]]

    def test_agrees_with_the_shortlist(self):
        bank = bank_of(*"abcdefgh")
        query = vectors(1, seed=50)
        order = retrieve(query, bank.vectors, bank.mean, 8)[0].tolist()
        assert bank.shortlist(query, "z")[0] == order
        assert retrieve(query, bank.vectors, None, 8)[0].tolist() != order

    @pytest.mark.parametrize(("n", "k", "chosen"), [(3, 5, 3), (0, 2, 0), (3, 0, 0)])
    def test_gives_at_most_what_there_is(self, n: int, k: int, chosen: int):
        assert retrieve(vectors(2), vectors(n, seed=1), torch.zeros(4), k).shape == (2, chosen)

    def test_ties_go_to_the_first_row(self):
        assert retrieve(vectors(1), vectors(1).expand(5, -1), None, 2).tolist() == [[0, 1]]

    def test_a_candidate_equal_to_the_mean_has_cosine_zero(self):
        """Not NaN, which would sort first: the token's own direction (row 1) is nearer, its opposite is not."""
        mean, token = vectors(2)
        candidates = torch.stack([mean, token, 2 * mean - token])
        assert retrieve(token[None], candidates, mean, 3).tolist() == [[1, 0, 2]]

    def test_rounding_noise_is_a_tie(self):
        token = torch.tensor([[1.0, 0.0]])
        assert retrieve(token, torch.tensor([[1.0, 5e-4], [1.0, 0.0]]), None, 2).tolist() == [[0, 1]]

    def test_half_precision_tokens(self):
        assert retrieve(vectors(2).bfloat16(), vectors(3), None, 1).tolist() == [[0], [1]]

    def test_rejects_negative_k(self):
        with pytest.raises(ValueError, match="k must be at least 0; got -1"):
            retrieve(vectors(1), vectors(1), None, -1)
