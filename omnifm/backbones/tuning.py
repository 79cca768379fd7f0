"""Choose which weights of a language model are trained: all, or one of four small parts.  The rest is frozen."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from jaxtyping import Float
from peft import LNTuningConfig, LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F

Peft = Literal["full", "lora", "adapter", "layernorm", "bias"]
LORA_RANK = 8
LORA_ALPHA = 32
"""LoRA's rank and alpha, from the paper's table 3.  Federated averaging treats LoRA's matrices A and B separately; the
product of the averages is not the average of the products."""
ADAPTER_REDUCTION = 16
"""Width of the model divided by the width of its adapters, as in FedDAT (Chen et al. 2024)."""
SUBLAYER_ENDS = ("o_proj", "down_proj")
"""Names of the last linear layers of attention and MLP in the LLaMA family."""


class Adapter(nn.Module):
    """A linear layer followed by an adapter, x + up(gelu(down(x))) (Houlsby et al. 2019).

    `up` starts at zero, so that the new adapter does not change the model.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        width = linear.out_features
        self.linear = linear
        self.down = nn.Linear(width, max(1, width // ADAPTER_REDUCTION))
        self.up = nn.Linear(self.down.out_features, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Float[Tensor, "... n"]) -> Float[Tensor, "... q"]:
        tokens = self.linear(tokens)
        return tokens + self.up(F.gelu(self.down(tokens)))


def tune(language: nn.Module, peft: Peft) -> None:
    """Freeze all weights of a language model except those that `peft` trains.  The model is changed in place.

    Args:
        language: a causal language model of the LLaMA family.
        peft: what is trained:
            "full": all weights;
            "lora": low-rank updates of all linear layers except the output layer (Hu et al. 2021);
            "adapter": a bottleneck after each attention and each MLP (Houlsby et al. 2019);
            "layernorm": the normalisation layers;
            "bias": the biases of all layers except the output layer (Ben Zaken et al. 2021); a linear layer without
            bias, as in LLaMA, gets one that starts at zero.

    Raises:
        ValueError: the model has no weights that `peft` trains.
    """
    language.requires_grad_(peft == "full")
    if peft == "lora":
        _inject(LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear"), language)
    elif peft == "layernorm":
        norms = {name.rpartition(".")[2] for name, module in language.named_modules() if _is_norm(module)}
        _inject(LNTuningConfig(target_modules=sorted(norms)), language)
    elif peft == "adapter":
        _add_adapters(language)
    elif peft == "bias":
        _train_biases(language)
    if not any(p.requires_grad for p in language.parameters()):
        raise ValueError(f"model.language must have weights that peft={peft!r} trains; it has none")


def _inject(config: LoraConfig | LNTuningConfig, language: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about merging tied embeddings, and nothing is merged here
        inject_adapter_in_model(config, language)


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Norm")


def _add_adapters(language: nn.Module) -> None:
    for module in list(language.modules()):
        for name in SUBLAYER_ENDS:
            if isinstance(linear := getattr(module, name, None), nn.Linear):
                setattr(module, name, Adapter(linear))


def _train_biases(language: nn.Module) -> None:
    output = language.get_output_embeddings()  # type: ignore[operator]
    for module in language.modules():
        if isinstance(module, nn.Linear) and module is not output and module.bias is None:
            module.bias = nn.Parameter(torch.zeros(module.out_features))
        if module is not output and isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            bias.requires_grad_(True)
