"""The last thing before the wire: only what `Update` declares leaves a hospital, and only if it is sound.

It refuses by raising; FLARE then tells the server that the reply was withheld, and the round goes on without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvflare.apis.dxo import MetaKey, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable

from omnifm_flare.executors import ASKED, SOURCE

if TYPE_CHECKING:
    from omnifm.update import Update

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
        check_update(wire.to_update(shareable), fl_ctx.get_prop(ASKED), fl_ctx.get_prop(SOURCE))
        return shareable


def check_update(update: Update, asked: tuple[str, ...] | None, source: str | None) -> None:
    """Whether this may leave.

    Args:
        asked: names of the shared tensors that the server sent.
        source: "demo" or "site", where the data come from.

    Raises:
        ValueError: it may not; the message names the rule.
    """
    if update.stage != "train" and update.shared:
        raise ValueError(f"only train may send weights; {update.stage} holds {len(update.shared)} tensors")
    if update.stage in ("describe", "evaluate") and update.extra:
        raise ValueError(f"{update.stage} must send no tensors of the method; got {len(update.extra)}")
    if update.shared and (asked is None or set(update.shared) != set(asked)):
        raise ValueError("the weights sent must be exactly those received; got others")
    for part in (update.shared, update.extra):
        for name, value in part.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise ValueError(f"{name!r} must be finite; got NaN or infinity")
    if update.pictures and source != "demo":
        raise ValueError("pictures of cases may leave only where the data are synthetic; this site's are not")
