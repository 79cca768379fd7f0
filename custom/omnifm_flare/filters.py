"""The egress filter: only what `Update` declares leaves a hospital, and only if its values are valid.

It refuses a reply by raising ValueError.  FLARE then tells the server that the reply was withheld, and the round goes
on without it.
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

MAX_FACTS_BYTES = 2**16
"""Largest size of the facts as JSON."""
EXTRA_BYTES = 2**16
"""By how many bytes the method's tensors may exceed the size of the shared part."""
MAX_NAME = 32
"""Characters of a metric's name."""
META = {"omnifm", MetaKey.INITIAL_METRICS, MetaKey.NUM_STEPS_CURRENT_ROUND, MetaKey.FILTER_HISTORY}
"""Names in a message's meta data that may leave."""


class EgressFilter(Filter):
    """Checks every reply of OmniExecutor.  It must be the last of the result filters."""

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Return the reply unchanged.

        Raises:
            ValueError: it holds something that `Update` does not declare, or an invalid value.
        """
        from omnifm_flare import wire  # imported late because it imports torch: the trainer must start first

        if shareable.get_return_code() != ReturnCode.OK:
            if set(shareable) - {ReservedHeaderKey.HEADERS}:
                raise ValueError("a reply that reports a failure must hold no data; this one holds some")
            return shareable
        if set(shareable) - {ReservedHeaderKey.HEADERS, "DXO"}:
            raise ValueError("a reply must hold its message and nothing else; this one holds more")
        if foreign := set(from_shareable(shareable).meta) - META:
            raise ValueError(f"a reply's meta data must be among {sorted(META)}; got {len(foreign)} others")
        asked, method, source = (fl_ctx.get_prop(name) for name in (ASKED, METHOD, SOURCE))
        check_update(wire.to_update(shareable), asked, method, source)
        return shareable


def check_update(update: Update, asked: Asked | None, method: Method | None, source: str | None) -> None:
    """Check that an update may leave the site.

    Args:
        update: the reply.
        asked: type and shape of each shared tensor that the server sent; None if unknown.
        method: the job's method, which declares the names of all other tensors and facts; None if unknown.
        source: where the data come from, "demo" or "site"; None if unknown.

    Raises:
        ValueError: it may not leave.  The message names the rule.
    """
    if asked is None or method is None:
        raise ValueError("the filter must know what the server asked for and the job's method; it does not")
    _check_names(update, method)
    _check_values(update, asked)
    _check_sizes(update, asked)
    if update.pictures and source != "demo":
        raise ValueError("pictures of cases may leave only if the data are synthetic; this site's data are not")


def _check_names(update: Update, method: Method) -> None:
    from omnifm.federation.limits import malformed
    from omnifm.method import Method

    metrics = {*update.before, *update.after}  # this process does not load the task, so any short word passes
    if foreign := [name for name in metrics if not name.isidentifier() or len(name) > MAX_NAME]:
        raise ValueError(f"metric names must be one word of at most {MAX_NAME} letters; got {len(foreign)} others")
    # The rule of the base class: a subclass's rule may need the model, which only the trainer process builds.
    if reason := malformed(update) or Method.undeclared(method, update, metrics):
        raise ValueError(reason)


def _check_values(update: Update, asked: Asked) -> None:
    if update.shared and {name: (value.dtype, value.shape) for name, value in update.shared.items()} != asked:
        raise ValueError("shared tensors must have the names, types and shapes received; got others")
    for name, value in [*update.shared.items(), *update.extra.items()]:
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name!r} must be finite; got NaN or infinity")


def _check_sizes(update: Update, asked: Asked) -> None:
    limit = EXTRA_BYTES + sum(shape.numel() * dtype.itemsize for dtype, shape in asked.values())
    if (size := sum(value.nbytes for value in update.extra.values())) > limit:
        raise ValueError(f"the method's tensors must have at most {limit} bytes, the model's size; got {size}")
    if (size := len(json.dumps(update.facts))) > MAX_FACTS_BYTES:
        raise ValueError(f"facts must be at most {MAX_FACTS_BYTES} bytes; got {size}")
