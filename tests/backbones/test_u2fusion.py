import pytest
import torch
from torch.nn import functional as F

from omnifm.backbones.u2fusion import SLOPE, U2FusionBackbone


def plain(backbone, image):
    """The same network written out: each dense layer reads all before it, newest first."""

    def convolved(layer, maps):
        return F.conv2d(F.pad(maps, (1, 1, 1, 1), mode="reflect"), layer.weight, layer.bias)

    maps = F.leaky_relu(convolved(backbone.first, image), 0.2)
    for layer in backbone.dense:
        maps = torch.cat([F.leaky_relu(convolved(layer, maps), 0.2), maps], dim=1)
    *inner, last = backbone.decoder
    for layer in inner:
        maps = F.leaky_relu(convolved(layer, maps), 0.2)
    return (image[:, :1] + image[:, 1:]) / 2 + torch.tanh(SLOPE * convolved(last, maps))


@pytest.mark.parametrize("size", [(32, 48), (41, 50)])
def test_unchanged_tokens_are_the_plain_network(size):
    backbone = U2FusionBackbone(3, (5, 4), cell=8)
    image = torch.rand(2, 2, *size)
    tokens, features = backbone.encode({"image": image})
    assert tokens.shape == (2, -(-size[0] // 8) * -(-size[1] // 8), backbone.width)
    torch.testing.assert_close(backbone.decode(tokens, features, {}), plain(backbone, image))


def test_tokens_are_means_over_cells():
    backbone = U2FusionBackbone(2, (3,), cell=4)
    tokens, (maps, *_) = backbone.encode({"image": torch.rand(1, 2, 9, 8)})
    torch.testing.assert_close(tokens[0, 0], maps[0, :, :4, :4].mean(dim=(1, 2)))
    torch.testing.assert_close(tokens[0, -1], maps[0, :, 8:, 4:].mean(dim=(1, 2)))


def test_a_changed_token_changes_the_picture_around_its_cell_only():
    backbone = U2FusionBackbone(2, (3,), cell=8)
    tokens, features = backbone.encode({"image": torch.rand(1, 2, 64, 64)})
    changed = tokens.clone()
    changed[:, 0] += 1.0
    difference = (backbone.decode(changed, features, {}) - backbone.decode(tokens, features, {})).abs()[0, 0]
    assert difference[:8, :8].min() > 0
    assert difference[24:, 24:].max() == 0


def test_a_silent_decoder_gives_the_average_and_a_loud_one_stays_near():
    backbone, image = U2FusionBackbone(2, (3,), cell=8), torch.rand(1, 2, 16, 16)
    average = image.mean(dim=1, keepdim=True)
    with torch.no_grad():
        for scale in (0.0, 1e6):
            for parameter in backbone.decoder[-1].parameters():
                parameter.mul_(scale)
            fused = backbone.decode(*backbone.encode({"image": image}), {})
            assert (fused - average).abs().max() <= 1
            assert torch.equal(fused, average) == (scale == 0.0)
            torch.nn.init.normal_(backbone.decoder[-1].weight)


def test_has_u2fusions_size_and_a_small_head():
    """Nine weights per pair of maps and a bias per map: 659 217, the published 0.659 million."""
    maps = [(2, 44), *[(44 * depth, 44) for depth in range(1, 6)], (264, 128), (128, 64), (64, 32), (32, 1)]
    backbone = U2FusionBackbone(44, (128, 64, 32), cell=8)
    assert sum(p.numel() for p in backbone.parameters()) == sum(9 * a * b + b for a, b in maps) == 659_217
    assert sum(p.numel() for module in backbone.head() for p in module.parameters()) == 9 * 32 + 1
