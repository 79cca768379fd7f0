from torch import nn

from omnifm.methods._layers import layers, weights


class Net(nn.Module):
    """A kernel, its norm and activation, a frozen matrix, a matrix."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.PReLU())
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.last = nn.Linear(2, 3, bias=False)


def test_vectors_belong_to_the_kernel_before_them_and_frozen_layers_do_not_count():
    assert layers(Net()) == [
        ["first.0.weight", "first.0.bias", "first.1.weight", "first.1.bias", "first.2.weight"],
        ["last.weight"],
    ]


def test_a_vector_before_any_kernel_is_a_layer_of_its_own():
    assert layers(nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2))) == [["0.weight", "0.bias"], ["1.weight", "1.bias"]]


def test_weights_are_what_is_trained_and_no_statistics():
    assert weights(Net()) == tuple(name for layer in layers(Net()) for name in layer)
