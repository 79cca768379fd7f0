"""The last thing before the wire: only what `Update` declares leaves a hospital, and only if it is sound.

It refuses by raising; FLARE then tells the server that the reply was withheld, and the round goes on without it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from nvflare.apis.dxo import MetaKey, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable

from omnifm_flare.executors import ASKED, METHOD, SOURCE

if TYPE_CHECKING:
    import torch

    from omnifm.method import Method
    from omnifm.update import Update

    Asked = dict[str, tuple[torch.dtype, torch.Size]]

SLACK = 2**16
"""Bytes of facts, and of the method's tensors beyond the size of the model."""
MAX_NAME = 32

META = {"omnifm", MetaKey.INITIAL_METRICS, MetaKey.NUM_STEPS_CURRENT_ROUND, MetaKey.FILTER_HISTORY}


class EgressFilter(Filter):
    """Checks every reply of OmniExecutor; put it last among the result filters."""

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Return the reply unchanged.

        Raises:
            ValueError: it holds anything else than Update declares, or something unsound.
        """
        from omnifm_flare import wire  # it imports torch: not before the executor has started the trainer

        if shareable.get_return_code() != ReturnCode.OK:
            if set(shareable) - {ReservedHeaderKey.HEADERS}:
                raise ValueError("a reply that reports a failure must hold no data; this one does")
            return shareable
        if set(shareable) - {ReservedHeaderKey.HEADERS, "DXO"}:
            raise ValueError("a reply must hold nothing beside its message; this one does")
        if foreign := set(from_shareable(shareable).meta) - META:
            raise ValueError(f"a reply's meta data must be among {sorted(META)}; got {len(foreign)} others")
        known = (fl_ctx.get_prop(name) for name in (ASKED, METHOD, SOURCE))
        check_update(wire.to_update(shareable), *known)
        return shareable


def check_update(update: Update, asked: Asked | None, method: Method | None, source: str | None) -> None:
    """Whether this may leave.

    Args:
        asked: type and shape of each shared tensor that the server sent.
        method: the job's method, which declares the names of everything else.
        source: "demo" or "site", where the data come from.

    Raises:
        ValueError: it may not; the message names the rule.
    """
    from omnifm.federation.intake import malformed
    from omnifm.method import Method

    if asked is None or method is None:
        raise ValueError("what the server asked for must be known; it is not")
    metrics = {*update.before, *update.after}  # the server knows the task's; here only that they are words
    if foreign := [name for name in metrics if not name.isidentifier() or len(name) > MAX_NAME]:
        raise ValueError(f"metrics must be named by short words; got {len(foreign)} others")
    # Method's own rule, not the class's: that may know more about a model which is built only in the trainer.
    if reason := malformed(update) or Method.undeclared(method, update, metrics):
        raise ValueError(reason)
    if update.shared and {name: (value.dtype, value.shape) for name, value in update.shared.items()} != asked:
        raise ValueError("the weights sent must be exactly those received, in type and shape; got others")
    for name, value in [*update.shared.items(), *update.extra.items()]:
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name!r} must be finite; got NaN or infinity")
    limit = SLACK + sum(shape.numel() * dtype.itemsize for dtype, shape in asked.values())
    if (size := sum(value.nbytes for value in update.extra.values())) > limit:
        raise ValueError(f"the method's tensors must not be larger than the model, {limit} bytes; got {size}")
    if (size := len(json.dumps(update.facts))) > SLACK:
        raise ValueError(f"facts must be at most {SLACK} bytes; got {size}")
    if update.pictures and source != "demo":
        raise ValueError("pictures of cases may leave only where the data are synthetic; this site's are not")
