"""Centroids of a site's tokens."""

import pytest
import torch
from torch.nn.functional import normalize

from omnifm.parts.knowledge import spherical_kmeans
from tests.parts.knowledge.vectors import vectors


class TestSphericalKmeans:
    def test_one_centroid_is_the_normalised_mean(self):
        tokens = vectors(20)
        expected = tokens.mean(dim=0) / tokens.mean(dim=0).norm()
        torch.testing.assert_close(spherical_kmeans(tokens, 1, seed=3), expected[None])

    def test_finds_separated_clusters_largest_first(self):
        """30 tokens around e0, 20 around e1, 10 around e2; centroids are the groups' normalised means."""
        noise = 0.05 * vectors(60, seed=5)
        tokens = normalize(torch.eye(4)[[0] * 30 + [1] * 20 + [2] * 10] + noise, dim=1)
        expected = torch.stack([normalize(part.mean(dim=0), dim=0) for part in tokens.split([30, 20, 10])])
        for seed in range(5):
            torch.testing.assert_close(spherical_kmeans(tokens, 3, seed), expected)

    def test_is_deterministic_and_leaves_the_global_generator_alone(self):
        tokens = vectors(40)
        state = torch.get_rng_state()
        assert torch.equal(spherical_kmeans(tokens, 4, 1), spherical_kmeans(tokens, 4, 1))
        assert torch.equal(torch.get_rng_state(), state)

    def test_length_of_tokens_does_not_matter(self):
        tokens = vectors(30)
        scaled = tokens * torch.linspace(0.5, 3, 30)[:, None]
        torch.testing.assert_close(spherical_kmeans(scaled, 3, 0), spherical_kmeans(tokens, 3, 0))

    def test_centroids_are_unit(self):
        torch.testing.assert_close(spherical_kmeans(vectors(50), 7, 0).norm(dim=1), torch.ones(7))

    def test_fewer_tokens_than_centroids(self):
        assert spherical_kmeans(vectors(3), 8, 0).shape == (3, 4)

    def test_copies_and_opposites_are_no_nan(self):
        assert torch.isfinite(spherical_kmeans(vectors(1).expand(6, -1), 3, 0)).all()
        opposite = torch.cat([vectors(1), -vectors(1)])
        torch.testing.assert_close(spherical_kmeans(opposite, 1, 0).norm(), torch.tensor(1.0))

    def test_rejects(self):
        with pytest.raises(ValueError, match="m and num_iterations must be at least 1; got 0, 20"):
            spherical_kmeans(vectors(3), 0, 0)
        with pytest.raises(ValueError, match=r"tokens must be finite and at least one; got shape \(0, 4\)"):
            spherical_kmeans(torch.zeros(0, 4), 1, 0)
        with pytest.raises(ValueError, match="tokens must be finite"):
            spherical_kmeans(torch.full((2, 4), float("nan")), 1, 0)
