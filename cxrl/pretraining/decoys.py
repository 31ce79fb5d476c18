"""Images that are no chest film, for the validity of the posture regressor: spoilt films and textures.

Each is float32 [H, W] in [0, 1], made from a film [H, W], H = W, and a generator.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cxrl.pretraining.scorers import non_films


def decoys(images: Tensor, generator: torch.Generator) -> Tensor:
    """One for each of ``images`` [N, 1, H, W]: by turns what :func:`non_films` makes and one of ``KINDS``."""
    out = non_films(images, generator)
    for i in range(0, len(out), 2):
        kind = int(torch.randint(len(KINDS), (), generator=generator))
        out[i, 0] = KINDS[kind](images[i, 0], generator)
    return out


def quarter_turn(film: Tensor, generator: torch.Generator) -> Tensor:
    """The film on its side."""
    return film.rot90(1 + 2 * int(torch.randint(2, (), generator=generator)), (0, 1))


def shuffled_tiles(film: Tensor, generator: torch.Generator) -> Tensor:
    """The film cut into 2 × 2 to 6 × 6 tiles in another order."""
    num = int(torch.randint(2, 7, (), generator=generator))
    side = film.shape[0] // num
    tiles = film[: num * side, : num * side].reshape(num, side, num, side).transpose(1, 2).flatten(0, 1)
    order = torch.randperm(num * num, generator=generator)
    mixed = tiles[order].reshape(num, num, side, side).transpose(1, 2).reshape(1, 1, num * side, num * side)
    return F.interpolate(mixed, tuple(film.shape), mode="bilinear", align_corners=False)[0, 0]


def fractal_noise(film: Tensor, generator: torch.Generator) -> Tensor:
    """Noise whose amplitude falls as a power of the frequency, as in photographs and clouds."""
    size = film.shape[0]
    slope = 0.3 + 1.4 * float(torch.rand((), generator=generator))
    frequency = (torch.fft.fftfreq(size)[:, None].square() + torch.fft.rfftfreq(size).square()).sqrt()
    white = torch.fft.rfft2(torch.randn(size, size, generator=generator))
    shaped = torch.fft.irfft2(white * frequency.clamp(min=1.0 / size) ** -slope, s=(size, size))
    return _in_range(shaped, generator)


def shapes(film: Tensor, generator: torch.Generator) -> Tensor:
    """4 to 39 ellipses and rectangles of one grey each, on top of each other."""
    num = int(torch.randint(4, 40, (), generator=generator))
    x, y, width, height, kind, grey = torch.rand(6, num, 1, 1, generator=generator)
    axis = torch.linspace(-1.0, 1.0, film.shape[0])
    u = (axis - 2.2 * x + 1.1).abs() / (0.05 + 0.6 * width.square())
    v = (axis[:, None] - 2.2 * y + 1.1).abs() / (0.05 + 0.6 * height.square())
    covers = torch.where(kind > 0.5, u.square() + v.square() < 1.0, torch.maximum(u, v) < 1.0)
    top = (covers * torch.arange(num)[:, None, None]).amax(0)
    return grey.flatten()[top]


def grating(film: Tensor, generator: torch.Generator) -> Tensor:
    """Waves in one direction or in two, that is stripes or a grid."""
    turn, pitch, second = torch.rand(3, generator=generator).tolist()
    axis = torch.linspace(-1.0, 1.0, film.shape[0])
    cos, sin = math.cos(math.pi * turn), math.sin(math.pi * turn)
    frequency = 3.0 + 40.0 * pitch * pitch
    waves = (frequency * (cos * axis + sin * axis[:, None])).sin()
    if second > 0.5:
        waves = waves * (frequency * (cos * axis[:, None] - sin * axis)).sin()
    return _in_range(waves, generator)


def _in_range(values: Tensor, generator: torch.Generator) -> Tensor:
    """Values of any range to a random mean and contrast."""
    mean, contrast = torch.rand(2, generator=generator).tolist()
    normal = (values - values.mean()) / values.std().clamp(min=1e-6)
    return (0.25 + 0.5 * mean + (0.08 + 0.25 * contrast) * normal).clamp(0.0, 1.0)


KINDS = (quarter_turn, shuffled_tiles, fractal_noise, shapes, grating)
