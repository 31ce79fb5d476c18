import math

import numpy as np
import pytest
import torch

from cxrl.metrics.diversity import SIGMA, WEIGHTS, WINDOW, ms_ssim, num_scales, prompt_pairs, within_prompt


def pictures(n, size, seed=0):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed))


def by_the_definition(x, y):
    """MS-SSIM of one pair in float64, window by window."""
    t = np.arange(WINDOW) - WINDOW // 2
    g = np.exp(-(t**2) / (2 * SIGMA**2))
    kernel = np.outer(g, g) / g.sum() ** 2
    scales = num_scales(*x.shape)
    weights = np.array(WEIGHTS[:scales]) / sum(WEIGHTS[:scales])
    result = 1.0
    for scale in range(scales):
        cs, full = [], []
        for i in range(x.shape[0] - WINDOW + 1):
            for j in range(x.shape[1] - WINDOW + 1):
                a, b = x[i : i + WINDOW, j : j + WINDOW], y[i : i + WINDOW, j : j + WINDOW]
                ma, mb = (kernel * a).sum(), (kernel * b).sum()
                va, vb = (kernel * (a - ma) ** 2).sum(), (kernel * (b - mb) ** 2).sum()
                cov = (kernel * (a - ma) * (b - mb)).sum()
                cs.append((2 * cov + 0.03**2) / (va + vb + 0.03**2))
                full.append(cs[-1] * (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2))
        result *= max(np.mean(full if scale == scales - 1 else cs), 0.0) ** weights[scale]
        h, w = x.shape[0] // 2, x.shape[1] // 2
        x, y = (v[: 2 * h, : 2 * w].reshape(h, 2, w, 2).mean((1, 3)) for v in (x, y))
    return result


@pytest.mark.parametrize(
    ("size", "scales"), [(11, 1), (21, 1), (22, 2), (64, 3), (96, 4), (128, 4), (176, 5), (512, 5)]
)
def test_scales_keep_the_window_inside(size, scales):
    assert num_scales(size, size + 3) == scales
    assert size >> (scales - 1) >= WINDOW


def test_identity_is_one():
    x = pictures(3, 64)
    torch.testing.assert_close(ms_ssim(x, x), torch.ones(3))


@pytest.mark.parametrize("shape", [(33, 29), (48, 64)])
def test_against_the_definition(shape):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, 1, *shape, generator=generator)
    y = (0.7 * x + 0.3 * torch.rand(1, 1, *shape, generator=generator)).clamp(0, 1)
    expected = by_the_definition(x[0, 0].double().numpy(), y[0, 0].double().numpy())
    assert 0.3 < expected < 0.99
    # float32 against float64, sums over 121 pixels
    assert float(ms_ssim(x, y)) == pytest.approx(expected, rel=2e-5)


def test_flat_images_leave_only_luminance():
    a, b = 0.2, 0.6
    luminance = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    weight = WEIGHTS[2] / sum(WEIGHTS[:3])
    value = ms_ssim(torch.full((1, 1, 64, 64), a), torch.full((1, 1, 64, 64), b))
    assert float(value) == pytest.approx(luminance**weight, rel=1e-5)


def test_the_data_range_scales_out():
    x, y = pictures(2, 64), pictures(2, 64, seed=1).lerp(pictures(2, 64), 0.5)
    torch.testing.assert_close(ms_ssim(x * 255, y * 255, data_range=255.0), ms_ssim(x, y))
    assert bool((ms_ssim(x, y, data_range=255.0) > ms_ssim(x, y) + 0.1).all())


def test_anticorrelated_images_are_zero_and_finite():
    x = pictures(1, 64)
    assert float(ms_ssim(x, 1 - x)) == 0.0


def test_refusals():
    with pytest.raises(ValueError, match="floating-point"):
        ms_ssim(torch.zeros(1, 1, 64, 64, dtype=torch.uint8), torch.zeros(1, 1, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at least 11 px, got 8×8"):
        ms_ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="equal shapes"):
        ms_ssim(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 17))


def test_pairs_are_within_prompts():
    first, second = prompt_pairs(torch.tensor([0, 1, 0, 2, 0]))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 2), (0, 4), (2, 4)]


def test_within_prompt_by_hand():
    levels = torch.tensor([0.1, 0.4, 0.8, 0.5, 0.5])
    images = levels.view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    distance, similar = within_prompt(images, torch.tensor([0, 0, 0, 2, 2]), 4)
    assert distance[0] == pytest.approx((0.3 + 0.7 + 0.4) / 3, rel=1e-5)
    assert distance[2] == 0.0
    assert similar[2] == pytest.approx(1.0)
    assert math.isnan(distance[1])
    assert math.isnan(similar[3])


def test_within_prompt_of_single_images_is_nan():
    distance, similar = within_prompt(pictures(2, 16), torch.tensor([0, 1]), 2)
    assert bool(distance.isnan().all())
    assert bool(similar.isnan().all())
