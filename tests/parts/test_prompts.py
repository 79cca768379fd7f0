"""Tests of omnifm/prompts.py."""

import numpy as np
import pytest
import torch

from omnifm.parts.prompts import LinearPrompt, PrefixSuffix, PromptReader


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestPrefixSuffix:
    def test_order_is_prefix_backbone_suffix(self):
        psp, z, r = PrefixSuffix(4, 2), tokens(3, 5, 4, seed=1), tokens(3, 5, 4)
        out = psp(z, r)
        assert out.shape == (3, 12, 4)
        assert torch.equal(out[:, :5], z)
        assert torch.equal(out[:, 5:10], r)
        assert torch.equal(out[:, 10:], psp.suffix.expand(3, 2, 4))

    def test_baseline_has_no_prefix(self):
        psp, r = PrefixSuffix(4, 2), tokens(3, 5, 4)
        assert torch.equal(psp(None, r), torch.cat([r, psp.suffix.expand(3, 2, 4)], dim=1))

    def test_suffix_starts_small(self):
        """N(0, 0.02): the standard deviation of 64 000 draws is within 2 % of it."""
        torch.manual_seed(0)
        assert PrefixSuffix(64, 1000).suffix.std().item() == pytest.approx(0.02, rel=0.02)

    def test_suffix_learns(self):
        psp = PrefixSuffix(4, 2)
        psp(None, tokens(3, 5, 4)).sum().backward()
        torch.testing.assert_close(psp.suffix.grad, torch.full((2, 4), 3.0))

    def test_no_suffix(self):
        r = tokens(1, 5, 4)
        assert torch.equal(PrefixSuffix(4, 0)(None, r), r)

    def test_rejects_sizes(self):
        with pytest.raises(ValueError, match="dim must be at least 1 and num_suffix at least 0; got 4, -1"):
            PrefixSuffix(4, -1)


class TestLinearPrompt:
    @pytest.mark.parametrize("num_suffix", [0, 3])
    @pytest.mark.parametrize("length", [1, 5])
    def test_counts_as_many_tokens_as_psp(self, length: int, num_suffix: int):
        r = tokens(2, length, 4)
        assert LinearPrompt(4, num_suffix)(r, r).shape == PrefixSuffix(4, num_suffix)(r, r).shape

    def test_golden(self):
        """numpy: first halves, second halves, then p tokens of the mean token."""
        prompt, r = LinearPrompt(4, 3), tokens(2, 5, 4)
        w = {name: p.detach().numpy() for name, p in prompt.named_parameters()}
        x = r.numpy()
        two = x @ w["halves.weight"].T + w["halves.bias"]
        rest = (x.mean(axis=1) @ w["rest.weight"].T + w["rest.bias"]).reshape(2, 3, 4)
        expected = np.concatenate([two[..., :4], two[..., 4:], rest], axis=1)
        torch.testing.assert_close(prompt(None, r), torch.from_numpy(expected), atol=1e-5, rtol=1e-4)

    def test_prefix_is_not_read(self):
        prompt, r = LinearPrompt(4, 3), tokens(2, 5, 4)
        assert torch.equal(prompt(tokens(2, 5, 4, seed=7), r), prompt(None, r))

    def test_rejects_sizes(self):
        with pytest.raises(ValueError, match="dim must be at least 1"):
            LinearPrompt(0, 1)


class TestPromptReader:
    def test_middle_starts_as_the_plain_network(self):
        psp, z, r = PrefixSuffix(8, 2), tokens(3, 5, 8, seed=1), tokens(3, 5, 8)
        reader = PromptReader(8, "middle")
        torch.testing.assert_close(reader(psp(z, r), 5, 2), r)
        torch.testing.assert_close(reader(psp(None, r), 5, 2), r)

    def test_middle_reads_the_prefix_once_trained(self):
        psp, r = PrefixSuffix(8, 2), tokens(3, 5, 8)
        reader = PromptReader(8, "middle")
        torch.nn.init.normal_(reader.output.weight)
        one, other = (reader(psp(tokens(3, 5, 8, seed=seed), r), 5, 2) for seed in (1, 2))
        assert one.shape == (3, 5, 8)
        assert (one - other).abs().max() > 1e-3

    @pytest.mark.parametrize(("reads", "rows"), [("middle", slice(2, 4)), ("suffix", slice(4, 7))])
    def test_golden(self, reads: str, rows: slice):
        """numpy: layer norm, two heads of softmax attention, residual; l = 2, p = 3."""
        torch.manual_seed(0)
        reader = PromptReader(4, reads, num_heads=2)
        for parameter in reader.parameters():
            torch.nn.init.normal_(parameter)
        sequence = tokens(1, 7, 4)
        w = {name: p.detach().numpy().astype(np.float64) for name, p in reader.named_parameters()}
        x = sequence[0].numpy().astype(np.float64)
        n = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        n = n * w["norm.weight"] + w["norm.bias"]
        q = n[rows] @ w["query.weight"].T + w["query.bias"]
        kv = n @ w["key_value.weight"].T + w["key_value.bias"]
        heads = []
        for head in (slice(0, 2), slice(2, 4)):
            a = np.exp(q[:, head] @ kv[:, :4][:, head].T / np.sqrt(2))
            heads.append(a / a.sum(-1, keepdims=True) @ kv[:, 4:][:, head])
        expected = x[rows] + np.concatenate(heads, axis=1) @ w["output.weight"].T + w["output.bias"]
        out = reader(sequence, 2, 3)
        torch.testing.assert_close(out[0], torch.from_numpy(expected).float(), atol=1e-4, rtol=1e-4)

    def test_suffix_reads_the_image_from_the_start(self):
        psp, reader = PrefixSuffix(8, 2), PromptReader(8, "suffix")
        one, other = (reader(psp(None, tokens(3, 5, 8, seed=seed)), 5, 2) for seed in (1, 2))
        assert one.shape == (3, 2, 8)
        assert (one - other).abs().max() > 1e-3

    def test_all_is_the_sequence_and_has_no_parameters(self):
        sequence, reader = tokens(2, 12, 8), PromptReader(8, "all")
        assert reader(sequence, 5, 2) is sequence
        assert not list(reader.parameters())

    @pytest.mark.parametrize(("dim", "heads"), [(8, 4), (6, 3), (10, 2), (7, 1)])
    def test_heads_divide_the_width(self, dim: int, heads: int):
        assert PromptReader(dim, "middle").num_heads == heads

    def test_rejects_unknown_reads(self):
        with pytest.raises((ValueError, TypeError), match="reads"):
            PromptReader(8, "prefix")

    def test_rejects_heads_that_do_not_divide(self):
        with pytest.raises(ValueError, match="num_heads must be a divisor of dim 8; got 3"):
            PromptReader(8, "middle", num_heads=3)

    def test_rejects_another_length(self):
        with pytest.raises(ValueError, match="l=5, p=2; got 11"):
            PromptReader(8, "middle")(tokens(1, 11, 8), 5, 2)

    def test_rejects_reading_without_suffix(self):
        with pytest.raises(ValueError, match="num_suffix must be at least 1 where the suffix reads; got 0"):
            PromptReader(8, "suffix")(tokens(1, 10, 8), 5, 0)
