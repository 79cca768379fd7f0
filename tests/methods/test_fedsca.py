"""FedSCA: the projection against a solver, the mixture by hand, and which way similarity points."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from omnifm.method import ServerView
from omnifm.methods.fedsca import FedSCA, Settings, similarities, simplex_projection
from omnifm.update import Update
from tests.methods.reference import SIZES, batches, build, close, descend, federate, loss_on, parameters

METRICS = ["l2", "l1", "cosine", "inner"]
LOW = ("backbone.conv.weight", "backbone.conv.bias")

VIEW = ServerView()


def solved(m, alpha, s):
    """Eq. 7 on the simplex by a general solver: min sum (W_j - m_j)^2 - alpha sum W_j s_j."""
    done = minimize(
        lambda w: ((w - m) ** 2).sum() - alpha * (w * s).sum(),
        np.full(len(m), 1 / len(m)),
        jac=lambda w: 2 * (w - m) - alpha * s,
        bounds=[(0, 1)] * len(m),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(len(m))},
        options={"ftol": 1e-11, "maxiter": 500},
    )
    assert done.success
    return done.x


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 3.0])
def test_projection_is_the_minimum_of_eq_7(alpha):
    rng = np.random.default_rng(0)
    m, s = rng.dirichlet(np.ones(5)), rng.normal(0, 1, (4, 5))
    ours = simplex_projection(torch.from_numpy(m + 0.5 * alpha * s))
    torch.testing.assert_close(
        ours, torch.from_numpy(np.stack([solved(m, alpha, row) for row in s])), atol=1e-5, rtol=0
    )


def test_similarities_golden():
    """Sites at 0, 1 and 3 on a line: distances 1, 3, 2, whose mean is 2."""
    line = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    expected = -torch.tensor([[0.0, 1, 3], [1, 0, 2], [3, 2, 0]], dtype=torch.float64) / 2
    for metric in ("l2", "l1"):
        torch.testing.assert_close(similarities(line, metric), expected)


@pytest.mark.parametrize(
    ("metric", "pairs"),
    [
        ("l2", [[0, -(2**0.5), -(18**0.5)], [-(2**0.5), 0, -(20**0.5)], [-(18**0.5), -(20**0.5), 0]]),
        ("l1", [[0, -2, -6], [-2, 0, -6], [-6, -6, 0]]),
        ("cosine", [[0, -1, -0.2], [-1, 0, -0.4], [-0.2, -0.4, 0]]),
        ("inner", [[0, -1, 3], [-1, 0, 2], [-21, -22, 0]]),
    ],
)
def test_the_four_similarities_are_four(metric, pairs):
    """Sites at (1, 0), (0, 1) and (4, 3), each less its likeness to itself, in units of the mean over pairs."""
    expected = torch.tensor(pairs, dtype=torch.float64)
    flat = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(similarities(flat, metric), expected * 6 / expected.abs().sum())


@pytest.mark.parametrize("metric", METRICS)
def test_a_site_learns_more_from_the_one_that_is_like_it(metric):
    """Taken as printed, eq. 7 would prefer the stranger."""
    flat = torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.2, 1.0]], dtype=torch.float64)
    s = similarities(flat, metric)
    assert s[0, 1] > s[0, 2] and s[1, 0] > s[1, 2]
    assert s.diagonal().abs().max() == 0


@pytest.mark.parametrize("metric", METRICS)
def test_equal_sites_are_averaged(metric):
    assert (similarities(torch.ones(3, 4, dtype=torch.float64), metric) == 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_alpha_means_the_same_for_a_network_of_another_size(metric):
    flat = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(similarities(flat, metric), similarities(1000 * flat, metric))


def replies(values, sizes):
    return [
        Update(f"site-{i}", "train", 1, "", shared={"w": torch.tensor([v])}, num_samples=n)
        for i, (v, n) in enumerate(zip(values, sizes, strict=True))
    ]


def test_every_site_gets_its_own_mixture():
    """Sites at 0, 1 and 3 with n = 1, 1, 2: row 0 is P(m + s / 2) with s_0 = (0, -0.5, -1.5)."""
    method = FedSCA(Settings(alpha=1.0))
    shared = {"w": torch.zeros(1)}
    assert method.aggregate(shared, replies([0.0, 1.0, 3.0], [1, 1, 2]), ServerView(1))["w"].item() == pytest.approx(
        7 / 4
    )
    row = solved(np.array([0.25, 0.25, 0.5]), 1.0, np.array([0.0, -0.5, -1.5]))
    assert method.payload("site-0", shared, VIEW)[0]["w"].item() == pytest.approx(row @ [0, 1, 3], abs=1e-5)
    assert method.payload("late", shared, VIEW)[0] == shared


def test_an_absent_site_keeps_its_mixture():
    method = FedSCA(Settings())
    method.aggregate({"w": torch.zeros(1)}, replies([0.0, 1.0, 3.0], [1, 1, 1]), ServerView(1))
    before = method.payload("site-2", {}, VIEW)[0]["w"].item()
    method.aggregate({"w": torch.zeros(1)}, replies([9.0, 9.0], [1, 1]), ServerView(2))
    assert method.payload("site-2", {}, VIEW)[0]["w"].item() == before


def test_rule(toys, tmp_path):
    """LAT and SGCA with alpha 0.5 and beta 0.2 on two sites: |d| / mean |d| is 1, so W_i = P(m - alpha / 2 off i)."""
    method = {"name": "fedsca", "beta": 0.2}
    _, run, network = federate(toys, tmp_path, method)
    _, model = build(method)
    own = dict.fromkeys(("site-1", "site-2"), parameters(model))
    for _ in range(3):
        ends = {}
        for site, batch in batches(network).items():
            received = torch.cat([own[site][n].flatten() for n in LOW])

            plain = loss_on(model, batch)

            def loss(w, plain=plain, received=received):
                now = torch.cat([w[n].flatten() for n in LOW])
                return plain(w) - 0.2 * (now @ received) / now.norm() / received.norm()

            ends[site] = descend(loss, own[site])
        m = np.array([SIZES[site] for site in ends]) / 10
        for i, site in enumerate(ends):
            w = solved(m, 0.5, np.where(np.arange(2) == i, 0.0, -1.0))
            mixed = {n: sum(w[j] * end[n].double() for j, end in enumerate(ends.values())) for n in LOW}
            own[site] = ends[site] | {n: value.float() for n, value in mixed.items()}
    assert run.partition.shared == LOW
    for site, expected in own.items():
        close(run.method.payload(site, run.shared, run.view)[0], {n: expected[n] for n in LOW})


def test_ablations_say_what_travels():
    every = build({"name": "fedsca", "num_layers": None})
    two = build({"name": "fedsca", "num_layers": 2}, {"norm": "batch"})
    assert every[0].partition(every[1]).personal == ()
    shared = two[0].partition(two[1]).shared
    assert shared == (*LOW, "backbone.adn.0.weight", "backbone.adn.0.bias", "backbone.mix.weight", "backbone.mix.bias")
