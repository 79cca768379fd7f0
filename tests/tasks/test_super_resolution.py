import json

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from torch.nn import functional as F

from omnifm.backbones.edsr import bicubic
from omnifm.config import Experiment
from omnifm.data.datalist import read_datalist
from omnifm.data.demo import demo_site, make_site
from omnifm.data.demos.super_resolution import CASES_PER_SPLIT, SIDES
from omnifm.data.volume import RefusedImage
from omnifm.plugins import load_task
from omnifm.tasks.super_resolution import Patch, degraded
from tests.conftest import experiment


def task(model=None, **settings):
    section = {"name": "super_resolution", **settings}
    record = {**experiment().__dict__, "task": section, "model": model or {"channels": 8, "num_blocks": 1}}
    record |= {"data": {"name": "tiny"}, "train": {"num_rounds": 1, "local_epochs": 1, "batch_size": 8, "lr": 0.001}}
    return load_task(Experiment.from_json(json.dumps(record)))


def picture(tmp_path, size=(70, 53), colour=True):
    """Columns and rows; smooth, as photographs are."""
    pixels = np.random.default_rng(0).normal(size=(size[1], size[0], 3))
    smooth = F.avg_pool2d(torch.from_numpy(pixels).permute(2, 0, 1), 5, 1, 2, count_include_pad=False)
    pixels = (128 + 250 * smooth).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    file = tmp_path / f"{size}{colour}.png"
    Image.fromarray(pixels if colour else pixels[..., 0]).save(file)
    return {"image": file}


def configured(one, *cases):
    one.configure(one.agree({"s": one.facts([one.case_facts(case) for case in cases], {})}))
    return one


class TestRead:
    def test_grey_levels_of_8_bits_are_divided_by_255(self, tmp_path):
        Image.fromarray(np.full((16, 20), 51, np.uint8)).save(tmp_path / "i.png")
        array = task().read({"image": tmp_path / "i.png"}, {})["array"]
        assert array.shape == (20, 16, 1)
        assert np.allclose(array, 0.2)

    @pytest.mark.parametrize(("low", "high"), [(100, 4000), (0.0, 1.0), (-1000.0, 200.0)])
    def test_other_levels_are_stretched_over_their_own_range(self, tmp_path, low, high):
        levels = np.linspace(low, high, 20 * 18).reshape(1, 20, 18).astype(np.float32)
        np.savez(tmp_path / "i.npz", images=levels)
        array = task().read({"image": tmp_path / "i.npz#0"}, {})["array"]
        assert (array.min(), array.max()) == (0.0, 1.0)

    def test_a_constant_picture_can_be_read(self, tmp_path):
        np.savez(tmp_path / "i.npz", images=np.full((1, 20, 18), 3000, np.uint16))
        assert not task().read({"image": tmp_path / "i.npz#0"}, {})["array"].any()

    @pytest.mark.parametrize(("scale", "least"), [(2, 16), (4, 32), (8, 64)])
    def test_refuses_what_is_too_small_for_the_scale(self, tmp_path, scale, least):
        item = picture(tmp_path, (least - 1, 90))
        with pytest.raises(
            RefusedImage, match=f"{least} pixels along each side for scale {scale}; got {least - 1} x 90"
        ):
            task(scale=scale).read(item, {})
        assert task(scale=scale).read(picture(tmp_path, (least, least)), {})

    def test_refuses_volumes(self, tmp_path):
        nibabel.save(nibabel.Nifti1Image(np.zeros((20, 20, 5), np.float32), np.eye(4)), tmp_path / "v.nii.gz")
        with pytest.raises(RefusedImage, match="image must be one grey or RGB picture; got 20 x 20 x 5"):
            task().read({"image": tmp_path / "v.nii.gz"}, {})


class TestDegraded:
    @pytest.mark.parametrize("scale", [2, 4, 8])
    def test_is_keys_cubic_stretched_by_the_scale(self, scale):
        """Antialiasing written out: Keys' kernel with a = -0.5, as wide as the scale, normalised at the edges."""
        signal = torch.rand(8 * scale)
        expected = []
        for index in range(8):
            centre = (index + 0.5) * scale - 0.5
            x = (torch.arange(8 * scale) - centre).abs() / scale
            near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            weights = torch.where(x <= 1, near, torch.where(x < 2, far, 0 * x))
            expected.append((weights * signal).sum() / weights.sum())
        small = degraded(signal[None, None, :, None].expand(1, 1, -1, 8 * scale).contiguous(), scale)
        stored = (torch.stack(expected).clamp(0, 1) * 255).round() / 255
        assert (small[0, 0, :, 0] - stored).abs().max() <= 1.01 / 255

    def test_is_what_a_file_of_8_bits_can_hold(self):
        small = degraded(torch.rand(1, 3, 32, 24), 2) * 255
        torch.testing.assert_close(small, small.round(), atol=1e-4, rtol=0)
        assert small.min() >= 0 and small.max() <= 255

    def test_a_flat_picture_stays_flat(self):
        assert torch.allclose(degraded(torch.full((1, 1, 16, 16), 0.4), 4), torch.tensor(0.4))

    def test_flipped_before_or_after_is_the_same(self):
        """So augmentation may flip the pair instead of degrading a flipped original."""
        original = torch.rand(1, 1, 32, 24)
        torch.testing.assert_close(
            degraded(original.flip(2), 2), degraded(original, 2).flip(2), atol=1.01 / 255, rtol=0
        )


class TestPrepare:
    @pytest.mark.parametrize("scale", [2, 4, 8])
    def test_odd_sizes_are_cut_to_a_multiple_of_the_scale(self, tmp_path, scale):
        one = task(scale=scale)
        case = one.read(picture(tmp_path, (101, 75)), {})
        prepared = configured(one, case).prepare(case)
        x, y = 101 // scale, 75 // scale
        assert prepared["image"].shape == (3, x, y)
        assert prepared["original"].shape == (3, x * scale, y * scale)
        assert np.array_equal(prepared["original"].numpy()[0], case["array"][: x * scale, : y * scale, 0, 0])

    def test_grey_joins_colour(self, tmp_path):
        one = task()
        cases = [one.read(picture(tmp_path, colour=colour), {}) for colour in (True, False)]
        prepared = configured(one, *cases).prepare(cases[1])
        assert prepared["image"].shape[0] == 3
        assert torch.equal(prepared["original"][0], prepared["original"][2])

    def test_a_patch_is_no_larger_than_half_the_pictures(self):
        facts = {"a": {"channels": 1, "side": 300}, "b": {"channels": 1, "side": 61}}
        assert task(patch_size=96).agree(facts)["patch"] == [56, 56]
        assert task(patch_size=48).agree(facts)["patch"] == [48, 48]


class TestSamples:
    @pytest.mark.parametrize(("scale", "size"), [(2, (70, 53)), (4, (70, 53)), (4, (33, 90))])
    def test_small_and_original_show_the_same_place(self, tmp_path, scale, size):
        """Also where the picture is smaller than the patch and was mirrored: up to the edge they agree."""
        one = task(scale=scale, patch_size=48)
        case = one.read(picture(tmp_path, size), {})
        prepared = configured(one, case).prepare(case)
        one.spec["patch"] = [48, 48]
        augment = one.augment().set_random_state(0)
        for _ in range(8):
            sample = augment(dict(prepared))
            assert sample["image"].shape[1:] == (48 // scale, 48 // scale)
            assert sample["original"].shape[1:] == (48, 48)
            again = degraded(sample["original"][None], scale)[0]
            assert (again - sample["image"])[:, 2:-2, 2:-2].abs().max() < 0.06

    def test_every_place_is_drawn(self):
        case = {"image": torch.arange(16.0).reshape(1, 4, 4), "original": torch.zeros(1, 8, 8)}
        crop = Patch([2, 2], 2).set_random_state(0)
        assert {float(crop(case)["image"][0, 0, 0]) for _ in range(300)} == {0, 1, 2, 4, 5, 6, 8, 9, 10}


class TestEvaluation:
    def prepared(self, tmp_path, size=(70, 53), scale=2, colour=True):
        self.task = task(scale=scale)
        case = self.task.read(picture(tmp_path, size, colour), {})
        return configured(self.task, case).prepare(case)

    def test_an_untrained_network_scores_as_bicubic(self, tmp_path):
        prepared = self.prepared(tmp_path)
        network = self.task.backbone()
        with torch.no_grad():
            scores = self.task.score(lambda batch: network.decode(*network.encode(batch), batch), prepared)
        assert scores["psnr"] == pytest.approx(scores["psnr_bicubic"])
        assert scores["ssim"] == pytest.approx(scores["ssim_bicubic"])

    @pytest.mark.parametrize("scale", [2, 4])
    def test_scores_agree_with_a_reference(self, tmp_path, scale):
        """Grey, no border of the scale's width, data range 1: scikit-image on Pillow's pixels."""
        prepared = self.prepared(tmp_path, scale=scale, colour=False)
        pixels = np.asarray(Image.open(tmp_path / "(70, 53)False.png"), dtype=np.float64).T / 255
        x, y = (side // scale * scale for side in pixels.shape)
        inside = (slice(scale, x - scale), slice(scale, y - scale))
        plain = bicubic(prepared["image"][None], scale).clamp(0, 1)[0, 0].double().numpy()
        expected = peak_signal_noise_ratio(pixels[inside], plain[inside], data_range=1.0)
        scores = self.task.score(lambda batch: torch.zeros(1, 1, x, y), prepared)
        assert scores["psnr_bicubic"] == pytest.approx(expected, rel=1e-5)
        assert scores["psnr"] == pytest.approx(-10 * np.log10((pixels[inside] ** 2).mean()), rel=1e-5)

    def test_perfection_has_ssim_1_and_no_psnr(self, tmp_path):
        prepared = self.prepared(tmp_path)
        scores = self.task.score(lambda batch: prepared["original"][None], prepared)
        assert (scores["psnr"], scores["ssim"]) == (None, pytest.approx(1.0))

    def test_large_pictures_are_tiled_without_a_trace(self, tmp_path, monkeypatch):
        """Bicubic enlargement sees two pixels around each: tiles agree with the whole but for that much."""
        prepared = self.prepared(tmp_path, size=(150, 90))
        monkeypatch.setattr("omnifm.tasks.super_resolution.TILE", 32)
        seen = []

        def forward(batch):
            seen.extend(tuple(image.shape[1:]) for image in batch["image"])
            return bicubic(batch["image"], 2)

        tiled, whole = self.task.predict(forward, prepared), bicubic(prepared["image"][None], 2)[0].clamp(0, 1).numpy()
        assert tiled.shape == whole.shape
        assert set(seen) == {(32, 32)} and len(seen) > 3
        assert np.abs(tiled - whole).mean() < 0.005
        assert np.quantile(np.abs(tiled - whole), 0.6) < 1e-4

    def test_the_picture_is_upright_and_threefold(self, tmp_path):
        prepared = self.prepared(tmp_path, size=(70, 53))
        drawn = self.task.picture(lambda batch: torch.zeros(1, 3, 70, 52), prepared)
        assert drawn.shape == (52 * 3 + 16, 3 * 70 * 3, 3)
        pixels = np.asarray(Image.open(tmp_path / "(70, 53)True.png"))[:52]
        assert np.array_equal(drawn[: 52 * 3, 2 * 70 * 3 :][1::3, 1::3], pixels)
        assert not drawn[: 52 * 3, 70 * 3 : 2 * 70 * 3].any()

    @pytest.mark.parametrize("scale", [4, 8])
    def test_it_learns_and_a_whole_round_fits_the_other_scales(self, tmp_path, scale):
        prepared = self.prepared(tmp_path, size=(96, 80), scale=scale)
        assert self.task.view(prepared).shape == (3, 80 // scale, 80 // scale)
        network = self.task.backbone()
        batch = {key: value[None] for key, value in prepared.items()}
        optimizer, losses = torch.optim.Adam(network.parameters(), lr=3e-4), []
        for _ in range(12):
            optimizer.zero_grad()
            losses.append(self.task.loss(network.decode(*network.encode(batch), batch), batch))
            losses[-1].backward()
            optimizer.step()
        assert losses[-1] < losses[0]


class TestDemo:
    def test_sites_take_turns_in_modality(self):
        found = []
        for number in range(1, 4):
            datalist = read_datalist(demo_site("super_resolution", f"site-{number}"), required=("image",))
            cases = [task().read(item, {}) for item in datalist.training[:6]]
            found.append((datalist.modality["0"], task().case_facts(cases[0])["channels"]))
            assert [len(split) for split in datalist.splits().values()] == list(CASES_PER_SPLIT.values())
            assert all(SIDES[0] <= side < SIDES[1] for case in cases for side in case["array"].shape[:2])
            assert len({case["array"].shape for case in cases}) > 1
        assert found == [("SM", 3), ("MR", 1), ("SM", 3)]

    def test_same_seed_same_pixels(self, tmp_path):
        for name in ("a", "b"):
            make_site("super_resolution", "site-2", tmp_path / name)
        one, two = (sorted((tmp_path / name / "images").iterdir()) for name in ("a", "b"))
        assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_real_pictures_are_read(shared_data):
    files = sorted((shared_data / "native/breakhis").glob("*.png"))[:3]
    one = task()
    cases = [one.read({"image": file}, {}) for file in files]
    prepared = configured(one, *cases).prepare(cases[0])
    assert prepared["original"].shape == (3, 256, 256)
    scores = one.score(lambda batch: bicubic(batch["image"], 2), prepared)
    assert 25 < scores["psnr_bicubic"] < 45
