"""What may leave a hospital, and that anything else is stopped at its door."""

import pytest
import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_context import FLContext

from omnifm_flare import wire
from omnifm_flare.executors import ASKED, SOURCE
from omnifm_flare.filters import EgressFilter
from tests.custom.test_wire import update


def context(asked=("w",), source="site"):
    fl_ctx = FLContext()
    fl_ctx.set_prop(ASKED, asked, private=True, sticky=False)
    fl_ctx.set_prop(SOURCE, source, private=True, sticky=False)
    return fl_ctx


def passes(sent, **where):
    return EgressFilter().process(wire.from_update(sent), context(**where))


class TestEgressFilter:
    def test_a_sound_update_passes_unchanged(self):
        message = wire.from_update(update())
        assert EgressFilter().process(message, context()) is message

    def test_pictures_of_synthetic_cases_pass(self):
        passes(update(pictures={"a": torch.zeros(3, dtype=torch.uint8)}), source="demo")

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"shared": {"w": torch.tensor([1.0, torch.nan])}}, "'w' must be finite"),
            ({"extra": {"token": torch.tensor([torch.inf])}}, "'token' must be finite"),
            ({"shared": {"w": torch.ones(1), "head.weight": torch.ones(1)}}, "exactly those received"),
            ({"shared": {"head.weight": torch.ones(1)}}, "exactly those received"),
            ({"stage": "evaluate"}, "only train may send weights"),
            ({"stage": "describe", "shared": {}, "extra": {"token": torch.ones(1)}}, "describe must send no tensors"),
            ({"pictures": {"a": torch.zeros(3, dtype=torch.uint8)}}, "pictures of cases may leave only"),
        ],
    )
    def test_refuses(self, changes, match):
        with pytest.raises(ValueError, match=match):
            passes(update(**changes))

    def test_fails_closed_when_it_does_not_know_what_was_asked(self):
        with pytest.raises(ValueError, match="exactly those received"):
            EgressFilter().process(wire.from_update(update()), FLContext())
        with pytest.raises(ValueError, match="pictures of cases"):
            EgressFilter().process(wire.from_update(update(shared={}, pictures={"a": torch.zeros(1)})), FLContext())

    def test_refuses_notes_beside_the_record(self):
        message = wire.from_update(update())
        dxo = from_shareable(message)
        dxo.meta["patients"] = ["x"]
        with pytest.raises(ValueError, match="got 1 others"):
            EgressFilter().process(dxo.update_shareable(message), context())

    def test_refuses_data_beside_the_message(self):
        message = wire.from_update(update())
        message["patients"] = ["x"]
        with pytest.raises(ValueError, match="must hold nothing beside"):
            EgressFilter().process(message, context())

    def test_a_failure_passes_only_without_data(self):
        failure = wire.failure("refused: spacing differs")
        assert EgressFilter().process(failure, context()) is failure
        failure["volume"] = torch.ones(3)
        with pytest.raises(ValueError, match="must hold no data"):
            EgressFilter().process(failure, context())
