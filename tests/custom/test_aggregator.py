"""The aggregator forwards to the functions of `Federation`."""

import pytest
import torch
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from omnifm.update import Score
from omnifm_flare import wire
from omnifm_flare.aggregator import OmniAggregator
from tests.custom.test_wire import update


def received(**changes):
    return FLModelUtils.from_shareable(wire.from_update(update(**changes)))


class TestOmniAggregator:
    def test_forwards_what_came_and_reports_the_mean(self):
        taken, aggregator = [], OmniAggregator()
        aggregator.accept_update = taken.append
        aggregator.combine = lambda: {"w": torch.full((2,), 5.0)}
        assert aggregator.accept_model(received(site="a", before={"dice": Score(0.2, 1)})) is None
        assert aggregator.accept_model(received(site="b", before={"dice": Score(0.4, 1)})) is None
        model = aggregator.aggregate_model()
        assert [u.site for u in taken] == ["a", "b"]
        assert torch.equal(model.params["w"], torch.full((2,), 5.0))
        assert model.metrics == pytest.approx({"dice": 0.3, "val": 0.3})

    def test_a_refused_reply_does_not_count(self):
        aggregator = OmniAggregator()
        aggregator.accept_update = lambda _update: "its manifest differs"
        aggregator.combine = dict
        assert aggregator.accept_model(received()) == "its manifest differs"
        assert aggregator.aggregate_model().metrics is None

    def test_reset_forgets_the_round(self):
        aggregator = OmniAggregator()
        aggregator.accept_update, aggregator.combine = lambda _update: None, dict
        aggregator.accept_model(received())
        aggregator.reset_stats()
        assert aggregator.aggregate_model().metrics is None
