import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from omnifm.backbones.tuning import Adapter, tune

CONFIG = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Linear layers of one block, (in, out): q, k, v, o, gate, up, down.
LINEAR = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)]
COUNTS = {
    "lora": 2 * sum(8 * (a + b) for a, b in LINEAR),
    "adapter": 2 * 2 * (2 * 32 * 2 + 2 + 32),  # after attention and MLP: down to 32 / 16 = 2 and up again
    "layernorm": 2 * 2 * 32 + 32,
    "bias": 2 * sum(b for _, b in LINEAR),
}


def llama(**changes):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**CONFIG, **changes)).eval()


def tuned(language):
    return {name: p for name, p in language.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("peft", sorted(COUNTS))
class TestParts:
    def test_only_that_part_is_tuned(self, peft):
        language = llama()
        tune(language, peft)
        assert sum(p.numel() for p in tuned(language).values()) == COUNTS[peft]

    def test_at_first_nothing_changes(self, peft):
        ids, language = torch.arange(12)[None], llama()
        with torch.no_grad():
            before = language(ids).logits
            tune(language, peft)
            torch.testing.assert_close(language(ids).logits, before)

    def test_the_loss_falls(self, peft):
        language, ids = llama(), torch.arange(12)[None]
        tune(language, peft)
        optimizer = torch.optim.Adam(tuned(language).values(), lr=1e-2)
        losses = []
        for _ in range(6):
            optimizer.zero_grad()
            loss = language(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]


def test_full_tunes_everything():
    language = llama().requires_grad_(False)
    tune(language, "full")
    assert len(tuned(language)) == len(list(language.parameters()))


def test_biases_that_are_there_are_tuned_and_not_replaced():
    language = llama(attention_bias=True)
    nn.init.ones_(language.model.layers[0].self_attn.q_proj.bias)
    tune(language, "bias")
    assert language.model.layers[0].self_attn.q_proj.bias.mean() == 1
    assert sum(p.numel() for p in tuned(language).values()) == COUNTS["bias"]


def test_adapter_golden():
    """x + up(gelu(down(x))) behind the layer, by hand."""
    adapter = Adapter(nn.Linear(32, 32, bias=False))
    nn.init.normal_(adapter.up.weight)
    x = torch.randn(3, 32)
    y = x @ adapter.linear.weight.T
    hidden = y @ adapter.down.weight.T + adapter.down.bias
    gelu = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(adapter(x), y + gelu @ adapter.up.weight.T)


def test_refuses_a_model_without_that_part():
    with pytest.raises(ValueError, match=r"model.language must have weights that peft='adapter' trains; it has none"):
        tune(nn.Sequential(nn.Linear(2, 2)), "adapter")
