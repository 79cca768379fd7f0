import pytest
import torch
from torch import nn

from omnifm.method import Partition, weighted_mean
from omnifm.update import Update


class Net(nn.Module):
    """A backbone with batch norm, whose attribute names lie on purpose, and a head."""

    def __init__(self):
        super().__init__()
        self.head_like = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        self.last = nn.Linear(2, 3)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def update(site, num_samples, value):
    return Update(site, "train", 1, "", shared={"w": torch.tensor([value])}, num_samples=num_samples)


class TestPartition:
    def test_ownership_decides_never_the_name(self):
        net = Net()
        parts = Partition.of(net, personal=[net.last])
        assert parts.personal == ("last.weight", "last.bias")
        assert "head_like.0.weight" in parts.shared
        assert parts.frozen == ("frozen.weight", "frozen.bias")

    def test_batch_norm_statistics_travel_only_when_asked_and_its_counter_never(self):
        assert "head_like.1.running_mean" in Partition.of(Net()).shared
        kept = Partition.of(Net(), share_buffers=False)
        assert kept.buffers == (
            "head_like.1.running_mean",
            "head_like.1.running_var",
            "head_like.1.num_batches_tracked",
        )
        assert Partition.of(Net()).buffers == ("head_like.1.num_batches_tracked",)

    def test_only_shares_nothing_else(self):
        net = Net()
        parts = Partition.of(net, only=[net.last])
        assert parts.shared == ("last.weight", "last.bias")
        assert Partition.of(net, only=()).shared == ()

    def test_every_tensor_has_exactly_one_owner(self):
        net = Net()
        parts = Partition.of(net, personal=[net.last])
        names = [name for part in Partition.parts() for name in getattr(parts, part)]
        assert sorted(names) == sorted(net.state_dict())

    def test_hash_tells_partitions_apart(self):
        net = Net()
        assert Partition.of(net).hash() != Partition.of(net, personal=[net.last]).hash()
        assert Partition.of(net).hash() == Partition.of(Net()).hash()

    def test_pick_copies(self):
        net = Net()
        picked = Partition.of(net).pick(net, "shared")
        nn.init.zeros_(net.last.weight)
        assert picked["last.weight"].abs().sum() > 0

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda t: t.pop("last.bias"), "lacks 1 shared tensors, first 'last.bias'"),
            (lambda t: t.update(other=torch.ones(1)), "has 1 tensors that are not shared, first 'other'"),
            (lambda t: t.update({"last.bias": torch.ones(1)}), r"'last.bias' must be .*\(3,\).*; got .*\(1,\)"),
            (lambda t: t.update({"last.bias": torch.ones(3).double()}), "got .*float64"),
            (lambda t: t["last.bias"].fill_(float("nan")), "'last.bias' must be finite"),
        ],
    )
    def test_refuses_whatever_is_not_exactly_the_shared_part(self, change, reason):
        net = Net()
        parts = Partition.of(net)
        tensors = parts.pick(net, "shared")
        assert parts.refuse(tensors) is None
        change(tensors)
        assert __import__("re").search(reason, parts.refuse(tensors))


class TestWeightedMean:
    def test_golden(self):
        """(1 * 3 + 4 * 1) / 5 = 1.4"""
        mean = weighted_mean({"w": torch.zeros(1)}, [update("a", 1, 3.0), update("b", 4, 1.0)])
        torch.testing.assert_close(mean["w"], torch.tensor([1.4]))

    def test_sums_in_float64(self):
        """In float32 1e8 + 1 loses the 1."""
        updates = [update("a", 1, 1e8), update("b", 1, 1.0), update("c", 1, -1e8)]
        assert weighted_mean({"w": torch.zeros(1)}, updates)["w"].item() == pytest.approx(1 / 3)

    def test_no_update_leaves_the_model(self):
        assert weighted_mean({"w": torch.ones(1)}, [])["w"].item() == 1.0
