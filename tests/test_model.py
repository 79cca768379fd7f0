import dataclasses

import pytest
import torch

from omnifm.backbones.unet import UNetBackbone
from omnifm.model import MatchedModel, OmniModel, Parts, PlainModel

PARTS = Parts(
    dim=8,
    num_bands=8,
    keep=0.25,
    low_pass="nyquist",
    keep_per_mm=None,
    num_retrieved=2,
    num_suffix=3,
    local_key=True,
    fusion="attention",
    prompting="prefix_suffix",
)


def model(**changes):
    torch.manual_seed(0)
    return OmniModel(UNetBackbone(2, 1, 2, (4, 8)), dataclasses.replace(PARTS, **changes))


def batch(num=2):
    return {"image": torch.randn(num, 1, 16, 16, generator=torch.Generator().manual_seed(1))}


def shortlist(num=5):
    vectors = torch.nn.functional.normalize(torch.randn(num, 8, generator=torch.Generator().manual_seed(2)), dim=1)
    return {"prototypes": vectors, "mean": vectors.mean(0)}


class TestOmniModel:
    def test_output_shapes(self):
        output = model()(batch(), shortlist())
        assert output.prediction.shape == (2, 2, 16, 16)
        assert output.token.shape == (2, 8)
        assert output.retrieved.shape == (2, 2, 8)
        assert output.chosen.shape == (2, 2)

    @pytest.mark.parametrize("changes", [{}, {"local_key": False}, {"fusion": "film"}, {"prompting": "linear"}])
    @pytest.mark.parametrize("num", [0, 1, 5])
    def test_every_switch_runs_with_any_shortlist(self, changes, num):
        output = model(**changes)(batch(1), shortlist(num))
        assert torch.isfinite(output.prediction).all()
        assert output.retrieved.shape[1] == min(num, 2)

    def test_each_sample_retrieves_its_own(self):
        """Two images whose tokens are the prototypes: each must find itself, also where the cosines are all near 1."""
        images = {"image": torch.stack([torch.randn(1, 16, 16), torch.arange(16.0).expand(1, 16, 16)])}
        omni = model(num_retrieved=1)
        tokens = omni.tokenizer(images["image"]).detach()
        assert omni(images, {"prototypes": tokens, "mean": tokens.mean(0)}).chosen.tolist() == [[0], [1]]

    def test_training_starts_from_the_plain_network(self):
        omni = model()
        tokens, features = omni.backbone.encode(batch())
        plain = omni.backbone.decode(tokens, features, batch())
        torch.testing.assert_close(omni(batch(), shortlist()).prediction, plain)

    def gradients(self, **changes):
        """Gradient size per part once the zero-initialised reader has made a step."""
        omni = model(**changes)
        optimizer = torch.optim.SGD(omni.parameters(), lr=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            omni(batch(), shortlist()).prediction.square().mean().backward()
            optimizer.step()
        size = lambda module: sum(p.grad.abs().sum().item() for p in module.parameters() if p.grad is not None)  # noqa: E731
        return {name: size(module) for name, module in omni.named_children()}

    def test_every_part_learns_from_the_task(self):
        assert all(size > 0 for size in self.gradients().values())

    def test_without_the_local_key_the_tokenizer_does_not(self):
        sizes = self.gradients(local_key=False)
        assert sizes["tokenizer"] == 0
        assert sizes["fusion"] > 0

    def test_prototypes_are_constants(self):
        extra = shortlist()
        extra["prototypes"].requires_grad_()
        model()(batch(), extra).prediction.sum().backward()
        assert extra["prototypes"].grad is None

    def test_retrieved_prototypes_reach_the_prediction(self):
        omni = model().eval()
        torch.nn.init.normal_(omni.reader.project.weight) if hasattr(omni.reader, "project") else [
            torch.nn.init.normal_(p) for p in omni.reader.parameters() if p.abs().sum() == 0
        ]
        other = {name: -value for name, value in shortlist().items()}
        first, second = omni(batch(), shortlist()).prediction, omni(batch(), other).prediction
        assert not torch.allclose(first, second)


class TestMatchedModel:
    def test_is_omnifm_without_its_spectral_parts(self):
        matched = MatchedModel(UNetBackbone(2, 1, 2, (4, 8)), PARTS.num_suffix)
        names = set(matched.state_dict())
        spectral = {n for n in model().state_dict() if n.startswith(("tokenizer.", "fusion."))}
        assert names == set(model().state_dict()) - spectral
        assert matched(batch(), {}).token is None

    def test_the_same_things_stay_home(self):
        matched = MatchedModel(UNetBackbone(2, 1, 2, (4, 8)), PARTS.num_suffix)
        count = lambda m: sum(p.numel() for part in m.personal() for p in part.parameters())  # noqa: E731
        assert count(matched) == count(model())


def test_plain_model_is_the_backbone():
    plain = PlainModel(UNetBackbone(2, 1, 2, (4, 8)))
    torch.testing.assert_close(plain(batch(), {}).prediction, plain.backbone.unet(batch()["image"]))
