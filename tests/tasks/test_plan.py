"""Spacing, patch and memory, planned from all sites' data."""

import pytest
import torch
from torch import nn

from omnifm.backbones.unet import UNetBackbone
from omnifm.plugins import load_task
from omnifm.tasks._plan import activation_bytes, planned_patch, planned_spacing
from tests.conftest import experiment


def unet(dims, channels):
    return lambda: UNetBackbone(dims, channels, 2, (8, 16, 32))


@pytest.mark.parametrize("shape", [[2, 1, 32, 48, 16], [2, 3, 64, 96]])
def test_memory_is_what_a_real_step_keeps(shape):
    build = unet(len(shape) - 2, shape[1])
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    network, batch = build(), {"image": torch.zeros(shape)}
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network.decode(*network.encode(batch), batch)
    assert output.requires_grad
    real = sum(size for key, size in kept.items() if key not in own)
    assert activation_bytes(build, shape) == pytest.approx(real, rel=0.01)


class TestSpacing:
    def test_is_the_median_of_the_sites(self):
        assert planned_spacing([[1.0, 1.0, 1.0], [2.0, 1.0, 1.0], [3.0, 1.0, 2.0]], [[1.0] * 3] * 3) == [2.0, 1.0, 1.0]

    def test_of_a_coarse_axis_is_the_finest_that_scanners_reach(self):
        assert planned_spacing([[1.0, 1.0, 3.0]] * 3, [[1.0] * 3] * 3) == [1.0, 1.0, 3.0]
        assert planned_spacing([[1.0, 1.0, 4.0]] * 3, [[1.0, 1.0, 2.0]] * 3) == [1.0, 1.0, 2.0]


class TestPatch:
    def plan(self, shape, memory_gib):
        return planned_patch([float(side) for side in shape], memory_gib, lambda _patch: unet(len(shape), 1)(), 1)

    def test_is_the_median_image_if_it_fits(self):
        assert self.plan([35, 50, 36], 4.0) == [48, 64, 48]

    def test_of_a_picture_has_512_pixels_at_most(self):
        assert self.plan([2000, 300], 64.0) == [512, 304]

    def test_shrinks_along_its_longest_side_until_two_fit(self):
        small = self.plan([160, 96, 96], 0.125)
        assert small != [160, 96, 96]
        assert max(small) - min(small) <= 16
        assert activation_bytes(unet(3, 1), [2, 1, *small]) <= 0.125 * 2**30

    def test_that_cannot_fit_is_refused(self):
        with pytest.raises(ValueError, match=r"task.memory_gib must hold 2 patches of \[16, 16, 16\], .*; got 1e-06"):
            self.plan([32, 32, 32], 1e-6)


class TestSegmentation:
    FACT = {  # noqa: RUF012
        "dims": 2,
        "channels": 3,
        "labels": {"0": "background", "1": "vessel"},
        "spacing_mm": [1.0] * 3,
        "finest_mm": [1.0] * 3,
        "extent_mm": [900.0, 700.0, 1.0],
        "median_mm": [600.0, 400.0, 1.0],
    }

    def test_pictures_keep_their_pixels(self):
        task = load_task(experiment(task={"image_size": "native", "patch_size": "auto"}))
        spec = task.agree({"site-1": self.FACT, "site-2": self.FACT | {"median_mm": [580.0, 420.0, 1.0]}})
        assert (spec["patch"], spec["spacing_mm"]) == ([512, 416], None)
        task.configure(spec)
        assert isinstance(task.backbone(), nn.Module)

    def test_a_patch_may_be_fixed(self):
        task = load_task(experiment(task={"image_size": "native", "patch_size": 128}))
        assert task.agree({"site-1": self.FACT})["patch"] == [128, 128]
