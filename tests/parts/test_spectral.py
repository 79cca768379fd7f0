"""Tests of omnifm/parts/spectral.py."""

import math

import numpy as np
import pytest
import torch

from omnifm.parts.spectral import SpectralTokenizer, low_band, radial_bands


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numpy_box(image: np.ndarray, keep: float) -> np.ndarray:
    """The full transform, then the crop, frequency by frequency."""
    axes = tuple(range(2, image.ndim))
    spectrum = np.abs(np.fft.fftn(image.astype(np.float64), axes=axes, norm="ortho"))
    for axis in axes:
        size = image.shape[axis]
        k = np.round(np.fft.fftfreq(size, 1 / size)).astype(int)
        inside = np.abs(k) <= keep * size / 2 + 1e-9
        if axis == axes[-1]:
            # rfft keeps 0 .. K and writes Nyquist as positive.
            inside &= (k >= 0) | (2 * k == -size)
        spectrum = np.take(spectrum, np.flatnonzero(inside), axis=axis)
    return spectrum


def numpy_bands(image: np.ndarray, num_bands: int, keep: float) -> np.ndarray:
    """Section 1 of algorithm.md by loops over the full spectrum of one sample (c, *space)."""
    space = image.shape[1:]
    magnitude = np.abs(np.fft.fftn(image.astype(np.float64), axes=tuple(range(1, image.ndim)), norm="ortho"))
    log = np.log1p(magnitude).mean(axis=0)
    step = keep / (num_bands - 1)
    width = max(step, min(2 / n for n in space if np.floor(keep * n / 2) > 0))
    top, bottom = np.zeros(num_bands), np.zeros(num_bands)
    for index in np.ndindex(*space):
        k = [min(i, n - i) / (n / 2) for i, n in zip(index, space, strict=True)]
        radius = np.sqrt(np.sum(np.square(k)))
        if 0 < radius <= keep + 1e-9:
            for band in range(1, num_bands):
                weight = max(0.0, 1 - abs(radius - band * step) / width)
                top[band] += weight * log[index]
                bottom[band] += weight
    bands = np.concatenate([[log.flat[0]], top[1:] / bottom[1:]])
    return bands / np.sqrt(np.mean(bands[1:] ** 2))


def blobs(size: tuple[int, ...], spacing_mm: tuple[float, ...]) -> torch.Tensor:
    """Three Gaussian organs in millimetres, sampled on a grid."""
    axes = [(torch.arange(n) - (n - 1) / 2) * mm for n, mm in zip(size, spacing_mm, strict=True)]
    grid = torch.meshgrid(*axes, indexing="ij")

    def organ(centre: tuple[float, ...], width: tuple[float, ...]) -> torch.Tensor:
        parts = zip(grid, centre, width, strict=True)
        return torch.exp(-sum(((x - c) / w) ** 2 for x, c, w in parts) / 2)

    image = organ((0, 0, 0), (30, 25, 20)) + 0.7 * organ((20, 10, -5), (6, 9, 7))
    return (image - 0.5 * organ((-15, 0, 10), (8, 5, 6)))[None, None]


class TestLowBand:
    def test_golden(self):
        """A column wave 0 1 0 1 is mean 1/2 plus the highest frequency: 4 x 4 ortho gives DC = 16/2/4 = 2."""
        wave = torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat(4, 1)[None, None]
        expected = torch.zeros(1, 1, 3, 2)
        expected[..., 0, 0] = 2.0
        torch.testing.assert_close(low_band(wave, keep=0.5), expected)

    @pytest.mark.parametrize("keep", [0.1, 0.25, 0.6, 1.0])
    @pytest.mark.parametrize("size", [(28, 28), (31, 17), (16, 12, 20), (9, 24, 5), (32, 1, 16), (16, 16, 1), (1, 8)])
    def test_equals_full_transform_and_crop(self, size: tuple[int, ...], keep: float):
        image = noise(2, 3, *size)
        expected = torch.from_numpy(numpy_box(image.numpy(), keep)).float()
        torch.testing.assert_close(low_band(image, keep), expected, atol=1e-5, rtol=0)

    def test_equals_full_transform_and_crop_of_64_cube(self):
        image = noise(1, 1, 64, 64, 64)
        expected = torch.from_numpy(numpy_box(image.numpy(), 0.25)).float()
        torch.testing.assert_close(low_band(image, 0.25), expected, atol=1e-5, rtol=0)

    def test_computes_half_precision_in_float32(self):
        image = noise(1, 1, 16, 16)
        assert low_band(image.bfloat16(), 0.5).dtype == torch.float32
        torch.testing.assert_close(low_band(image.half(), 0.5), low_band(image.half().float(), 0.5))

    @pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, float("nan")])
    def test_rejects_keep_outside_range(self, keep: float):
        with pytest.raises(ValueError, match=r"keep must be in \(0, 1\]; got"):
            low_band(noise(1, 1, 8, 8), keep)

    @pytest.mark.parametrize("shape", [(1, 1, 8), (1, 1, 4, 4, 4, 4), (1, 0, 8, 8)])
    def test_rejects_other_axes(self, shape: tuple[int, ...]):
        with pytest.raises(ValueError, match="image must be"):
            low_band(torch.zeros(shape), 0.5)


class TestRadialBands:
    @pytest.mark.parametrize(
        ("shape", "num_bands", "keep"),
        [
            ((1, 2, 28, 28), 32, 0.25),
            ((1, 1, 33, 20), 8, 1.0),
            ((1, 1, 12, 16, 10), 6, 0.5),
            ((1, 3, 16, 16), 5, 1.0),
        ],
    )
    def test_golden(self, shape: tuple[int, ...], num_bands: int, keep: float):
        image = noise(*shape)
        expected = torch.from_numpy(numpy_bands(image[0].numpy(), num_bands, keep)).float()
        torch.testing.assert_close(radial_bands(image, num_bands, keep)[0], expected, atol=1e-5, rtol=1e-5)

    def test_non_dc_bands_have_unit_rms(self):
        bands = radial_bands(noise(3, 2, 40, 30))
        torch.testing.assert_close(bands[:, 1:].square().mean(dim=1).sqrt(), torch.ones(3))

    def test_dc_does_not_leak_into_other_bands(self):
        image = noise(1, 1, 28, 28)
        torch.testing.assert_close(radial_bands(image + 5)[:, 1:], radial_bands(image)[:, 1:], atol=1e-4, rtol=0)

    def test_no_axis_is_special(self):
        image = noise(1, 1, 24, 16, 20)
        for order in [(0, 1, 3, 2, 4), (0, 1, 4, 2, 3), (0, 1, 2, 4, 3)]:
            torch.testing.assert_close(radial_bands(image.permute(order)), radial_bands(image), atol=1e-5, rtol=1e-5)

    def test_phase_does_not_matter(self):
        image = noise(1, 1, 32, 32)
        torch.testing.assert_close(radial_bands(image.roll((5, 9), (2, 3))), radial_bands(image), atol=1e-5, rtol=1e-5)

    def test_high_frequencies_do_not_matter(self):
        """cos(pi x) is Nyquist itself, four times the kept radius."""
        image = noise(1, 1, 32, 32)
        stripes = torch.cos(torch.pi * torch.arange(32.0)).expand(32, 32)
        torch.testing.assert_close(radial_bands(image + 3 * stripes), radial_bands(image), atol=1e-5, rtol=1e-5)

    def test_repeated_channels_change_nothing(self):
        image = noise(2, 1, 20, 20)
        torch.testing.assert_close(radial_bands(image.expand(-1, 3, -1, -1)), radial_bands(image))

    def test_a_flat_axis_is_no_axis(self):
        """A slice as a volume of one slice has the same spectrum."""
        image = noise(1, 1, 24, 24)
        torch.testing.assert_close(radial_bands(image[..., None]), radial_bands(image), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("value", [0.0, 0.3, 1000.0])
    @pytest.mark.parametrize("size", [(28, 28), (33, 20, 17)])
    def test_constant_image_has_only_dc(self, value: float, size: tuple[int, ...]):
        """Rounding noise is not divided by its own size: DC is log1p(value * sqrt(pixels)), the rest 0."""
        bands = radial_bands(torch.full((1, 1, *size), value))
        dc = np.log1p(value * np.sqrt(np.prod(size)))
        assert bands[0, 0].item() == pytest.approx(dc, rel=1e-4)
        assert bands[0, 1:].abs().max() < 0.01

    def test_two_scanners_agree_in_physical_units(self):
        """One object in one field of view of 192 mm, sampled at 2 mm and at 1.5 x 1.5 x 3 mm."""
        fine = radial_bands(blobs((96, 96, 96), (2.0, 2.0, 2.0)), spacing_mm=(2.0, 2.0, 2.0), keep_per_mm=0.05)
        flat = blobs((128, 128, 64), (1.5, 1.5, 3.0))
        torch.testing.assert_close(
            radial_bands(flat, spacing_mm=(1.5, 1.5, 3.0), keep_per_mm=0.05), fine, atol=1e-4, rtol=0
        )
        assert (radial_bands(flat) - fine).abs().max() > 0.1  # Nyquist units do not agree

    def test_physical_at_1_mm_equals_nyquist_units(self):
        """At 1 mm Nyquist is 0.5 cycles/mm, so 0.125 cycles/mm is a quarter of it."""
        image = noise(1, 1, 24, 20, 16)
        physical = radial_bands(image, spacing_mm=(1.0, 1.0, 1.0), keep_per_mm=0.125)
        torch.testing.assert_close(physical, radial_bands(image, keep=0.25))

    def test_no_gradient_reaches_the_image(self):
        image = noise(1, 1, 16, 16).requires_grad_()
        assert not radial_bands(image).requires_grad

    def test_autocast_does_not_round(self):
        image = noise(1, 1, 28, 28)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = radial_bands(image)
        assert torch.equal(inside, radial_bands(image))

    def test_rejects_too_few_bands(self):
        with pytest.raises(ValueError, match="num_bands must be at least 2; got 1"):
            radial_bands(noise(1, 1, 8, 8), num_bands=1)

    def test_rejects_an_image_without_low_frequencies(self):
        with pytest.raises(ValueError, match=r"beyond DC, 0\.2857 for"):
            radial_bands(noise(1, 1, 7, 7), keep=0.25)

    @pytest.mark.parametrize("spacing", [None, (1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 1.0, float("nan"))])
    def test_rejects_physical_without_good_spacing(self, spacing: tuple[float, ...] | None):
        with pytest.raises(ValueError, match="spacing_mm must be 3 positive numbers"):
            radial_bands(noise(1, 1, 8, 8, 8), spacing_mm=spacing, keep_per_mm=0.1)

    def test_rejects_physical_beyond_nyquist(self):
        with pytest.raises(ValueError, match=r"at most Nyquist, 0\.25 here; got 0\.3"):
            radial_bands(noise(1, 1, 8, 8), spacing_mm=(2.0, 4.0), keep_per_mm=0.3)


class TestSpectralTokenizer:
    def test_golden(self):
        """numpy: GELU(w1 (b + mix b) + position), mean over bands, W2, unit length."""
        torch.manual_seed(0)
        tokenizer = SpectralTokenizer(dim=5, num_bands=4, keep=1.0, hidden=3)
        torch.nn.init.normal_(tokenizer.mix)
        image = noise(2, 1, 12, 12)
        b = radial_bands(image, 4, 1.0).numpy().astype(np.float64)
        mix, w1, position, w2 = (
            p.detach().numpy().astype(np.float64)
            for p in (tokenizer.mix, tokenizer.w1.weight, tokenizer.position, tokenizer.w2.weight)
        )
        mixed = b + b @ mix.T
        x = mixed[..., None] * w1[:, 0] + position
        erf = np.vectorize(math.erf)
        h = 0.5 * x * (1 + erf(x / np.sqrt(2)))
        s = (h @ w2.T).mean(axis=1)
        expected = s / np.linalg.norm(s, axis=1, keepdims=True)
        torch.testing.assert_close(tokenizer(image), torch.from_numpy(expected).float(), atol=1e-5, rtol=1e-5)

    def test_one_instance_serves_2d_rgb_and_3d(self):
        tokenizer = SpectralTokenizer()
        for shape in [(2, 3, 28, 28), (2, 1, 24, 32, 16), (2, 4, 64, 40), (2, 1, 2048, 8)]:
            tokens = tokenizer(noise(*shape))
            assert tokens.shape == (2, 64)
            torch.testing.assert_close(tokens.norm(dim=1), torch.ones(2))

    def test_starts_as_identity_mix(self):
        assert not SpectralTokenizer().mix.any()

    def test_position_tells_bands_apart(self, monkeypatch: pytest.MonkeyPatch):
        """The same band values in another order are another token."""
        tokenizer, image = SpectralTokenizer(), noise(1, 1, 28, 28)
        bands = radial_bands(image)
        token = tokenizer(image)
        monkeypatch.setattr("omnifm.parts.spectral.radial_bands", lambda *_: bands.flip(1))
        assert (tokenizer(image) - token).abs().max() > 1e-3

    def test_gradient_reaches_every_parameter_and_not_the_image(self):
        tokenizer = SpectralTokenizer(dim=8)
        image = noise(2, 1, 28, 28).requires_grad_()
        (tokenizer(image) * noise(2, 8)).sum().backward()
        assert image.grad is None
        for name, parameter in tokenizer.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name

    def test_physical_needs_spacing(self):
        tokenizer = SpectralTokenizer(low_pass="physical", keep_per_mm=0.1)
        assert tokenizer(noise(1, 1, 16, 16), (1.0, 1.0)).shape == (1, 64)
        with pytest.raises(ValueError, match="spacing_mm must be 2 positive"):
            tokenizer(noise(1, 1, 16, 16))

    def test_nyquist_ignores_spacing(self):
        tokenizer, image = SpectralTokenizer(), noise(1, 1, 16, 16)
        assert torch.equal(tokenizer(image, (3.0, 3.0)), tokenizer(image))

    @pytest.mark.parametrize(("low_pass", "keep_per_mm"), [("physical", None), ("nyquist", 0.1)])
    def test_rejects_unmatched_keep_per_mm(self, low_pass: str, keep_per_mm: float | None):
        with pytest.raises(ValueError, match="keep_per_mm must come with"):
            SpectralTokenizer(low_pass=low_pass, keep_per_mm=keep_per_mm)

    def test_rejects_sizes_and_ranges(self):
        with pytest.raises(ValueError, match="at least 1 and num_bands at least 2; got 0, 64, 32"):
            SpectralTokenizer(dim=0)
        with pytest.raises(ValueError, match="keep must be in"):
            SpectralTokenizer(keep=2.0)
        with pytest.raises(ValueError, match="keep_per_mm must be positive"):
            SpectralTokenizer(low_pass="physical", keep_per_mm=-1.0)
