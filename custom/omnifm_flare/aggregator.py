"""FLARE's view of the aggregation: it forwards to `Federation`, which does all of it."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator

from omnifm.federation.server import Accept
from omnifm.method import Tensors
from omnifm_flare import wire


class OmniAggregator(ModelAggregator):
    """Takes replies one by one, combines at the end of a round.

    The controller sets `accept_update` and `combine`; a reply is written to the server's disk when it is accepted, so
    memory does not grow with the number of sites, and they are combined in the order of the sites' names.
    """

    def __init__(self) -> None:
        super().__init__()
        self.accept_update: Accept | None = None
        self.combine: Callable[[], Tensors] | None = None
        self.metrics: list[dict[str, float]] = []

    def accept_model(self, model: FLModel) -> str | None:
        """Take one site's reply; return why it is refused, or None.

        Raises:
            ValueError: it is no reply of ours at all.
        """
        assert self.accept_update is not None
        update = wire.open_update(model.params, model.meta)
        reason = self.accept_update(update)
        if reason is None:  # what was checked, not what the message says beside it
            self.metrics.append(wire.received_metrics(update))
        return reason

    def aggregate_model(self) -> FLModel:
        """The new shared part, with the mean over sites of the received model's metrics."""
        assert self.combine is not None
        names = sorted({name for metrics in self.metrics for name in metrics})
        means = {name: fmean(metrics[name] for metrics in self.metrics if name in metrics) for name in names}
        return FLModel(params_type=ParamsType.FULL, params=self.combine(), metrics=means or None)

    def reset_stats(self) -> None:
        """Forget the round."""
        self.metrics = []
