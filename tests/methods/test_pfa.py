"""PFA: amplitudes and phases against numpy, and its bounds."""

import numpy as np
import pytest
import torch

from omnifm.method import ServerView
from omnifm.methods.pfa import PFA, Settings, mix_amplitudes
from omnifm.update import Update
from tests.methods.reference import build, federate

SHAPES = [(5, 4), (3, 2, 3, 3), (2, 3, 2, 3, 4)]

VIEW = ServerView()


def kernels(shape, num=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(num)]


def spectrum(kernel):
    """(out, in, ..., last) -> (in * ..., last * out), as the published code lays a kernel out."""
    array = kernel.double().numpy()
    if array.ndim > 2:
        array = np.moveaxis(array, 0, -1)
        array = array.reshape(int(np.prod(array.shape[:-2])), -1)
    return np.fft.fft2(array)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_golden(shape):
    """Own phase everywhere; up to 0.6 of the highest frequency the amplitude 0.25 |A| + 0.75 |B|, above it the own."""
    pair = kernels(shape)
    a, b = (spectrum(kernel) for kernel in pair)
    low = np.abs(np.fft.fftfreq(a.shape[0]))[:, None] <= 0.3
    low = low & (np.abs(np.fft.fftfreq(a.shape[1])) <= 0.3)
    assert low.any() and not low.all()
    for own, mixed in zip((a, b), mix_amplitudes(pair, [1, 3], 0.6), strict=True):
        amplitude = np.where(low, 0.25 * np.abs(a) + 0.75 * np.abs(b), np.abs(own))
        assert mixed.shape == torch.Size(shape) and mixed.dtype == torch.float32
        np.testing.assert_allclose(spectrum(mixed), amplitude * np.exp(1j * np.angle(own)), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_equal_kernels_stay(shape, rate):
    one = kernels(shape)[0]
    torch.testing.assert_close(mix_amplitudes([one, one], [2, 5], rate)[0], one, atol=1e-6, rtol=1e-5)


def test_at_rate_zero_only_the_mean_is_common():
    """Its amplitude, that is: each site keeps its sign."""
    pair = [torch.full((2, 2), 1.0), torch.full((2, 2), -3.0)]
    mixed = mix_amplitudes(pair, [1, 1], 0.0)
    torch.testing.assert_close(torch.stack(mixed), torch.stack([torch.full((2, 2), 2.0), torch.full((2, 2), -2.0)]))


def replies(num_sites, number=1):
    pairs = zip(kernels((3, 4), num_sites), kernels((3,), num_sites), strict=True)
    return [
        Update(f"site-{i}", "train", number, "", shared={"w": number * w, "b": b}, num_samples=i + 1)
        for i, (w, b) in enumerate(pairs)
    ]


def test_vectors_are_averaged_kernels_are_mixed_and_absent_sites_keep_theirs():
    method, updates = PFA(Settings(ramp=100)), replies(3)
    shared = {"w": torch.zeros(3, 4), "b": torch.zeros(3)}
    method.aggregate(shared, updates, ServerView(1))
    average = sum((i + 1) * u.shared["b"] for i, u in enumerate(updates)) / 6
    mixed = mix_amplitudes([u.shared["w"] for u in updates], [1, 2, 3], 0.7 + 0.25 / 100)
    for i, update in enumerate(updates):
        sent, _ = method.payload(update.site, shared, VIEW)
        torch.testing.assert_close(sent["b"], average)
        assert torch.equal(sent["w"], mixed[i])
    method.aggregate(shared, replies(2, 2), ServerView(2))
    assert torch.equal(method.payload("site-2", shared, VIEW)[0]["w"], mixed[2])
    assert method.payload("late", shared, VIEW)[0] == shared


def test_the_band_grows_to_its_end_and_no_further(monkeypatch):
    rates = []
    monkeypatch.setattr("omnifm.methods.pfa.mix_amplitudes", lambda k, _sizes, rate: rates.append(rate) or list(k))
    method = PFA(Settings(start=0.2, end=0.6, ramp=4))
    for number in (1, 2, 4, 9):
        method.aggregate({"w": torch.zeros(3, 4), "b": torch.zeros(3)}, replies(2, number), ServerView(number))
    assert rates == pytest.approx([0.3, 0.4, 0.6, 0.6])


def test_the_band_reaches_its_end_with_the_run(toys, tmp_path, monkeypatch):
    rates, mix = [], mix_amplitudes
    monkeypatch.setattr(
        "omnifm.methods.pfa.mix_amplitudes", lambda k, sizes, rate: rates.append(rate) or mix(k, sizes, rate)
    )
    federate(toys, tmp_path, {"name": "pfa", "start": 0.2, "end": 0.8}, rounds=3)
    assert sorted(set(rates)) == pytest.approx([0.4, 0.6, 0.8])


def test_batch_norm_stays_home():
    method, model = build({"name": "pfa"}, {"norm": "batch"})
    assert method.partition(model).personal == ("backbone.adn.0.weight", "backbone.adn.0.bias")
