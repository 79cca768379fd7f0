"""A model's trainable weights, and its layers from the image to the prediction."""

from __future__ import annotations

from torch import nn


def weights(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that are trained, in the order in which the model was built; never a statistic."""
    return tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Batch normalisation, found by type: names such as MONAI's `adn.N` do not tell."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def layers(model: nn.Module) -> list[list[str]]:
    """Names of the trained parameters, layer by layer, in the order in which the model was built.

    A layer begins at a module with a matrix or kernel of its own; modules with vectors alone (normalisation,
    activation) belong to the layer before them.
    """
    found: list[list[str]] = []
    for path, module in model.named_modules():
        own = {f"{path}.{name}".lstrip("."): p for name, p in module.named_parameters(recurse=False) if p.requires_grad}
        if not found or any(p.ndim > 1 for p in own.values()):
            found.append([])
        found[-1] += own
    return [layer for layer in found if layer]
