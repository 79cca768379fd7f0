"""Parameters and layers of a model, by name."""

from __future__ import annotations

from torch import nn


def weights(model: nn.Module) -> tuple[str, ...]:
    """Names of the trained parameters, in the order in which the model was built; normalisation statistics excluded."""
    return tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """All batch normalisation modules; found by type, because names such as MONAI's `adn.N` do not show it."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def layers(model: nn.Module) -> list[list[str]]:
    """Names of the trained parameters, layer by layer, in the order in which the model was built.

    A layer starts at a module that has a matrix or a kernel of its own.  Modules with vectors only (normalisation,
    activation) belong to the layer before them.

    >>> layers(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1)))
    [['0.weight', '0.bias', '1.weight', '1.bias'], ['2.weight', '2.bias']]
    """
    found: list[list[str]] = []
    for path, module in model.named_modules():
        own = {f"{path}.{name}".lstrip("."): p for name, p in module.named_parameters(recurse=False) if p.requires_grad}
        if not found or any(p.ndim > 1 for p in own.values()):
            found.append([])
        found[-1] += own
    return [layer for layer in found if layer]
