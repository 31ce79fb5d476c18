"""Is this a frontal chest film at all? A guard for models that bring no answer of their own.

A blank, noise, inverted, upside-down or unrelated image must never score well, and classifiers and
image-text models happily rate one. The guard looks at three things, at 64 pixels a side or less:

- contrast: the range between the 5th and the 95th percentile of the grey values;
- layout: 8 × 8 zone means in units of their own spread, left and right averaged (lungs dark beside a bright
  mediastinum above a bright abdomen), and how far left and right differ;
- spectrum: how the spread divides over four octaves of detail.

A logistic score of the 37 numbers of layout and spectrum tells films from other images. Its coefficients are
fitted and measured by ``benchmarks/rewards_validity.py``. It tells film from no film: it says nothing about
image quality, and a picture made to pass can pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ZONES = 8
OCTAVES = (4, 8, 16, 32, 64)
NUM_FEATURES = ZONES * ZONES // 2 + len(OCTAVES)
_AT_ONCE = 1024  # torch.quantile takes 16 million numbers
CONTRAST_RAMP = (0.08, 0.14)
"""No film below, a film above; in between linear. The flattest of 114 real films has 0.16."""
SCORE_RAMP = (0.4, 1.4)
"""Of the logistic score. Flat above, so that a policy gains nothing by looking ever more like the average."""

# fmt: off
COEFFICIENTS: tuple[float, ...] = (
    # zone means, left half of 8 rows: outside to middle
    -0.52, -0.31, -0.30, -0.22,
    +0.50, -0.28, -0.21, -0.09,
    -0.05, -0.16, -0.21, +0.26,
    -0.18, -0.31, -0.48, +0.17,
    +0.10, +0.05, -0.13, +0.26,
    -0.20, -0.02, +0.35, +0.33,
    -0.54, +0.10, +0.27, +0.25,
    +0.14, +0.53, +0.66, +0.23,
    # log share of four octaves, log asymmetry
    +1.29, +1.08, +0.34, +0.20, +0.18,
)
# fmt: on
INTERCEPT = 1.58


def film_validity(
    images: Tensor, coefficients: Sequence[float] = COEFFICIENTS, intercept: float = INTERCEPT
) -> Tensor:
    """How plausible images are as frontal chest films: [N] in [0, 1], 1 for almost every real film.

    Args:
        images: float32 [N, 1, H, W] in [0, 1], bright where dense.
        coefficients: Of the 37 numbers, see :func:`film_features`.
        intercept: Added to their weighted sum.
    """
    parts = images.split(_AT_ONCE)
    return torch.cat([_validity(part.float(), coefficients, intercept) for part in parts])


def _validity(images: Tensor, coefficients: Sequence[float], intercept: float) -> Tensor:
    low, high = SCORE_RAMP
    weights = torch.tensor(coefficients, dtype=torch.float32, device=images.device)
    layout = ((film_features(images) @ weights + intercept - low) / (high - low)).clamp(0.0, 1.0)
    low, high = CONTRAST_RAMP
    grey = _resized(images, OCTAVES[-1]).flatten(1)
    bounds = torch.quantile(grey, torch.tensor([0.05, 0.95], device=grey.device), dim=1)
    contrast = ((bounds[1] - bounds[0] - low) / (high - low)).clamp(0.0, 1.0)
    return layout * contrast


def film_features(images: Tensor) -> Tensor:
    """The numbers of layout and spectrum, float32 [N, 37], of images as in :func:`film_validity`."""
    images = images.float()
    zones = F.avg_pool2d(_resized(images, 2 * ZONES), 2)
    mean, spread = zones.mean((2, 3), keepdim=True), zones.flatten(1).std(1).clamp_min(1e-3)
    zones = ((zones - mean) / spread.view(-1, 1, 1, 1))[:, 0]
    even, odd = (zones + zones.flip(-1)) / 2, (zones - zones.flip(-1)) / 2
    fine = _resized(images, OCTAVES[-1])
    total = fine.flatten(1).std(1).clamp_min(1e-6)
    levels = [F.interpolate(_resized(images, n), OCTAVES[-1], mode="bilinear") for n in OCTAVES]
    octaves = [
        ((finer - coarser).flatten(1).std(1) / total).clamp_min(1e-3).log()
        for coarser, finer in itertools.pairwise(levels)
    ]
    asymmetry = (odd.flatten(1).square().mean(1) + 1e-3).log()
    return torch.cat([even[:, :, : ZONES // 2].flatten(1), torch.stack([*octaves, asymmetry], 1)], 1)


def _resized(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
