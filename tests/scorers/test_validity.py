"""The guard without weights, on phantoms brought to the look of films and on images that are none."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cxrl.data.phantom.films import corpus
from cxrl.scorers.validity import (
    COEFFICIENTS,
    EMPTY_RAMP,
    MIRROR_RAMP,
    NUM_FEATURES,
    empty_share,
    film_features,
    film_validity,
    halves_validity,
    mirror_agreement,
)


@pytest.fixture(scope="module")
def films() -> Tensor:
    """Films that the fit has not seen: 64 phantoms."""
    return corpus(64, seed=8102).pixels()


def random(films: Tensor, seed: int) -> Tensor:
    return torch.rand(films.shape, generator=torch.Generator().manual_seed(seed))


def blobs(films: Tensor) -> Tensor:
    return F.interpolate(random(films, 1)[..., :5, :5], films.shape[-2:], mode="bicubic").clamp(0, 1)


NONE = {
    "black": torch.zeros_like,
    "white": torch.ones_like,
    "grey": lambda x: torch.full_like(x, 0.5),
    "noise": lambda x: random(x, 0),
    "faint_noise": lambda x: 0.4 + 0.1 * random(x, 2),
    "inverted": lambda x: 1.0 - x,
    "upside_down": lambda x: x.flip(-2),
    "quarters_swapped": lambda x: x.roll((32, 32), (-2, -1)),
    "flat": lambda x: 0.5 + 0.1 * (x - 0.5),
    "ramp": lambda x: torch.linspace(0, 1, 64).expand_as(x),
    "stripes": lambda x: (torch.arange(64) // 4 % 2).float().expand_as(x),
    "board": lambda x: (
        ((torch.arange(64) // 8 % 2) ^ (torch.arange(64) // 8 % 2)[:, None]).float().expand_as(x)
    ),
}


@pytest.mark.parametrize("kind", NONE)
def test_what_is_no_film_is_refused(films: Tensor, kind: str) -> None:
    validity = film_validity(NONE[kind](films))
    assert float((validity < 0.5).float().mean()) > 0.98, validity.max()
    assert float(validity.mean()) < 0.02


def test_blobs_are_mostly_refused(films: Tensor) -> None:
    assert float((film_validity(blobs(films)) < 0.5).float().mean()) > 0.9


def test_phantoms_pass_although_the_fit_never_saw_one(films: Tensor) -> None:
    assert float((film_validity(films) > 0.5).float().mean()) > 0.8


def test_size_brightness_and_mirroring_do_not_matter(films: Tensor) -> None:
    validity = film_validity(films)
    large = F.interpolate(films, (300, 300), mode="bilinear")
    assert float((film_validity(large) - validity).abs().mean()) < 0.05
    # Layout is measured in units of its own spread.
    torch.testing.assert_close(film_features(0.2 + 0.5 * films), film_features(films), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(film_validity(films.flip(-1)), validity, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 7, 5), (2, 1, 16, 16), (1, 1, 512, 512)])
def test_every_shape_gives_a_share(shape: tuple[int, ...]) -> None:
    validity = film_validity(torch.rand(shape, generator=torch.Generator().manual_seed(3)))
    assert validity.shape == shape[:1]
    assert bool(((validity >= 0) & (validity <= 1)).all())


def test_rows_do_not_touch_each_other(films: Tensor) -> None:
    mixed = torch.cat([films[:2], 1.0 - films[:2]])
    alone = torch.cat([film_validity(part) for part in mixed.split(1)])
    torch.testing.assert_close(film_validity(mixed), alone, rtol=1e-4, atol=1e-5)


def test_the_coefficients_are_as_many_as_the_features(films: Tensor) -> None:
    assert film_features(films[:1]).shape == (1, NUM_FEATURES)
    assert len(COEFFICIENTS) == NUM_FEATURES


def left_doubled(films: Tensor) -> Tensor:
    left = films[..., : films.shape[-1] // 2]
    return torch.cat([left, left.flip(-1)], -1)


def turned(films: Tensor, degrees: float, shift: float) -> Tensor:
    a = math.radians(degrees)
    matrix = torch.tensor([[math.cos(a), -math.sin(a), shift], [math.sin(a), math.cos(a), 0.0]])
    grid = F.affine_grid(matrix.expand(len(films), 2, 3), list(films.shape), align_corners=False)
    return F.grid_sample(films, grid, padding_mode="border", align_corners=False)


def half_black(films: Tensor, half: str) -> Tensor:
    middle, black = films.shape[-1] // 2, films.clone()
    side = slice(None, middle) if half in ("left", "upper") else slice(middle, None)
    (black.mT if half in ("upper", "lower") else black)[..., side] = 0.0
    return black


HALVES_WRONG = {
    "left_doubled": left_doubled,
    "right_doubled": lambda x: left_doubled(x.flip(-1)),
    **{
        f"{half}_black": functools.partial(half_black, half=half)
        for half in ("left", "right", "upper", "lower")
    },
}


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("kind", HALVES_WRONG)
def test_a_half_that_is_missing_or_there_twice_is_refused(films: Tensor, kind: str, size: int) -> None:
    spoilt = F.interpolate(HALVES_WRONG[kind](films), (size, size), mode="bilinear")
    noise = torch.randn(spoilt.shape, generator=torch.Generator().manual_seed(0))
    # The guard sees 64 pixels: of a larger image the noise is averaged.
    noisy = (spoilt + (0.02 if size > 64 else 0.01) * noise).clamp(0, 1)
    for images in (spoilt, noisy, 1.0 - spoilt, 0.3 + 0.4 * spoilt):
        assert float(halves_validity(images).max()) == 0.0
        assert float(film_validity(images).max()) == 0.0


@pytest.mark.parametrize("degrees", [-5.0, -2.5, 1.0, 4.0])
def test_a_doubled_half_is_seen_turned_and_moved(films: Tensor, degrees: float) -> None:
    large = F.interpolate(left_doubled(films), (256, 256), mode="bilinear")
    for shift in (-0.06, 0.0, 0.03):
        agreement = mirror_agreement(turned(large, degrees, shift))
        assert float(agreement.quantile(0.05)) > MIRROR_RAMP[1]


def test_the_limits_ask_nothing_of_a_film(films: Tensor) -> None:
    assert float((halves_validity(films) == 1.0).float().mean()) > 0.9
    torch.testing.assert_close(halves_validity(films.flip(-1)), halves_validity(films), rtol=0, atol=1e-4)
    free = float(halves_validity(films).mean())
    for border in (
        (10, 10, 0, 0),
        (0, 0, 10, 10),
        (10, 10, 10, 10),
        (0, 0, 0, 16),
    ):  # as a portrait film in a square
        bordered = F.pad(films, border)
        assert float(empty_share(bordered).max()) < EMPTY_RAMP[0]
        assert float(halves_validity(bordered).mean()) > free - 0.05


def test_agreement_and_emptiness_of_known_images() -> None:
    noise = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert float(mirror_agreement(noise).max()) < 0.3
    assert mirror_agreement((noise + noise.flip(-1)) / 2).tolist() == pytest.approx([1.0, 1.0], abs=1e-4)
    assert mirror_agreement(torch.full((1, 1, 64, 64), 0.5)).tolist() == [0.0]
    for strip in (0, 7, 40):
        empty = noise.clone()
        empty[..., 64 - strip :] = 0.2
        assert empty_share(empty).tolist() == pytest.approx([strip / 64] * 2)
        assert empty_share(empty.mT).tolist() == pytest.approx([strip / 64] * 2)
