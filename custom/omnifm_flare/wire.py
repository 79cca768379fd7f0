"""Payload and Update <-> FLARE's messages: the only place that builds or opens what travels.

A message is a DXO COLLECTION with one part per kind of tensor, so that a hospital's own privacy filters act on the
shared weights (kind WEIGHTS) without touching the method's tensors, and can veto those by their kind.
The JSON record travels as text in the DXO's meta data.  Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs
from torch import Tensor

from omnifm.update import Payload, Update, clean

KINDS = {"shared": DataKind.WEIGHTS, "extra": "OMNIFM_EXTRA", "pictures": "OMNIFM_PICTURES"}
"""Part of a message -> kind of its DXO."""
RECORD = "omnifm"
REASON = "omnifm_reason"
MAX_REASON = 300
KEY_METRIC = "val"
"""Name under which FLARE's model selector finds the task's first metric, whatever the task."""


def register() -> None:
    """Let FLARE carry torch tensors; both ends must, or the receiving process dies."""
    fobs.register(TensorDecomposer)


def from_payload(payload: Payload) -> Shareable:
    """A task's data for one site."""
    shareable = _collection(*payload.pack(), parts=("shared", "extra")).to_shareable()
    shareable.set_header(AppConstants.CURRENT_ROUND, payload.round)
    shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, payload.round)  # the model selector compares it
    return shareable


def to_payload(shareable: Shareable) -> Payload:
    """Invert `from_payload`; raises ValueError if the message is anything else."""
    dxo = from_shareable(shareable)
    return Payload.unpack(*_open(dxo.data, dxo.meta))


def from_update(update: Update) -> Shareable:
    """A site's reply, with what FLARE's own components look for: metrics of the received model and the weight."""
    dxo = _collection(*update.pack(), parts=tuple(KINDS))
    if update.stage == "train" and (metrics := received_metrics(update)):
        dxo.set_meta_prop(MetaKey.INITIAL_METRICS, metrics)
    dxo.set_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND, update.num_samples)
    return dxo.to_shareable()


def received_metrics(update: Update) -> dict[str, float]:
    """Scores of the model as received; the task's first one again under the name that picks FLARE's best model."""
    metrics = {name: score.mean for name, score in update.before.items() if score.mean is not None}
    return metrics | {KEY_METRIC: next(iter(metrics.values()))} if metrics else {}


def to_update(shareable: Shareable) -> Update:
    """Invert `from_update`; raises ValueError if the message is anything else."""
    dxo = from_shareable(shareable)
    return open_update(dxo.data, dxo.meta)


def open_update(parts: Mapping[str, DXO], meta: Mapping[str, Any]) -> Update:
    """As `to_update`, from the collection's data and meta."""
    try:
        return Update.unpack(*_open(parts, meta))
    except (TypeError, KeyError, AttributeError) as error:  # a record with other fields than ours
        raise ValueError(f"the reply must hold the fields of Update; got a {type(error).__name__}") from None


def failure(reason: str) -> Shareable:
    """A reply that says in one line why there is none."""
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply.set_header(REASON, one_line(reason))
    return reply


def failure_reason(shareable: Shareable) -> str | None:
    """Why this is no reply, or None if it is one."""
    code = shareable.get_return_code()
    if code == ReturnCode.OK:
        return None
    if code == ReturnCode.TASK_RESULT_FILTER_ERROR:
        return "withheld by the site's own filter"
    return one_line(str(shareable.get_header(REASON) or f"failed: {code}"))


def one_line(text: str) -> str:
    """Printable, short, on one line: reasons come from other machines and end in logs and reports."""
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_REASON]


def _collection(tensors: Mapping[str, Tensor], record: Mapping[str, Any], parts: tuple[str, ...]) -> DXO:
    data: dict[str, DXO] = {part: DXO(KINDS[part], {}) for part in parts}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        data[part].data[rest] = _plain(value)
    return DXO(DataKind.COLLECTION, data, {RECORD: json.dumps(record)})


def _open(parts: Any, meta: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not isinstance(parts, Mapping) or not set(parts) <= set(KINDS) or not isinstance(meta.get(RECORD), str):
        raise ValueError(f"a message must hold a record and parts among {sorted(KINDS)}; got another one")
    tensors = {}
    for part, dxo in parts.items():
        if not isinstance(dxo, DXO) or dxo.data_kind != KINDS[part]:
            raise ValueError(f"part {part!r} must be of kind {KINDS[part]}; got another one")
        tensors.update({f"{part}/{name}": _tensor(part, value) for name, value in dxo.data.items()})
    record = json.loads(meta[RECORD])
    if not isinstance(record, dict):
        raise ValueError(f"the record must be an object; got {type(record).__name__}")
    return tensors, record


def _tensor(part: str, value: Any) -> Tensor:
    """A tensor again, even where a site's privacy filter turned it into a numpy array."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if not isinstance(value, Tensor):
        raise ValueError(f"part {part!r} must hold tensors; got {type(value).__name__}")
    return value


def _plain(tensor: Tensor) -> Tensor:
    """What FLARE can send.  A parameter, a view or a tensor on a GPU would end the server's process at decoding."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    plain = type(tensor) is Tensor and not tensor.requires_grad and tensor.device.type == "cpu"
    return tensor if plain and whole and tensor.is_contiguous() else clean(tensor).as_subclass(Tensor)
