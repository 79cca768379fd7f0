"""Stands in for `omnifm_flare.filters` at one hospital: every round's reply leaves with another fault."""

from __future__ import annotations

import json

import torch
from nvflare.apis.dxo import DXO, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply

from omnifm_flare import wire

FAULTS = (
    "nan",
    "shape",
    "broadcast",
    "integers",
    "less",
    "more",
    "million",
    "count",
    "kind",
    "empty",
    "answers",
    "error",
)


class EgressFilter(Filter):
    """No gate, but the fault of the round."""

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Spoil replies to train."""
        if shareable.get_return_code() != ReturnCode.OK:
            return shareable
        update = wire.to_update(shareable)
        return _spoilt(shareable, FAULTS[update.round - 1]) if update.stage == "train" else shareable


def _spoilt(shareable: Shareable, fault: str) -> Shareable:
    if fault == "error":
        return make_reply(ReturnCode.EXECUTION_EXCEPTION)
    if fault == "empty":
        return make_reply(ReturnCode.OK)
    if fault == "kind":
        return DXO("METRICS", {"x": 1.0}).to_shareable()
    dxo = from_shareable(shareable)
    shared, record = dxo.data["shared"].data, json.loads(dxo.meta[wire.RECORD])
    name = max(shared, key=lambda n: shared[n].numel())
    if fault in ("count", "answers"):
        record |= {"count": {"num_samples": 10**9}, "answers": {"answers": "of the round before"}}[fault]
    elif fault == "less":
        del shared[name]
    elif fault == "more":
        shared["backbone.head.weight"] = torch.ones(3)
    elif fault == "million":
        shared |= {n: v * 1e6 for n, v in shared.items()}
    else:
        value = shared[name]
        others = {"nan": value * float("nan"), "shape": torch.zeros(7, 7), "broadcast": torch.ones(1)}
        shared[name] = (others | {"integers": value.long()})[fault]
    dxo.meta[wire.RECORD] = json.dumps(record)
    return dxo.update_shareable(shareable)
