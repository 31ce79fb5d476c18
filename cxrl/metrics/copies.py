"""Whether a film is a copy of one of many others, mirrored, cut out, shifted or noisy as it may be.

The *match* of two films is the correlation of their pixels after the best registration: the generated film,
as it is or mirrored, is laid over every part of the other that is at least 70 % of its side, and the best
place is refined between the pixels (Lucas and Kanade 1981, damped as by Levenberg and Marquardt). Noise of a
generated film lowers the correlation by √(1 - σ²/s²), which is divided out: s² is the film's variance and σ²
that of its noise (Immerkær 1996, with the median). Compare a match only with those of other films with the
same training set: chest films correlate with each other, and the more there are, the nearer is the nearest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_CANDIDATES = 32
"""Training films whose registration is refined, of those that match best on the coarse grid."""
LEAST_SIDE = 0.7
_COARSE, _FINE, _TARGET = 24, 32, 48
"""Pixels a side: of the search, of a film that is registered, and of what it is laid over."""
_WIDTHS = range(_COARSE, math.ceil(LEAST_SIDE * _COARSE) - 1, -1)
_SIGMA = 2.0
_NOISE_LEFT = ((1 + 9 + 9 + 1) / 64) ** 2
"""Share of the variance of white noise that halving a side leaves: the filter is (1, 3, 3, 1) / 8."""
_STEPS, _LARGEST_STEP = 10, 0.06
_FILMS, _TRAINING, _PAIRS = 2048, 4096, 2048
"""At once."""


def nearest_copies(
    films: Tensor,
    training: Callable[[Tensor], Tensor],
    num_training: int,
    *,
    num_candidates: int = NUM_CANDIDATES,
    done: Callable[[int], None] = lambda count: None,
) -> tuple[Tensor, Tensor]:
    """The best match of every film among many others, and which it is.

    Time is in the product of the numbers, memory in their sum.

    Args:
        films: float32 [N, 1, 64, 64] in [0, 1].
        training: Gives the films of places, int64 [n] in order: float32 [n, 1, 64, 64].
        num_training: How many there are, at least 1.
        num_candidates: Of the search on the coarse grid.
        done: Is told how many more films are done.

    Returns:
        Match, float32 [N], at most 1; place in ``training``, int64 [N].
    """
    matches, places = [], []
    for some in films.split(_FILMS):
        candidates = _candidates(some, training, num_training, min(num_candidates, num_training))
        known, where = torch.unique(candidates, return_inverse=True)
        shown = training(known)
        found = torch.cat(
            [
                match(some[row].flatten(0, 1)[:, None], shown[of].flatten(0, 1)[:, None])
                for row, of in _pairs(where)
            ]
        ).reshape(candidates.shape)
        best, which = found.max(1)
        matches.append(best)
        places.append(candidates.gather(1, which[:, None])[:, 0])
        done(len(some))
    return torch.cat(matches), torch.cat(places)


def _pairs(where: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of the pairs of a film and a candidate: rows of films and of candidates."""
    rows = torch.arange(len(where))[:, None].expand_as(where).flatten()
    return zip(rows.split(_PAIRS), where.flatten().split(_PAIRS), strict=True)


def match(films: Tensor, others: Tensor) -> Tensor:
    """The match of pairs of films.

    Args:
        films: float32 [N, 1, 64, 64] in [0, 1], mirrored or cut out of ``others`` or not.
        others: Like ``films``.

    Returns:
        float32 [N], at most 1.
    """
    mirrored, places = _best_places(films, others)
    films = torch.where(mirrored[:, None, None, None], films.flip(-1), films)
    found = _registered(_resized(films, _FINE), _resized(others, _TARGET), places)
    return (found / _attenuation(films)).clamp_max(1.0)


def noise_sd(films: Tensor) -> Tensor:
    """Standard deviation of the white noise of every film [N, 1, H, W]: float32 [N].

    The median of what a kernel that no plane passes leaves of it (Immerkær, Computer Vision and Image
    Understanding 64(2), 1996, takes the mean, which edges raise).
    """
    kernel = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])[None, None]
    left = F.conv2d(films, kernel).abs().flatten(1)
    return left.median(1).values / 0.6745 / 6.0


def _attenuation(films: Tensor) -> Tensor:
    """By what the noise of films [N, 1, 64, 64] lowers a correlation at the fine size, [N], at least 0.5."""
    variance = _resized(films, _FINE).flatten(1).var(1).clamp_min(1e-8)
    return (1 - _NOISE_LEFT * noise_sd(films).square() / variance).clamp_min(0.25).sqrt()


def _candidates(films: Tensor, training: Callable[[Tensor], Tensor], number: int, count: int) -> Tensor:
    """int64 [N, count]: the training films with the best match on the coarse grid."""
    values, places = torch.empty(len(films), 0), torch.empty(len(films), 0, dtype=torch.int64)
    for some in torch.arange(number).split(_TRAINING):
        grid = _coarse(training(some), _COARSE)
        best: Tensor | None = None
        for shown, row, column, width in _placed(films):
            others = _unit(grid[:, row : row + width, column : column + width])
            found = shown @ others.T
            best = found if best is None else torch.maximum(best, found, out=best)
        assert best is not None
        values = torch.cat([values, best], 1)
        places = torch.cat([places, some.expand(len(films), -1)], 1)
        values, kept = values.topk(min(count, values.shape[1]), 1)
        places = places.gather(1, kept)
    return places


def _best_places(films: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """bool [N], mirrored; float32 [N, 3], the side of the best place on the coarse grid and its middle."""
    grid = _coarse(others, _COARSE)[None]
    best, mirrored = torch.full((len(films),), -math.inf), torch.zeros(len(films), dtype=torch.bool)
    places = torch.zeros(len(films), 3)
    for width in _WIDTHS:
        room, area = _COARSE - width + 1, width * width
        mean = F.avg_pool2d(grid, width, 1)[0]
        spread = (F.avg_pool2d(grid.square(), width, 1)[0] - mean.square()).clamp_min(1e-12 / area).sqrt()
        small = _unit(_coarse(films, width)).reshape(-1, 1, width, width)
        for is_mirrored in (False, True):
            shown = small.flip(-1) if is_mirrored else small
            found = F.conv2d(grid, shown, groups=len(films))[0] / (spread * width)
            value, at = found.flatten(1).max(1)
            row, column = at // room, at % room
            middle = torch.stack([2 * column + width, 2 * row + width], 1) / _COARSE - 1
            place = torch.cat([torch.full((len(films), 1), width / _COARSE), middle], 1)
            better = value > best
            best[better], mirrored[better] = value[better], is_mirrored
            places[better] = place[better]
    return mirrored, places


def _placed(films: Tensor) -> Iterator[tuple[Tensor, int, int, int]]:
    """Films at every size, with all their places: ([N, width²], row, column, width); first as they are."""
    for shown in (films, films.flip(-1)):
        for width in _WIDTHS:
            small = _unit(_coarse(shown, width))
            for row in range(_COARSE - width + 1):
                for column in range(_COARSE - width + 1):
                    yield small, row, column, width


def _registered(films: Tensor, others: Tensor, places: Tensor) -> Tensor:
    """The correlation, float32 [N], of films [N, 1, h, h] with the best part of others [N, 1, H, H].

    ``places`` are float32 [N, 3]: the side of a part, and its middle in [-1, 1], to start from.
    """
    target = _unit(films[:, 0])
    along = (2 * torch.arange(films.shape[-1]) + 1) / films.shape[-1] - 1
    whole = torch.stack(torch.meshgrid(along, along, indexing="xy"), -1)

    def shown(place: Tensor) -> Tensor:
        grid = place[:, None, None, :1] * whole + place[:, None, None, 1:]
        return _unit(F.grid_sample(others, grid, padding_mode="border", align_corners=False)[:, 0])

    place, delta = places.clone(), 1 / others.shape[-1]
    part = shown(place)
    best, damping = (target * part).sum(1), torch.full((len(place), 1), 1e-3)
    for _ in range(_STEPS):
        slopes = [(shown(place + delta * axis) - part) / delta for axis in torch.eye(3)]
        left = target - part
        normal = torch.stack([torch.stack([(a * b).sum(1) for a in slopes], 1) for b in slopes], 1)
        diagonal = normal.diagonal(dim1=1, dim2=2).clamp_min(1e-8)
        right = torch.stack([(a * left).sum(1) for a in slopes], 1)
        step = torch.linalg.solve(normal + torch.diag_embed(damping * diagonal + 1e-8), right)
        tried = place + step.clamp(-_LARGEST_STEP, _LARGEST_STEP)
        tried[:, 0].clamp_(LEAST_SIDE - _LARGEST_STEP, 1.0)
        room = 1 - tried[:, :1]
        tried[:, 1:] = torch.minimum(torch.maximum(tried[:, 1:], -room), room)
        there = shown(tried)
        value = (target * there).sum(1)
        better = value > best
        place[better], part[better], best[better] = tried[better], there[better], value[better]
        damping = torch.where(better[:, None], damping * 0.3, damping * 5).clamp(1e-6, 1e3)
    return best


def _resized(films: Tensor, size: int) -> Tensor:
    return F.interpolate(films, (size, size), mode="bilinear", antialias=True)


def _coarse(films: Tensor, size: int) -> Tensor:
    """[N, size, size] without what is smoother than the anatomy that all films share."""
    small = _resized(films, size)
    reach = math.ceil(2 * _SIGMA)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * _SIGMA**2))
    kernel = kernel / kernel.sum()
    wide = F.pad(small, (reach,) * 4, mode="reflect")
    return (small - F.conv2d(F.conv2d(wide, kernel[None, None, :, None]), kernel[None, None, None]))[:, 0]


def _unit(films: Tensor) -> Tensor:
    """[N, H, W] as rows [N, H·W] of mean 0 and length 1; a film without contrast is 0."""
    rows = films.flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-6)
