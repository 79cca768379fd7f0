import json

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from omnifm.data.datalist import read_datalist
from omnifm.data.demo import demo_site
from omnifm.data.volume import RefusedImage
from omnifm.metrics.fusion import fusion_scores
from omnifm.tasks.image_fusion import (
    ImageFusion,
    Model,
    Settings,
    joined_chroma,
    luminance_chroma,
    preservation,
    recombined,
)

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (61, 50), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (61, 50, 3), dtype=np.uint8)


def pair(folder, a, b):
    for name, pixels in (("a", a), ("b", b)):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return {"image_a": folder / "a.png", "image_b": folder / "b.png"}


def slices(folder, a, b, affine_a=None, affine_b=None):
    """The same as NIfTI."""
    for name, array, affine in (("a", a, affine_a), ("b", b, affine_b)):
        placed = np.diag([1.0, 1.0, 3.0, 1.0]) if affine is None else affine
        nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), placed), folder / f"{name}.nii.gz")
    return {"image_a": folder / "a.nii.gz", "image_b": folder / "b.nii.gz"}


def configured(case, **settings):
    task = ImageFusion(Settings(**settings), Model(growth=2, decoder=(3,)))
    task.configure(task.agree({"s": task.facts([task.case_facts(case)], {})}))
    return task


def read(item):
    return ImageFusion(Settings(), Model()).read(item, {})


def average(batch):
    return batch["image"].mean(dim=1, keepdim=True)


class TestRead:
    def test_a_grey_and_a_coloured_picture_are_two_luminances(self, tmp_path):
        case = read(pair(tmp_path, COLOUR, GREY))
        assert case["luminance"].shape == (2, 50, 61)
        expected = np.array(Image.fromarray(COLOUR).convert("L")).T / 255  # Pillow rounds to whole levels
        np.testing.assert_allclose(case["luminance"][0], expected, atol=0.6 / 255)
        np.testing.assert_allclose(case["luminance"][1], GREY.T / 255, rtol=1e-6)
        assert not case["chroma"][1].any()
        assert case["chroma"][0].any()

    def test_other_values_than_a_pictures_run_between_percentiles(self, tmp_path):
        units = np.linspace(-1000, 3000, 2500).reshape(50, 50, 1)
        case = read(slices(tmp_path, units, 7 * units))
        assert case["luminance"].min() == 0.0
        assert case["luminance"].max() == 1.0
        np.testing.assert_allclose(case["luminance"][0], case["luminance"][1], atol=1e-5)
        assert case["luminance"][0].mean() == pytest.approx(0.5, abs=1e-3)

    def test_one_slice_stored_in_two_directions_is_registered(self, tmp_path):
        array = RNG.normal(size=(50, 60, 1))
        turned = np.diag([-1.0, -1.0, 3.0, 1.0])
        turned[:2, 3] = 49, 59
        case = read(slices(tmp_path, array, array[::-1, ::-1], affine_b=turned))
        np.testing.assert_array_equal(case["luminance"][0], case["luminance"][1])

    def test_refuses_sizes_that_differ_naming_both(self, tmp_path):
        with pytest.raises(RefusedImage, match="must have the same size; got 50x61x1 and 49x61x1") as refusal:
            read(pair(tmp_path, GREY, GREY[:, 1:]))
        assert refusal.value.reason == "bad_geometry"

    def test_refuses_volumes_and_thumbnails(self, tmp_path):
        with pytest.raises(RefusedImage, match="single slices of at least 41x41 pixels; got 50x50x2"):
            read(slices(tmp_path, np.zeros((50, 50, 2)), np.zeros((50, 50, 2))))
        with pytest.raises(RefusedImage, match="single slices of at least 41x41 pixels; got 40x61x1"):
            read(pair(tmp_path, GREY[:, :40], GREY[:, :40]))

    @pytest.mark.parametrize("first", ["image_a", "image_b"])
    def test_refuses_a_picture_beside_a_section(self, tmp_path, first):
        """A section in DICOM's directions and the PNG of its own pixels would be turned against each other."""
        pictures = pair(tmp_path, GREY, GREY)
        sections = slices(tmp_path, GREY.T[..., None], GREY.T[..., None], *[np.diag([-1.0, -1.0, 3.0, 1.0])] * 2)
        for same in (pictures, sections):
            case = read(same)
            np.testing.assert_array_equal(case["luminance"][0], case["luminance"][1])
        with pytest.raises(RefusedImage, match="both images of a pair must say where they lie, or neither") as refusal:
            read(pictures | {first: sections[first]})
        assert refusal.value.reason == "bad_geometry"

    def test_a_picture_that_knows_its_pixels_size_is_one_still(self, tmp_path):
        """As a DICOM picture, say a screenshot of a PET, does."""
        item = pair(tmp_path, GREY, GREY)
        shot = slices(tmp_path, GREY.T[..., None], GREY.T[..., None], *[np.diag([0.5, 0.5, 1.0, 1.0])] * 2)
        case = read(item | {"image_b": shot["image_b"]})
        assert np.corrcoef(case["luminance"].reshape(2, -1))[0, 1] > 0.99

    def test_refuses_slices_that_lie_elsewhere(self, tmp_path):
        array, shifted = RNG.normal(size=(50, 50, 1)), np.diag([1.0, 1.0, 3.0, 1.0])
        shifted[0, 3] = 0.05
        read(slices(tmp_path, array, array, affine_b=shifted))
        shifted[0, 3] = 0.5
        with pytest.raises(RefusedImage, match=r"one grid, corners within 0.1 pixels; got 0\.50"):
            read(slices(tmp_path, array, array, affine_b=shifted))


class TestColour:
    def test_there_and_back(self):
        shades = COLOUR.astype(np.float32) / 255
        assert np.abs(recombined(*luminance_chroma(shades)).astype(int) - COLOUR.astype(int)).max() <= 1

    def test_is_pillows_ycbcr(self):
        luminance, chroma = luminance_chroma(COLOUR.astype(np.float32) / 255)
        theirs = np.array(Image.fromarray(COLOUR).convert("YCbCr")).astype(float)
        np.testing.assert_allclose(255 * luminance, theirs[..., 0], atol=1.1)
        np.testing.assert_allclose(255 * chroma + 128, np.moveaxis(theirs[..., 1:], -1, 0), atol=1.1)

    def test_beside_grey_a_colour_is_kept_and_two_colours_meet(self):
        _, chroma = luminance_chroma(COLOUR.astype(np.float32) / 255)
        np.testing.assert_allclose(joined_chroma(np.stack([chroma, 0 * chroma])), chroma, atol=1e-6)
        ones = np.ones((2, 1, 1))
        np.testing.assert_allclose(joined_chroma(np.stack([0.3 * ones, -0.1 * ones])), (0.09 - 0.01) / 0.4 * ones)


class TestAgree:
    def test_sites_with_other_channels_and_sizes_federate(self, tmp_path):
        task = ImageFusion(Settings(patch_size=64), Model())
        facts = {}
        for site, pixels in (("site-1", GREY), ("site-2", COLOUR[:, :45])):
            (tmp_path / site).mkdir()
            case = read(pair(tmp_path / site, pixels, pixels))
            facts[site] = task.facts([json.loads(json.dumps(task.case_facts(case)))], {})
        assert task.agree(facts) == {"dims": 2, "channels": 2, "patch": [64, 64]}
        assert task.agree({"site": {"longest_side": 45}})["patch"] == [48, 48]


class TestPreservation:
    def test_golden(self):
        """Mean squared eight-neighbour Laplacian over five scales, by loops."""
        pictures = RNG.random((2, 32, 32))

        def energy(picture):
            total = 0.0
            for _ in range(5):
                padded, side = np.pad(picture, 1, mode="reflect"), len(picture)
                boxes = [[padded[x : x + 3, y : y + 3] for y in range(side)] for x in range(side)]
                total += np.mean([[((box.sum() - box[1, 1]) / 8 - box[1, 1]) ** 2 for box in row] for row in boxes])
                picture = picture.reshape(side // 2, 2, side // 2, 2).mean(axis=(1, 3))
            return total / 5

        raised = np.exp([energy(picture) / 0.02 for picture in pictures])
        found = preservation(torch.from_numpy(pictures)[None].float(), 0.02)
        np.testing.assert_allclose(found[0], raised / raised.sum(), rtol=1e-4)

    def test_detail_weighs_more_and_temperature_evens_it_out(self):
        image = torch.rand(1, 2, 64, 64) * torch.tensor([1.0, 0.1]).reshape(1, 2, 1, 1)
        cold, warm = (preservation(image, temperature)[0, 0] for temperature in (0.01, 10.0))
        assert cold > 0.9
        assert 0.5 < warm < 0.51

    def test_equal_sources_weigh_the_same(self):
        image = torch.rand(3, 1, 48, 48).expand(3, 2, 48, 48)
        torch.testing.assert_close(preservation(image, 0.01), torch.full((3, 2), 0.5))


class TestLoss:
    TASK = ImageFusion(Settings(), Model())

    def test_is_zero_for_a_copy_of_two_equal_sources(self):
        source = torch.rand(2, 1, 48, 48)
        batch = {"image": source.expand(2, 2, 48, 48)}
        assert self.TASK.loss(source, batch).item() == pytest.approx(0.0, abs=1e-5)
        assert self.TASK.loss(1 - source, batch).item() > 1.0

    def test_golden(self):
        """Flat sources a and b weigh 1/2 each; SSIM is (2 f a + 0.01^2) / (f^2 + a^2 + 0.01^2)."""
        a, b, f = 0.2, 0.6, 0.5
        ssim = [(2 * f * s + 1e-4) / (f * f + s * s + 1e-4) for s in (a, b)]
        expected = np.mean([1 - ssim[i] + 20 * (f - s) ** 2 for i, s in enumerate((a, b))])
        image = torch.tensor([a, b]).reshape(1, 2, 1, 1).expand(1, 2, 32, 32)
        found = self.TASK.loss(torch.full((1, 1, 32, 32), f), {"image": image})
        assert found.item() == pytest.approx(expected, rel=1e-4)

    def test_swapping_the_sources_changes_nothing(self):
        image, fused = torch.rand(2, 2, 48, 48), torch.rand(2, 1, 48, 48)
        torch.testing.assert_close(
            self.TASK.loss(fused, {"image": image}), self.TASK.loss(fused, {"image": image.flip(1)})
        )

    def test_leans_to_the_source_with_more_detail(self):
        image = torch.rand(1, 2, 48, 48) * torch.tensor([1.0, 0.1]).reshape(1, 2, 1, 1)
        a, b = image.split(1, dim=1)
        assert self.TASK.loss(a, {"image": image}) < self.TASK.loss(b, {"image": image})


class TestSamples:
    def test_sources_stay_together_and_lose_their_order(self, tmp_path):
        """Source b is the negative of a: after every crop, flip and swap the two still sum to white."""
        case = read(pair(tmp_path, GREY // 2, 255 - GREY // 2))
        task = configured(case, patch_size=48)
        augment, first_is_dark = task.augment().set_random_state(0), set()
        for _ in range(8):
            sample = augment(task.prepare(case))
            assert sample.keys() == {"image"}
            assert tuple(sample["image"].shape) == (2, 48, 48)
            torch.testing.assert_close(sample["image"].sum(dim=0).as_tensor(), torch.ones(48, 48))
            first_is_dark.add(bool(sample["image"][0].mean() < 0.5))
        assert first_is_dark == {True, False}

    def test_the_view_is_fixed_and_small_pictures_are_padded_at_the_end(self, tmp_path):
        task = configured(read(pair(tmp_path, GREY, GREY)), patch_size=64)
        case = read(pair(tmp_path, GREY, GREY))
        prepared = task.prepare(case)
        assert tuple(task.view(prepared).shape) == (2, 64, 64)
        assert torch.equal(task.view(prepared), task.view(prepared))
        np.testing.assert_array_equal(prepared["image"][:, :50, :61], case["luminance"])
        assert prepared["image"].sum() == pytest.approx(case["luminance"].sum(), rel=1e-5)


class TestEvaluation:
    def test_the_average_scores_as_its_baseline(self, tmp_path):
        case = read(pair(tmp_path, COLOUR, GREY))
        task = configured(case)
        scores = task.score(average, task.prepare(case))
        assert list(scores) == list(task.metrics)
        for name in ("ssim", "vif", "l1", "mi", "qabf"):
            assert scores[name] == pytest.approx(scores[f"{name}_average"], rel=1e-4)
        a, b = case["luminance"]
        assert scores["vif_max"] == pytest.approx(fusion_scores(np.maximum(a, b), a, b)["vif"])

    def test_validation_picks_by_ssim_and_l1_counts_downwards(self):
        assert next(iter(ImageFusion.metrics.items())) == ("ssim", True)
        assert [name for name, higher in ImageFusion.metrics.items() if not higher] == ["l1", "l1_average", "l1_max"]

    def test_is_fused_on_its_own_grid_in_windows_where_it_is_long(self, tmp_path):
        pixels = RNG.integers(0, 256, (71, 150), dtype=np.uint8)
        case = read(pair(tmp_path, pixels, pixels[::-1]))
        task, seen = configured(case, window_size=64), []

        def forward(batch):
            seen.extend(tuple(image.shape[1:]) for image in batch["image"])
            return average(batch)

        fused = task.predict(forward, task.prepare(case))
        assert len(seen) > 3
        assert set(seen) == {(64, 64)}
        np.testing.assert_allclose(fused, case["luminance"].mean(axis=0), atol=1e-5)

    def test_the_network_takes_odd_sizes(self, tmp_path):
        case = read(pair(tmp_path, GREY, GREY))
        task = configured(case)
        backbone = task.backbone()
        with torch.no_grad():
            fused = task.predict(lambda b: backbone.decode(*backbone.encode(b), b), task.prepare(case))
        assert fused.shape == (50, 61)

    def test_pictures_show_both_sources_and_the_fused_one_in_colour(self, tmp_path):
        case = read(pair(tmp_path, COLOUR, GREY))
        task = configured(case)
        drawn = task.picture(average, task.prepare(case))
        assert drawn.dtype == np.uint8
        a, b, fused = np.split(drawn, 3, axis=1)
        assert np.abs(a.astype(int) - COLOUR.astype(int)).max() <= 1
        np.testing.assert_array_equal(b, np.repeat(GREY[..., None], 3, axis=2))
        assert (fused.std(axis=2) > 5).any()


class TestDemo:
    @pytest.fixture(scope="class")
    def cache(self, tmp_path_factory):
        return tmp_path_factory.mktemp("demo")

    @pytest.mark.parametrize(
        ("number", "code", "coloured"), [(1, "CT", False), (2, "PT", True), (3, "NM", True), (4, "CT", False)]
    )
    def test_each_site_has_its_own_pair(self, cache, number, code, coloured):
        site = demo_site("image_fusion", f"site-{number}", cache=cache)
        datalist = read_datalist(site, required=ImageFusion.required)
        assert datalist.source == "demo"
        assert [len(split) for split in datalist.splits().values()] == [12, 4, 5]
        item = datalist.training[0]
        assert (item["modality_a"], item["modality_b"], item["modality"]) == (code, "MR", f"{code} MR")
        case = read(item)
        assert bool(case["chroma"].any()) == coloured
        assert np.corrcoef(*(y.ravel() > 0.05 for y in case["luminance"]))[0, 1] > 0.6, "the two lie on each other"

    def test_same_seed_same_bytes(self, cache, tmp_path):
        folders = [demo_site("image_fusion", "site-2", cache=where) for where in (cache, tmp_path)]
        first, again = ({f.relative_to(folder): f.read_bytes() for f in folder.rglob("*.*")} for folder in folders)
        assert first == again
        assert len(first) == 2 * 21 + 1


@pytest.mark.parametrize(
    ("kind", "other", "coloured"), [("CT-MRI", "CT", False), ("PET-MRI", "PET", True), ("SPECT-MRI", "SPECT", True)]
)
def test_real_pairs_are_read(shared_data, kind, other, coloured):
    folder = shared_data / "native" / "harvard" / kind
    name = sorted(file.name for file in (folder / "MRI").iterdir())[0]
    case = read({"image_a": folder / other / name, "image_b": folder / "MRI" / name})
    assert case["luminance"].shape == (2, 256, 256)
    assert bool(case["chroma"][0].any()) == coloured
    assert not case["chroma"][1].any()
    assert json.loads(json.dumps(ImageFusion(Settings(), Model()).case_facts(case))) == {"shape": [256, 256]}
