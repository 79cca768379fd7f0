"""Tests of omnifm/alignment.py."""

import pytest
import torch

from omnifm.parts.alignment import spectral_alignment


class TestSpectralAlignment:
    def test_golden(self):
        """Means (1/2, 1/2) and (0, 1); squares 1/4 + 1/4 and 0 + 4; batch mean (1/2 + 4) / 2 = 2.25."""
        s = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
        retrieved = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
        assert spectral_alignment(s, retrieved).item() == pytest.approx(2.25)

    def test_token_at_its_prototype_costs_nothing(self):
        s = torch.randn(3, 4)
        assert spectral_alignment(s, s[:, None].expand(-1, 2, -1)).item() == 0

    def test_prototypes_get_no_gradient(self):
        s, retrieved = torch.randn(2, 3, requires_grad=True), torch.randn(2, 2, 3, requires_grad=True)
        spectral_alignment(s, retrieved).backward()
        assert retrieved.grad is None
        # d/ds of the batch mean of squares is 2 (s - mean) / b.
        torch.testing.assert_close(s.grad, (s - retrieved.mean(dim=1)).detach())

    def test_without_prototypes_is_zero(self):
        assert spectral_alignment(torch.randn(2, 3), torch.zeros(2, 0, 3)).item() == 0
