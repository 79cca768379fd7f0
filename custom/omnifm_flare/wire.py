"""Convert `Payload` and `Update` to FLARE messages and back.  No other module builds or opens a message.

A message is a DXO of kind COLLECTION with one part per kind of tensor.  So a hospital's own privacy filters can change
the shared weights (kind WEIGHTS) and leave the method's tensors alone, or block those by their kind.
The JSON record travels as text in the DXO's meta data.  Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

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
"""Name of the JSON record in the meta data."""
REASON = "omnifm_reason"
"""Name of the header that says why there is no update."""
MAX_REASON = 300
"""Characters of a reason."""
KEY_METRIC = "val"
"""FLARE's model selector reads this metric; it is the first metric of any task."""


def register() -> None:
    """Let FLARE send torch tensors.  Server and site must both call it, else the receiving process crashes."""
    fobs.register(TensorDecomposer)


def from_payload(payload: Payload) -> Shareable:
    """Build the task message for one site."""
    shareable = _collection(*payload.pack(), parts=("shared", "extra")).to_shareable()
    shareable.set_header(AppConstants.CURRENT_ROUND, payload.round)
    shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, payload.round)  # FLARE's model selector checks it
    return shareable


def to_payload(shareable: Shareable) -> Payload:
    """Invert `from_payload`; raises ValueError if the message is not a payload."""
    dxo = from_shareable(shareable)
    return Payload.unpack(*_open(dxo.data, dxo.meta))


def from_update(update: Update) -> Shareable:
    """Build a site's reply, with the two entries that FLARE's components read: metrics and number of samples."""
    dxo = _collection(*update.pack(), parts=tuple(KINDS))
    if update.stage == "train" and (metrics := received_metrics(update)):
        dxo.set_meta_prop(MetaKey.INITIAL_METRICS, metrics)
    dxo.set_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND, update.num_samples)
    return dxo.to_shareable()


def received_metrics(update: Update) -> dict[str, float]:
    """Scores of the received model; the first one also as `val`, by which FLARE selects its best model."""
    metrics = {name: score.mean for name, score in update.before.items() if score.mean is not None}
    return metrics | {KEY_METRIC: next(iter(metrics.values()))} if metrics else {}


def to_update(shareable: Shareable) -> Update:
    """Invert `from_update`; raises ValueError if the message is not an update."""
    dxo = from_shareable(shareable)
    return open_update(dxo.data, dxo.meta)


def open_update(parts: Mapping[str, DXO], meta: Mapping[str, object]) -> Update:
    """As `to_update`, from the data and meta data of the collection."""
    try:
        return Update.unpack(*_open(parts, meta))
    except (TypeError, KeyError, AttributeError) as error:  # the record has other fields than Update
        raise ValueError(f"the reply must hold the fields of Update; got a {type(error).__name__}") from None


def failure(reason: str) -> Shareable:
    """Build the reply of a site that has no update; it holds the reason in one line."""
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply.set_header(REASON, one_line(reason))
    return reply


def failure_reason(shareable: Shareable) -> str | None:
    """Why the reply holds no update, or None if it holds one."""
    code = shareable.get_return_code()
    if code == ReturnCode.OK:
        return None
    if code == ReturnCode.TASK_RESULT_FILTER_ERROR:
        return "withheld by the site's own filter"
    return one_line(str(shareable.get_header(REASON) or f"failed: {code}"))


def one_line(text: str) -> str:
    """Shorten a reason to one printable line: it comes from another machine and is shown in logs and reports."""
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_REASON]


def _collection(tensors: Mapping[str, Tensor], record: Mapping[str, object], parts: tuple[str, ...]) -> DXO:
    data: dict[str, DXO] = {part: DXO(KINDS[part], {}) for part in parts}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        data[part].data[rest] = _plain(value)
    return DXO(DataKind.COLLECTION, data, {RECORD: json.dumps(record)})


def _open(parts: object, meta: Mapping[str, object]) -> tuple[dict[str, Tensor], dict[str, object]]:
    text = meta.get(RECORD)
    if not isinstance(parts, Mapping) or not set(parts) <= set(KINDS) or not isinstance(text, str):
        raise ValueError(f"a message must hold a record and parts among {sorted(KINDS)}; this one does not")
    tensors = {}
    for part, dxo in parts.items():
        if not isinstance(dxo, DXO) or dxo.data_kind != KINDS[part]:
            raise ValueError(f"part {part!r} must be of kind {KINDS[part]}; it is not")
        tensors.update({f"{part}/{name}": _tensor(part, value) for name, value in dxo.data.items()})
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError(f"the record must be a JSON object; got {type(record).__name__}")
    return tensors, record


def _tensor(part: str, value: object) -> Tensor:
    """A tensor, also if a site's privacy filter turned it into a numpy array."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if not isinstance(value, Tensor):
        raise ValueError(f"part {part!r} must hold tensors; got {type(value).__name__}")
    return value


def _plain(tensor: Tensor) -> Tensor:
    """A tensor that FLARE can send.  A parameter, a view or a GPU tensor would crash the server when it decodes it."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    plain = type(tensor) is Tensor and not tensor.requires_grad and tensor.device.type == "cpu"
    return tensor if plain and whole and tensor.is_contiguous() else clean(tensor).as_subclass(Tensor)
