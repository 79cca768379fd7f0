import pytest
import torch

from omnifm.update import Payload, Score, Update, clean, digest, num_bytes


def update() -> Update:
    return Update(
        "site-1",
        "train",
        2,
        "answer",
        "manifest",
        shared={"w": torch.ones(2, 3)},
        extra={"c": torch.zeros(0, 4)},
        facts={"modalities": ["MR"]},
        num_samples=7,
        train_loss=0.5,
        before={"dice": Score(None, 0, 2)},
        after={"dice": Score(0.25, 2)},
        seconds=1.5,
        pictures={"case": torch.zeros(3, dtype=torch.uint8)},
    )


class TestUpdate:
    def test_pack_and_unpack_are_inverse(self):
        again = Update.unpack(*update().pack())
        assert again.pack()[1] == update().pack()[1]
        assert digest(again.pack()[0]) == digest(update().pack()[0])
        assert again.before["dice"] == Score(None, 0, 2)

    def test_everything_that_leaves_is_declared(self):
        """A new field of Update must be considered here: does it leave the hospital, and should it?"""
        assert set(vars(update())) == {
            "site",
            "stage",
            "round",
            "answers",
            "partition",
            "shared",
            "extra",
            "facts",
            "num_samples",
            "train_loss",
            "before",
            "after",
            "seconds",
            "pictures",
            "statistics",
        }

    def test_refuses_another_version(self):
        tensors, record = update().pack()
        with pytest.raises(ValueError, match="version must be 1; got 2"):
            Update.unpack(tensors, record | {"version": 2})


class TestPayload:
    def test_pack_and_unpack_are_inverse(self):
        payload = Payload("train", 1, "run", {"dims": 3}, {"w": torch.ones(2)}, {"p": torch.zeros(1)})
        assert Payload.unpack(*payload.pack()).digest() == payload.digest()

    @pytest.mark.parametrize("change", ["round", "value", "name", "run"])
    def test_digest_tells_any_two_requests_apart(self, change):
        one = Payload("train", 1, "run", {}, {"w": torch.ones(2)})
        other = Payload(
            "train",
            1 + (change == "round"),
            "other" if change == "run" else "run",
            {},
            {"v" if change == "name" else "w": torch.ones(2) * (2 if change == "value" else 1)},
        )
        assert one.digest() != other.digest()


def test_digest_depends_on_shape_and_type_but_not_on_order_or_layout():
    a, b = torch.arange(6.0).reshape(2, 3), torch.zeros(2)
    assert digest({"a": a, "b": b}) == digest({"b": b, "a": a.T.contiguous().T})
    assert digest({"a": a}) != digest({"a": a.reshape(3, 2)})
    assert digest({"a": b}) != digest({"a": b.to(torch.int32).view(torch.float32).to(torch.float64)})


def test_num_bytes_counts_values():
    assert num_bytes({"a": torch.zeros(1000)}, {}) - num_bytes({"a": torch.zeros(500)}, {}) in (2000, 2001)


def test_clean_shares_nothing():
    source = torch.nn.Parameter(torch.ones(4, 4)).T
    copy = clean(source)
    with torch.no_grad():
        source.zero_()
    assert copy.is_contiguous()
    assert not copy.requires_grad
    assert copy.sum() == 16
