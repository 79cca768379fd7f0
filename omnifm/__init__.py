"""OmniFM: federated learning for medical images whose sites differ in modality and task (arXiv 2603.21660).

What most programs need can be imported from here; each name is loaded at its first use.

>>> from omnifm import Experiment
>>> Experiment.from_job("seg_fets").train.num_rounds
4
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from omnifm.config import Experiment
    from omnifm.quality.inspection import check
    from omnifm.simulation import run as simulate
    from omnifm.site.predict import predict

__all__ = ["Experiment", "__version__", "check", "predict", "simulate"]

_PLACES = {
    "Experiment": ("omnifm.config", "Experiment"),
    "check": ("omnifm.quality.inspection", "check"),
    "predict": ("omnifm.site.predict", "predict"),
    "simulate": ("omnifm.simulation", "run"),
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'omnifm' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
