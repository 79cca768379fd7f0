"""The egress filter lets a valid update pass and refuses everything else."""

import pytest
import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_context import FLContext

from omnifm.method import Method
from omnifm.update import Score
from omnifm_flare import wire
from omnifm_flare.executors import ASKED, METHOD, SOURCE
from omnifm_flare.filters import EgressFilter
from tests.custom.test_wire import update

ASKED_FOR = {"w": (torch.float32, torch.Size([2, 3]))}


class Tokens(Method):
    """Declares what the update of test_wire holds."""

    sends, says = frozenset({"token"}), frozenset({"modalities"})


def context(asked=ASKED_FOR, source="site"):
    fl_ctx = FLContext()
    fl_ctx.set_prop(ASKED, asked, private=True, sticky=False)
    fl_ctx.set_prop(METHOD, Tokens(None), private=True, sticky=False)
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
            ({"shared": {"w": torch.full((2, 3), torch.nan)}}, "'w' must be finite"),
            ({"extra": {"token": torch.tensor([torch.inf])}}, "'token' must be finite"),
            (
                {"shared": {"w": torch.ones(2, 3), "head.weight": torch.ones(1)}},
                "the names, types and shapes received",
            ),
            ({"shared": {"head.weight": torch.ones(2, 3)}}, "the names, types and shapes received"),
            ({"shared": {"w": torch.ones(3, 2)}}, "the names, types and shapes received"),
            ({"shared": {"w": torch.ones(2, 3).double()}}, "the names, types and shapes received"),
            ({"extra": {"volume": torch.ones(1)}}, "it holds 1 tensors that are not declared"),
            (
                {"extra": {"token": torch.ones(20_000)}},
                "must have at most 65560 bytes, the model's size; got 80000",
            ),
            ({"facts": {"patients": ["x"]}}, "it holds 1 facts that are not declared"),
            ({"facts": {"modalities": ["x" * 70_000]}}, "facts must be at most 65536 bytes"),
            (
                {"before": {"of patient 7": Score(0.5, 1)}},
                "metric names must be one word of at most 32 letters; got 1 others",
            ),
            ({"after": {"dice": Score(float("nan"), 1)}}, "metric 'dice' must be finite or None"),
            ({"train_loss": float("inf")}, "train_loss must be finite"),
            ({"num_samples": True}, "num_samples must be a positive integer"),
            ({"stage": "evaluate"}, "it holds 1 shared tensors that are not declared"),
            ({"stage": "evaluate", "shared": {}, "extra": {"token": torch.ones(1)}}, "1 tensors that are not declared"),
            ({"stage": "describe", "shared": {}, "before": {}, "after": {}}, "facts must count the cases"),
            ({"pictures": {"a": torch.zeros(3, dtype=torch.uint8)}}, "pictures of cases may leave only"),
        ],
    )
    def test_refuses(self, changes, match):
        with pytest.raises(ValueError, match=match):
            passes(update(**changes))

    def test_fails_closed_when_it_does_not_know_what_was_asked(self):
        with pytest.raises(ValueError, match="must know what the server asked for"):
            EgressFilter().process(wire.from_update(update()), FLContext())
        with pytest.raises(ValueError, match="pictures of cases"):
            passes(update(pictures={"a": torch.zeros(1)}), source=None)

    def test_refuses_notes_beside_the_record(self):
        message = wire.from_update(update())
        dxo = from_shareable(message)
        dxo.meta["patients"] = ["x"]
        with pytest.raises(ValueError, match="got 1 others"):
            EgressFilter().process(dxo.update_shareable(message), context())

    def test_refuses_data_beside_the_message(self):
        message = wire.from_update(update())
        message["patients"] = ["x"]
        with pytest.raises(ValueError, match="must hold its message and nothing else"):
            EgressFilter().process(message, context())

    def test_a_failure_passes_only_without_data(self):
        failure = wire.failure("refused: spacing differs")
        assert EgressFilter().process(failure, context()) is failure
        failure["volume"] = torch.ones(3)
        with pytest.raises(ValueError, match="must hold no data"):
            EgressFilter().process(failure, context())
