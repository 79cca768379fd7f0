"""Tests of omnifm/cross_attention.py."""

import numpy as np
import pytest
import torch

from omnifm.parts.cross_attention import CrossAttention, FiLM


def inputs(b: int = 2, l: int = 5, q: int = 6, k: int = 3, d: int = 4) -> tuple[torch.Tensor, ...]:  # noqa: E741
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=generator) for shape in [(b, l, q), (b, k, d), (b, d)])


class TestCrossAttention:
    @pytest.mark.parametrize("local_key", [True, False])
    @pytest.mark.parametrize("head_dim", [None, 6, 3])
    def test_golden(self, local_key: bool, head_dim: int | None):
        """Eq. (4) written out in numpy."""
        eca = CrossAttention(6, 4, head_dim, local_key)
        r, retrieved, s = (x.numpy().astype(np.float64) for x in inputs())
        w = {name: p.detach().numpy().astype(np.float64) for name, p in eca.named_parameters()}
        keys = np.concatenate([retrieved, s[:, None]], axis=1) if local_key else retrieved
        logits = (r @ w["query.weight"].T) @ (keys @ w["key.weight"].T).transpose(0, 2, 1)
        weights = np.exp(logits / np.sqrt(4 if head_dim is None else head_dim))
        z = weights / weights.sum(-1, keepdims=True) @ (keys @ w["value.weight"].T)
        expected = z @ w["output.weight"].T if "output.weight" in w else z
        torch.testing.assert_close(eca(*inputs()), torch.from_numpy(expected).float(), atol=1e-5, rtol=1e-4)

    def test_output_projection_only_where_widths_differ(self):
        assert "output.weight" not in dict(CrossAttention(4, 4).named_parameters())
        assert "output.weight" in dict(CrossAttention(6, 4).named_parameters())

    def test_prototypes_get_no_gradient_and_s_does(self):
        r, retrieved, s = (x.requires_grad_() for x in inputs())
        CrossAttention(6, 4)(r, retrieved, s).sum().backward()
        assert retrieved.grad is None
        assert s.grad.abs().sum() > 0
        assert r.grad.abs().sum() > 0

    def test_without_local_key_s_does_not_matter(self):
        r, retrieved, s = inputs()
        eca = CrossAttention(6, 4, local_key=False)
        assert torch.equal(eca(r, retrieved, s), eca(r, retrieved, -s))

    def test_order_of_prototypes_does_not_matter(self):
        r, retrieved, s = inputs()
        eca = CrossAttention(6, 4)
        torch.testing.assert_close(eca(r, retrieved.flip(1), s), eca(r, retrieved, s))

    def test_empty_bank_attends_to_s_alone(self):
        """A softmax over one key is 1: Z is s Wv Wo for every token."""
        r, _, s = inputs()
        eca = CrossAttention(6, 4)
        z = eca(r, torch.zeros(2, 0, 4), s)
        torch.testing.assert_close(z, eca.output(eca.value(s))[:, None].expand_as(z))

    def test_no_key_at_all_gives_zeros(self):
        r, _, s = inputs()
        assert torch.equal(CrossAttention(6, 4, local_key=False)(r, torch.zeros(2, 0, 4), s), torch.zeros_like(r))

    def test_rejects_width_zero(self):
        with pytest.raises(ValueError, match=r"widths must be at least 1; got \(0, 4, 4\)"):
            CrossAttention(0, 4)


class TestFiLM:
    def test_starts_as_the_backbone(self):
        r, retrieved, s = inputs()
        assert torch.equal(FiLM(6, 4)(r, retrieved, s), r)

    @pytest.mark.parametrize("local_key", [True, False])
    def test_golden(self, local_key: bool):
        """numpy: gamma = 1 + first half, beta = second half of W mean(S) + b."""
        film = FiLM(6, 4, local_key)
        torch.nn.init.normal_(film.condition.weight)
        torch.nn.init.normal_(film.condition.bias)
        r, retrieved, s = (x.numpy() for x in inputs())
        keys = np.concatenate([retrieved, s[:, None]], axis=1) if local_key else retrieved
        weight, bias = film.condition.weight.detach().numpy(), film.condition.bias.detach().numpy()
        out = keys.mean(axis=1) @ weight.T + bias
        expected = (1 + out[:, None, :6]) * r + out[:, None, 6:]
        torch.testing.assert_close(film(*inputs()), torch.from_numpy(expected), atol=1e-5, rtol=1e-4)

    def test_prototypes_get_no_gradient_and_s_does(self):
        r, retrieved, s = (x.requires_grad_() for x in inputs())
        film = FiLM(6, 4)
        torch.nn.init.normal_(film.condition.weight)
        film(r, retrieved, s).sum().backward()
        assert retrieved.grad is None
        assert s.grad.abs().sum() > 0

    def test_no_key_at_all_is_finite(self):
        r, _, s = inputs()
        assert torch.equal(FiLM(6, 4, local_key=False)(r, torch.zeros(2, 0, 4), s), r)

    def test_rejects_width_zero(self):
        with pytest.raises(ValueError, match=r"widths must be at least 1; got \(6, 0\)"):
            FiLM(6, 0)
