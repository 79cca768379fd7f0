"""The inequality on images whose spectra are known, and a small federation from reading to page."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from omnifm.bench.studies import spectra
from tests.conftest import write_site

SIDE = 16


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(spectra, "RESAMPLES", 40)


def wave(rows: int, columns: int, height: float = 1.0) -> torch.Tensor:
    """A cosine of so many periods along each axis."""
    axis = torch.arange(SIDE) / SIDE
    return height * torch.cos(2 * math.pi * (rows * axis[:, None] + columns * axis))


def pair(first: torch.Tensor, second: torch.Tensor, name: str) -> tuple[float, float]:
    """Distance of two images in the low band (radius up to 2 periods here) and in the full spectrum."""
    inside, count = spectra.low_disc(SIDE, 0.25)
    values = spectra.magnitude(torch.stack([first, second]), name) * count.sqrt()
    bands = (values[:, kept] for kept in (inside, torch.ones_like(inside)))
    low, full = (float(spectra.distances(band, name.endswith("unit"))[0, 1]) for band in bands)
    return low, full


@pytest.fixture
def noise():
    return torch.randn(2, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) + 3


class TestDistance:
    def test_of_images_that_differ_in_high_frequencies_is_zero_in_the_low_band(self):
        low, full = pair(wave(1, 0), wave(1, 0) + wave(6, 5), "raw")
        assert low == pytest.approx(0, abs=1e-4)
        assert full == pytest.approx(SIDE / math.sqrt(2), rel=1e-4)

    def test_of_images_that_differ_in_low_frequencies_is_the_same_in_both(self):
        low, full = pair(wave(1, 0) + wave(6, 5), wave(6, 5), "raw")
        assert low == pytest.approx(full, rel=1e-5)

    def test_of_a_wave_is_its_norm(self):
        """Parseval: with norm ortho a cosine of height 1 has norm sqrt(16 * 16 / 2) in both domains."""
        assert pair(wave(2, 0, 1.0), wave(2, 0, 3.0), "raw")[0] == pytest.approx(2 * math.sqrt(128), rel=1e-5)

    def test_of_an_image_that_was_moved_is_zero(self, noise):
        for name in spectra.SPECTRA:
            assert pair(noise[0], noise[0].roll((3, 5), (0, 1)), name) == pytest.approx((0, 0), abs=1e-3)

    @pytest.mark.parametrize("name", list(spectra.SPECTRA))
    def test_sees_the_scale_only_where_nothing_is_normalised(self, noise, name):
        scaled = pair(noise[0], 2 * noise[1], name)
        if name in ("raw", "log"):
            assert scaled != pytest.approx(pair(*noise, name), rel=1e-3)
        else:
            assert scaled == pytest.approx(pair(*noise, name), rel=1e-4)

    @pytest.mark.parametrize("name", [name for name in spectra.SPECTRA if not name.endswith("unit")])
    def test_is_never_longer_in_the_low_band(self, noise, name):
        low, full = pair(*noise, name)
        assert low <= full

    @pytest.mark.parametrize("side", [15, 16])
    def test_of_half_spectra_is_that_of_numpys_whole_ones(self, side):
        images = np.random.default_rng(1).normal(size=(2, side, side))
        one, other = np.abs(np.fft.fft2(images, norm="ortho"))
        frequency = np.fft.fftfreq(side) * 2
        inside = np.hypot(frequency[:, None], frequency) <= 0.5
        expected = np.linalg.norm((one - other)[inside]), np.linalg.norm(one - other)
        kept, count = spectra.low_disc(side, 0.5)
        values = spectra.magnitude(torch.from_numpy(images).float(), "raw") * count.sqrt()
        found = [float(spectra.distances(v, False)[0, 1]) for v in (values[:, kept], values.flatten(1))]
        assert found == pytest.approx(expected, rel=1e-5)
        assert int(count[kept].sum()) == inside.sum()


class TestGroups:
    def test_golden(self):
        """Images at 0, 2 | 10, 14 | 3, 4 on a line: within 2, 4, 1; between 11, 2.5 and 8.5."""
        places = torch.tensor([0.0, 2, 10, 14, 3, 4], dtype=torch.float64)
        owned = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1, 2, 2]), 3).double()
        blocks = spectra.block_means((places[:, None] - places).abs(), owned)
        assert blocks.tolist() == [[2, 11, 2.5], [11, 4, 8.5], [2.5, 8.5, 1]]
        found = spectra.grouped(blocks, ["MR", "CT", "MR"])
        assert found == pytest.approx({"site": 7 / 3, "modality": 2.5, "across": 9.75})

    def test_an_image_drawn_twice_is_no_pair(self):
        """Of 0, 2, 2 (the second image twice) the pairs of different images are 0-2 alone."""
        distance = torch.tensor([[0.0, 2.0], [2.0, 0.0]], dtype=torch.float64)
        pairs = spectra.block_means(distance, torch.tensor([[1.0], [2.0]], dtype=torch.float64))
        assert pairs.item() == 2.0


def sites(high: float, low: float) -> dict[str, list[torch.Tensor]]:
    """Site b differs from a in a high and in a low frequency by these heights; images of a site by noise."""
    draws = torch.Generator().manual_seed(2)
    noise = [0.1 * torch.randn(SIDE, SIDE, generator=draws) for _ in range(12)]
    return {"a": noise[:6], "b": [image + wave(6, 5, high) + wave(1, 0, low) for image in noise[6:]]}


MODALITIES = {"a": "MR", "b": "CT"}


class TestMeasure:
    def test_tells_where_modalities_differ(self):
        """Where they differ in high frequencies only, the low band brings them together, and the other way round."""
        alike = spectra.measure(sites(high=1, low=0), MODALITIES, 0.25).numbers["spectra"]["raw"]
        assert alike["low_over_full"] < alike["even"]
        assert alike["nearer"][0] > 0
        assert alike["apart_low"] == pytest.approx(1, abs=0.2)
        apart = spectra.measure(sites(high=0, low=1), MODALITIES, 0.25).numbers["spectra"]["raw"]
        assert apart["low_over_full"] > apart["even"]
        assert apart["nearer"][1] < 0

    def test_share_of_frequencies(self):
        """Of 16 x 16 frequencies 13 have radius <= 2."""
        assert spectra.measure(sites(1, 1), MODALITIES, 0.25).numbers["low_share_of_frequencies"] == 13 / 256

    def test_rejects_one_modality(self):
        with pytest.raises(ValueError, match="data must hold at least 2 modalities; all sites have the same"):
            spectra.measure(sites(1, 1), {"a": "MR", "b": "MR"}, 0.25)


class TestCosines:
    def test_golden(self):
        """(3, 1) and (1, 3): 0.6 as they are; around their mean (2, 2) they are opposite."""
        found = spectra.cosines(torch.tensor([[3.0, 1.0], [1.0, 3.0]]))
        assert found["before"][0][1] == pytest.approx(0.6)
        assert found["after"][0][1] == pytest.approx(-1)


class TestSquare:
    def test_keeps_the_middle(self):
        image = torch.arange(24.0).reshape(4, 6)
        assert torch.equal(spectra.square(image, 4), image[:, 1:5])

    def test_shrinking_keeps_the_mean_and_drops_what_would_alias(self):
        """A wave of 7 periods in 16 pixels has no place in 8: it must not come back as a slow one."""
        small = spectra.square(5 + wave(0, 7), 8)
        assert small.shape == (8, 8)
        assert (small[:, 2:-2] - 5).abs().max() < 0.1


class TestRun:
    def test_writes_numbers_table_and_page(self, tmp_path):
        for number, code in enumerate(("MR", "CT", "MR"), 1):
            folder = write_site(tmp_path / f"data/site-{number}", seed=number)
            record = json.loads((folder / "dataset.json").read_text())
            (folder / "dataset.json").write_text(json.dumps(record | {"modality": {"0": code}}))
        result = spectra.run(tmp_path / "data", tmp_path / "out", limit=3)
        assert json.loads((tmp_path / "out/spectra.json").read_text()) == result
        assert result["sites"]["site-2"] == {"modality": "CT", "num_images": 3}
        assert result["side"] == 16
        assert set(result["spectra"]) == set(spectra.SPECTRA)
        text = (tmp_path / "out/spectra.md").read_text()
        assert all(f"| {name} |" in text for name in spectra.SPECTRA)
        page = (tmp_path / "out/spectra.html").read_text()
        assert "http://" not in page.replace("http://www.w3.org", "")
        assert "data:image/png" in page

    def test_rejects_one_site(self, tmp_path):
        write_site(tmp_path / "site-1")
        with pytest.raises(ValueError, match=r"data must hold at least 2 sites with a dataset\.json; got 1"):
            spectra.run(tmp_path, tmp_path / "out")

    @pytest.mark.parametrize(("limit", "keep"), [(1, 0.25), (2, 0.0), (2, 1.0)])
    def test_rejects_arguments_out_of_range(self, tmp_path, limit, keep):
        with pytest.raises(ValueError, match=r"limit must be at least 2 and keep in \(0, 1\); got"):
            spectra.run(tmp_path, tmp_path / "out", limit=limit, keep=keep)

    def test_rejects_a_site_without_a_pair(self, tmp_path):
        folder = write_site(tmp_path / "site-1")
        for file in sorted((folder / "images").iterdir())[1:]:
            file.write_bytes(b"no image")
        with pytest.raises(ValueError, match="must hold at least 2 readable training images; 'site-1' has 1"):
            spectra.read_site(folder, 5, 0)


def test_the_drawn_plane_is_numpys_whole_spectrum():
    from omnifm.bench.studies.spectra_page import _plane

    for side in (7, 8):
        image = np.random.default_rng(3).normal(size=(side, side)).astype(np.float32)
        whole = np.fft.fftshift(np.abs(np.fft.fft2(image, norm="ortho")))
        half = spectra.magnitude(torch.from_numpy(image)[None], "raw")[0]
        np.testing.assert_allclose(_plane(half).numpy(), whole, atol=1e-5)
