"""Is this a frontal chest film at all? A guard for models that bring no answer of their own.

A blank, noise, inverted, upside-down or unrelated image must never score well, and classifiers and
image-text models happily rate one. The guard looks at five things, at 64 pixels a side or less:

- contrast: the range between the 5th and the 95th percentile of the grey values;
- layout: 8 × 8 zone means in units of their own spread, left and right averaged (lungs dark beside a bright
  mediastinum above a bright abdomen), and how far left and right differ;
- spectrum: how the spread divides over four octaves of detail;
- symmetry: how well the fine detail agrees with its own mirror image, which no chest does and a doubled half
  does, also where it is a little turned or moved;
- emptiness: how much of the image is a flat strip at one border, as where a half is missing.

A logistic score of the 37 numbers of layout and spectrum tells films from other images; the other three are
limits of their own. ``benchmarks/rewards_validity.py`` fits the coefficients and measures all. This tells
film from no film: it says nothing about image quality, and a picture made to pass can pass. A mirrored film
passes, for a heart may lie on the right.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ZONES = 8
OCTAVES = (4, 8, 16, 32, 64)
NUM_FEATURES = ZONES * ZONES // 2 + len(OCTAVES)
_AT_ONCE = 256
CONTRAST_RAMP = (0.08, 0.14)
"""No film below, a film above; in between linear. The flattest of 114 real films has 0.16."""
SCORE_RAMP = (0.4, 1.4)
"""Of the logistic score. Flat above, so that a policy gains nothing by looking ever more like the average."""

MIRROR_RAMP = (0.74, 0.82)
"""A film below, a doubled half above. Real films reach 0.61, 0.67 with black borders; their doubled halves
begin at 0.83 when turned by up to 5°, moved by 3 % of the width and with noise of 0.02."""
EMPTY_RAMP = (0.35, 0.45)
"""A film below, a half above: share of the side. Real films reach 0.30, halves begin at 0.48."""
_TURNS = range(-12, 13, 3)
"""Degrees between an image and its mirror image: twice those of the axis against the vertical."""
_SHIFT = 8
"""Most pixels of 64 between them: twice those of the axis from the middle."""
_FLAT = 0.1
"""Spread within a row or column, in units of the image's, below which it is flat."""

# fmt: off
COEFFICIENTS: tuple[float, ...] = (
    # zone means, left half of 8 rows: outside to middle
    -0.65, -0.32, -0.20, -0.00,
    +0.51, -0.13, -0.53, -0.14,
    -0.15, +0.09, -0.32, +0.23,
    -0.32, -0.11, -0.52, +0.18,
    +0.04, -0.07, +0.06, +0.30,
    -0.26, -0.15, +0.46, +0.42,
    -0.57, +0.11, +0.17, +0.37,
    +0.09, +0.50, +0.53, +0.36,
    # log share of four octaves, log asymmetry
    +1.25, +0.97, +0.28, +0.23, +0.33,
)
# fmt: on
INTERCEPT = 1.23


def film_validity(
    images: Tensor, coefficients: Sequence[float] = COEFFICIENTS, intercept: float = INTERCEPT
) -> Tensor:
    """How plausible images are as frontal chest films: float32 [N] in [0, 1], 1 for almost every real film.

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
    return layout * contrast * halves_validity(images)


def halves_validity(images: Tensor) -> Tensor:
    """Whether no half is missing or the other's mirror image: [N] in [0, 1] of images [N, 1, H, W]."""
    return _below(mirror_agreement(images), MIRROR_RAMP) * _below(empty_share(images), EMPTY_RAMP)


def _below(value: Tensor, ramp: tuple[float, float]) -> Tensor:
    """1 below a ramp, 0 above it."""
    return ((ramp[1] - value) / (ramp[1] - ramp[0])).clamp(0.0, 1.0)


def mirror_agreement(images: Tensor) -> Tensor:
    """Correlation of an image's detail with its mirror image's, best over small turns and shifts.

    Args:
        images: float32 [N, 1, H, W] in [0, 1].

    Returns:
        float32 [N] in [-1, 1]: of the octaves from 16 to 64 pixels, without a border; 0 for a blank image.
    """
    size = OCTAVES[-1]
    fine = _resized(images, size)
    detail = fine - F.interpolate(_resized(images, size // 4), size, mode="bilinear")
    # In units of its surroundings: else the edge of a black border, its own mirror image, outweighs all.
    around = F.avg_pool2d(detail.square(), 9, 1, 4, count_include_pad=False).sqrt()
    detail = detail / (around + 0.02 * fine.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-6)
    inner = slice(_SHIFT, size - _SHIFT)
    own = _normed(detail[:, 0, inner, inner].flatten(1))
    best = torch.zeros(len(images), device=images.device)
    for degrees in _TURNS:
        angle = math.radians(degrees)
        turn = detail.new_tensor(
            [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]
        )
        grid = F.affine_grid(turn.expand(len(detail), 2, 3), list(detail.shape), align_corners=False)
        mirrored = F.grid_sample(detail.flip(-1), grid, padding_mode="border", align_corners=False)
        shifted = mirrored[:, 0, inner].unfold(2, size - 2 * _SHIFT, 1)  # [N, rows, shifts, columns]
        agreement = torch.einsum("nd,nsd->ns", own, _normed(shifted.transpose(1, 2).flatten(2)))
        best = torch.maximum(best, agreement.amax(1))
    return best


def _normed(values: Tensor) -> Tensor:
    centred = values - values.mean(-1, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def empty_share(images: Tensor) -> Tensor:
    """The widest flat strip along a border, as a share of the side, [N] in [0, 1], of images [N, 1, H, W]."""
    fine = _resized(images, OCTAVES[-1])[:, 0]
    limit = _FLAT * fine.flatten(1).std(1, keepdim=True)
    strips = []
    for axis in (1, 2):
        flat = (fine.std(axis) <= limit).int()
        strips += [side.cumprod(1).sum(1) for side in (flat, flat.flip(1))]
    return torch.stack(strips).amax(0) / OCTAVES[-1]


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
