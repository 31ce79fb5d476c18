"""The guard without weights, on phantoms brought to the look of films and on images that are none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cxrl.data.phantom.films import corpus
from cxrl.scorers.validity import COEFFICIENTS, NUM_FEATURES, film_features, film_validity


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
