"""A message is bit-identical after FLARE's serializer, and any other message is refused."""

import json

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import make_reply
from nvflare.fuel.utils import fobs
from torch import nn

from omnifm.update import Payload, Score, Update
from omnifm_flare import wire

wire.register()


def through_flare(shareable):
    return fobs.loads(fobs.dumps(shareable))


def update(**changes):
    fields = {
        "site": "site-1",
        "stage": "train",
        "round": 2,
        "answers": "ab",
        "shared": {"w": torch.ones(2, 3)},
        "num_samples": 7,
        "train_loss": 0.1,
        "before": {"dice": Score(0.25, 4), "iou": Score(None, 0, 4)},
        "after": {"dice": Score(0.5, 4)},
    }
    return Update(**(fields | changes))


class TestPayload:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
    def test_survives_with_its_digest(self, dtype):
        shared = {"a.weight": torch.arange(6).reshape(2, 3).to(dtype), "empty": torch.zeros(0, 4, dtype=dtype)}
        extra = {"bank": torch.rand(3, 2), "scalar": torch.tensor(2.5)}
        sent = Payload("train", 3, "run", {"spacing_mm": [1.0, 0.1], "labels": {"0": "x"}}, shared, extra, True)
        got = wire.to_payload(through_flare(wire.from_payload(sent)))
        assert got.digest() == sent.digest()
        assert got.shared["a.weight"].dtype == dtype
        assert got.shared["empty"].shape == (0, 4)

    def test_empty_parts(self):
        sent = Payload("describe", 0, "run")
        assert wire.to_payload(through_flare(wire.from_payload(sent))) == sent

    def test_parameters_and_views_are_made_plain(self):
        """Each of these would crash the process that decodes it."""
        whole = torch.arange(12.0).reshape(3, 4)
        shared = {"parameter": nn.Parameter(torch.ones(2)), "transposed": whole.T, "row": whole[1]}
        sent = Payload("train", 1, "run", {}, shared)
        message = wire.from_payload(sent)
        for value in from_shareable(message).data["shared"].data.values():
            assert type(value) is torch.Tensor
            assert value.is_contiguous()
            assert value.untyped_storage().nbytes() == value.numel() * 4
        assert wire.to_payload(through_flare(message)).digest() == sent.digest()

    def test_plain_tensors_are_not_copied(self):
        value = torch.ones(5)
        message = wire.from_payload(Payload("train", 1, "run", {}, {"w": value}))
        assert from_shareable(message).data["shared"].data["w"].data_ptr() == value.data_ptr()


class TestUpdate:
    def test_survives(self):
        sent = update(
            extra={"token": torch.rand(4, 8)},
            facts={"hits": {"3": 2}},
            pictures={"test case 1": torch.arange(9).byte()},
        )
        got = wire.to_update(through_flare(wire.from_update(sent)))
        for part in ("shared", "extra", "pictures"):
            for name, value in getattr(sent, part).items():
                assert torch.equal(getattr(got, part)[name], value)
        assert (got.before, got.after, got.facts, got.num_samples) == (sent.before, sent.after, sent.facts, 7)

    def test_flare_finds_weights_metrics_and_the_number_of_samples(self):
        dxo = from_shareable(wire.from_update(update()))
        assert dxo.data["shared"].data_kind == DataKind.WEIGHTS
        assert dxo.data["extra"].data_kind not in (DataKind.WEIGHTS, DataKind.WEIGHT_DIFF)
        assert dxo.meta[MetaKey.INITIAL_METRICS] == {"dice": 0.25, "val": 0.25}
        assert dxo.meta[MetaKey.NUM_STEPS_CURRENT_ROUND] == 7

    def test_opens_numpy_that_a_privacy_filter_made(self):
        message = wire.from_update(update())
        from_shareable(message).data["shared"].data["w"] = np.full((2, 3), 2, np.float32)
        assert torch.equal(wire.to_update(message).shared["w"], torch.full((2, 3), 2.0))


class TestRefusals:
    def spoilt(self, change):
        message = wire.from_update(update())
        dxo = from_shareable(message)
        change(dxo)
        return dxo.update_shareable(message)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda d: d.meta.pop("omnifm"), "must hold a record"),
            (lambda d: d.data.update(head=DXO(DataKind.WEIGHTS, {"h": torch.ones(1)})), "parts among"),
            (lambda d: d.data.update(shared=DXO(DataKind.WEIGHT_DIFF, {"w": torch.ones(1)})), "must be of kind"),
            (lambda d: d.data["shared"].data.update(w="text"), "must hold tensors; got str"),
            (lambda d: d.meta.update(omnifm="[1]"), "record must be a JSON object"),
            (lambda d: d.meta.update(omnifm=json.dumps({"version": 1, "colour": 1})), "must hold the fields of Update"),
            (lambda d: d.meta.update(omnifm=json.dumps({"version": 99})), "version must be 1; got 99"),
        ],
    )
    def test_anything_else_is_refused(self, change, match):
        with pytest.raises(ValueError, match=match):
            wire.to_update(self.spoilt(change))

    def test_a_reply_that_is_no_dxo(self):
        with pytest.raises(ValueError, match="not a valid DXO"):
            wire.to_update(make_reply(ReturnCode.OK))


class TestFailure:
    def test_the_reason_arrives_on_one_short_line(self):
        reason = wire.failure_reason(through_flare(wire.failure("a\nb\x1b[31m" + "x" * 1000)))
        assert reason.startswith("a b [31mx")
        assert len(reason) == wire.MAX_REASON

    def test_a_filter_that_withheld_says_so(self):
        assert "withheld" in wire.failure_reason(make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR))

    def test_an_update_is_no_failure(self):
        assert wire.failure_reason(wire.from_update(update())) is None
