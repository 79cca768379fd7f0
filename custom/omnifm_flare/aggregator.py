"""FLARE's aggregator component.  It forwards to `Federation`, which does the aggregation."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator

from omnifm.federation.transport import Accept
from omnifm.method import Tensors
from omnifm_flare import wire


class OmniAggregator(ModelAggregator):
    """Takes replies one by one and combines them at the end of a round.

    The controller sets `accept_update` and `combine`.  An accepted reply is written to the server's disk, so memory
    does not grow with the number of sites.  Replies are combined in the order of the sites' names.
    """

    def __init__(self) -> None:
        super().__init__()
        self.accept_update: Accept | None = None
        self.combine: Callable[[], Tensors] | None = None
        self.metrics: list[dict[str, float]] = []

    def accept_model(self, model: FLModel) -> str | None:
        """Take one site's training reply; return why it is refused, or None if it is accepted.

        Raises:
            ValueError: it is not an OmniFM reply.
        """
        assert self.accept_update is not None
        update = wire.open_update(model.params, model.meta)
        reason = self.accept_update(update)
        if reason is None:  # the metrics of the checked update, not those that FLARE's message repeats
            self.metrics.append(wire.received_metrics(update))
        return reason

    def aggregate_model(self) -> FLModel:
        """The new shared part, and the received model's metrics as means over the sites."""
        assert self.combine is not None
        names = sorted({name for metrics in self.metrics for name in metrics})
        means = {name: fmean(metrics[name] for metrics in self.metrics if name in metrics) for name in names}
        return FLModel(params_type=ParamsType.FULL, params=self.combine(), metrics=means or None)

    def reset_stats(self) -> None:
        """Drop the metrics of the last round."""
        self.metrics = []
