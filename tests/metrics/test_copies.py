"""Copies are found however they are changed; other films are not taken for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cxrl.metrics.copies as module
from cxrl.data.phantom.films import corpus
from cxrl.metrics.classification import auroc
from cxrl.metrics.copies import match, nearest_copies, noise_sd

NUM_TRAINING, NUM_COPIES = 300, 24


def cut(films: Tensor, side: int, row: int, column: int) -> Tensor:
    part = films[..., row : row + side, column : column + side]
    return F.interpolate(part, (64, 64), mode="bilinear", antialias=True)


def noisy(films: Tensor) -> Tensor:
    noise = 0.1 * torch.randn(films.shape, generator=torch.Generator().manual_seed(5))
    return (films + noise).clamp(0, 1)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "exact": lambda films: films,
    "flipped": lambda films: films.flip(-1),
    "noised": noisy,
    "cropped": lambda films: cut(films, 51, 3, 9),
    "cropped, flipped and noised": lambda films: noisy(cut(films.flip(-1), 55, 7, 1)),
    "of another contrast": lambda films: 0.2 + 0.5 * films,
}


@pytest.fixture(scope="module")
def training() -> Tensor:
    return corpus(NUM_TRAINING, seed=11).pixels()


@pytest.fixture(scope="module")
def held_out() -> Tensor:
    return corpus(60, seed=22).pixels()


def nearest(films: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    return nearest_copies(films, lambda rows: training[rows], len(training))


@pytest.mark.parametrize("name", CHANGES)
def test_copies_are_told_from_other_films(name: str, training: Tensor, held_out: Tensor) -> None:
    places = torch.arange(NUM_COPIES) * 12
    found, which = nearest(CHANGES[name](training[places]), training)
    others, _ = nearest(held_out, training)
    assert (which == places).float().mean() >= 0.95
    is_copy = torch.cat([torch.ones(len(found)), torch.zeros(len(others))])
    assert auroc(torch.cat([found, others]), is_copy) >= 0.99


def test_noise_alone_makes_no_copy(training: Tensor, held_out: Tensor) -> None:
    plain, _ = nearest(held_out, training)
    found, _ = nearest(noisy(held_out), training)
    is_noisy = torch.cat([torch.ones(len(found)), torch.zeros(len(plain))])
    assert 0.3 < auroc(torch.cat([found, plain]), is_noisy) < 0.7


def test_pieces_do_not_change_what_is_found(
    training: Tensor, held_out: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    films = held_out[:9]
    value, place = nearest(films, training)
    for name, size in (("_FILMS", 4), ("_TRAINING", 70), ("_PAIRS", 17)):
        monkeypatch.setattr(module, name, size)
    again, at = nearest(films, training)
    torch.testing.assert_close(again, value, atol=1e-4, rtol=0)
    assert torch.equal(at, place)


def test_a_training_set_smaller_than_the_candidates(training: Tensor) -> None:
    value, place = nearest(training[:3], training[:5])
    assert place.tolist() == [0, 1, 2]
    torch.testing.assert_close(value, torch.ones(3), atol=2e-3, rtol=0)


def test_the_match_has_no_place_outside(training: Tensor) -> None:
    """A film that shows less than 70 % of another's side is not laid over it."""
    half = match(cut(training[:20], 32, 16, 16), training[:20])
    most = match(cut(training[:20], 48, 8, 8), training[:20])
    assert half.median() < most.median() - 0.01 < 1


def test_blank_films_match_nothing(training: Tensor) -> None:
    found = match(torch.zeros(2, 1, 64, 64), training[:2])
    assert torch.equal(found, torch.zeros(2))


@pytest.mark.parametrize("sd", [0.02, 0.05])
def test_the_noise_of_a_film(sd: float) -> None:
    ramp = torch.linspace(0.3, 0.7, 64).expand(8, 1, 64, 64)
    noise = sd * torch.randn(ramp.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise_sd(ramp + noise), torch.full((8,), sd), rtol=0.1, atol=0)
    assert float(noise_sd(ramp).max()) < 1e-3
