import math

import numpy as np
import pytest
import torch

from cxrl.metrics.distribution import (
    frechet_distance,
    kernel_distance,
    moments,
    moments_distance,
    weighted_frechet,
)
from cxrl.metrics.rows import Rows


def whitened(n, d, seed):
    """Rows with sample mean exactly 0 and unbiased sample covariance exactly I."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    chol = torch.linalg.cholesky(torch.cov(x.T))
    return torch.linalg.solve_triangular(chol, x.T, upper=False).T


def test_frechet_of_gaussians_is_analytic():
    # For commuting covariances A², B²: |m|² + Σ (a − b)².
    a, b = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 0.1, 0.5]).double()
    shift = torch.tensor([0.3, -1.0, 2.0]).double()
    value = frechet_distance(whitened(50, 3, 0) * a + shift, whitened(70, 3, 1) * b)
    assert value == pytest.approx(float(shift.square().sum() + (a - b).square().sum()), rel=1e-10)


def test_frechet_of_rotated_gaussians():
    # One-dimensional spreads s, t at 45°: tr (C_x C_y)^½ known in closed form for 2 × 2: √(tr M + 2 √det M).
    rotation = torch.tensor([[1.0, -1.0], [1.0, 1.0]]).double() / math.sqrt(2)
    x, y = whitened(40, 2, 2) * torch.tensor([3.0, 1.0]).double(), whitened(40, 2, 3)
    y = y * torch.tensor([2.0, 0.5]).double() @ rotation.T
    cx, cy = torch.cov(x.T), torch.cov(y.T)
    m = cx @ cy
    expected = cx.trace() + cy.trace() - 2 * torch.sqrt(m.trace() + 2 * torch.linalg.det(m).sqrt())
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-9)


def test_frechet_of_a_set_with_itself_is_zero_even_when_singular():
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-6)
    x = torch.cat([x.repeat(4, 1)[:, :3], torch.ones(24, 2)], 1)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-6)


def test_frechet_is_symmetric_where_the_two_algorithms_meet():
    # 5 rows of 9 features take the small N × N problem, 30 rows the D × D one.
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    y = torch.randn(30, 9, generator=torch.Generator().manual_seed(2)) * 2 + 1
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-7)


@pytest.mark.parametrize(("n", "d"), [(12, 5), (7, 11)])
def test_weights_are_multiplicities(n, d):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(3))
    y = torch.randn(20, d, generator=torch.Generator().manual_seed(4))
    counts = torch.randint(0, 3, (4, n), generator=torch.Generator().manual_seed(5))
    expected = [frechet_distance(x.repeat_interleave(c, 0), y) for c in counts]
    assert weighted_frechet(x, y, counts).tolist() == pytest.approx(expected, rel=1e-7)


def test_threads_are_given_back_and_change_nothing():
    generator, before = torch.Generator().manual_seed(3), torch.get_num_threads()
    x, y = (torch.randn(n, 6, generator=generator) for n in (40, 50))
    weights = torch.randint(0, 3, (9000, 40), generator=generator).double()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(weighted_frechet(x, y, weights))
            assert torch.get_num_threads() == threads
        with pytest.raises(RuntimeError):
            weighted_frechet(x, y, torch.ones(2, 39))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*found)


def test_frechet_grows_as_samples_shrink():
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(6))
    y = torch.randn(4000, 8, generator=torch.Generator().manual_seed(7))
    assert frechet_distance(x[:40], y) > 5 * frechet_distance(x, y)


def test_bad_features_are_named():
    x = torch.randn(5, 3)
    x[2, 1] = float("nan")
    with pytest.raises(ValueError, match="features: row 2 is not finite"):
        frechet_distance(x, torch.randn(5, 3))
    with pytest.raises(ValueError, match="reference: expected at least two rows"):
        frechet_distance(torch.randn(5, 3), torch.randn(1, 3))
    with pytest.raises(ValueError, match="3 columns, the reference has 4"):
        frechet_distance(torch.randn(5, 3), torch.randn(5, 4))


def test_kernel_distance_against_the_double_sum():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    y = torch.randn(5, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    def k(u, v):
        return (float(u @ v) / 3 + 1) ** 3

    def mmd(a, b):
        n = len(a)
        within = sum(k(a[i], a[j]) + k(b[i], b[j]) for i in range(n) for j in range(n) if i != j)
        return within / (n * (n - 1)) - 2 * sum(k(u, v) for u in a for v in b) / n**2

    generator = torch.Generator().manual_seed(0)
    expected = []
    for _ in range(3):
        a = x[torch.randperm(5, generator=generator)[:4]]
        expected.append(mmd(a, y[torch.randperm(5, generator=generator)[:4]]))
    mean, std = kernel_distance(x, y, subset_size=4, num_subsets=3, seed=0)
    assert mean == pytest.approx(sum(expected) / 3)
    assert std == pytest.approx(torch.tensor(expected).std().item(), rel=1e-5)


def test_kernel_distance_is_unbiased():
    x = torch.randn(600, 4, generator=torch.Generator().manual_seed(10))
    y = torch.randn(600, 4, generator=torch.Generator().manual_seed(11))
    mean, std = kernel_distance(x, y, subset_size=50, num_subsets=100)
    assert abs(mean) < 0.3 * std
    assert kernel_distance(x, y + 1, subset_size=50)[0] > 3 * std


def test_kernel_distance_refuses_the_whole_set():
    with pytest.raises(ValueError, match="subset_size 8: expected 2 or more and fewer than the 8 images"):
        kernel_distance(torch.randn(8, 2), torch.randn(9, 2), subset_size=8)


@pytest.mark.parametrize("width", [1, 5, 60])
def test_moments_in_blocks_are_those_of_the_whole(width):
    generator = torch.Generator().manual_seed(12)
    x, y = (torch.randn(2300, width, generator=generator) * 3 + 1e3 for _ in range(2))
    of_x = moments(Rows(x))
    torch.testing.assert_close(of_x.mean, x.double().mean(0), rtol=1e-12, atol=0)
    whole = torch.cov(x.double().T).reshape(width, width)
    torch.testing.assert_close(of_x.covariance, whole, rtol=1e-9, atol=1e-9)
    assert moments_distance(of_x, moments(y)) == pytest.approx(frechet_distance(x, y), rel=1e-6)
    assert moments_distance(of_x, of_x) == pytest.approx(0.0, abs=1e-6)


def test_moments_as_a_reference_change_nothing():
    x, y = (torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (30, 40))
    ones = torch.ones(1, 30)
    assert weighted_frechet(x, moments(y), ones) == pytest.approx(weighted_frechet(x, y, ones), rel=1e-9)


def test_resamples_that_do_not_fit_beside_each_other_are_the_same(monkeypatch):
    x, y = (torch.randn(40, 6, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    weights = torch.randint(0, 3, (9, 40), generator=torch.Generator().manual_seed(3)).double()
    beside = weighted_frechet(x, y, weights)
    monkeypatch.setattr("cxrl.metrics.distribution._WORK", 1)
    torch.testing.assert_close(weighted_frechet(x, y, weights), beside, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("width", [3, 2048])
def test_kernel_distance_is_torch_fidelitys(width, tmp_path):
    """One subset after another, by the code of https://arxiv.org/abs/1801.01401 that torch-fidelity keeps."""
    from torch_fidelity.metric_kid import kernel_mmd

    x, y = (np.random.default_rng(n).gamma(2.0, size=(90 + n, width)).astype(np.float32) for n in (1, 2))
    for name, side in (("x", x), ("y", y)):
        np.save(tmp_path / f"{name}.npy", side)
    maps = [Rows(np.load(tmp_path / f"{name}.npy", mmap_mode="r")) for name in "xy"]
    generator, expected = torch.Generator().manual_seed(5), []
    for _ in range(4):
        a, b = (side[torch.randperm(len(side), generator=generator)[:70].numpy()] for side in (x, y))
        settings = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
        settings |= {"kid_kernel_poly_coef0": 1.0, "verbose": False}
        expected.append(kernel_mmd(a.astype(float), b.astype(float), **settings))
    mean, std = kernel_distance(*maps, subset_size=70, num_subsets=4, seed=5)
    assert mean == pytest.approx(np.mean(expected), rel=1e-5)
    assert std == pytest.approx(np.std(expected, ddof=1), rel=1e-5)
