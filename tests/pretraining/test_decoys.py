"""Images that are no film."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cxrl.pretraining.decoys import KINDS, decoys, quarter_turn, shuffled_tiles

FILM = torch.rand(30, 30, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_in_range_and_varies(kind: Callable[[Tensor, torch.Generator], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.stack([kind(FILM, generator) for _ in range(20)])
    assert tuple(images.shape) == (20, 30, 30)
    assert 0.0 <= float(images.min()) < float(images.max()) <= 1.0
    assert len({image.numpy().tobytes() for image in images}) > 1
    assert torch.equal(images[0], kind(FILM, torch.Generator().manual_seed(0)))
    assert all(not torch.equal(image, FILM) for image in images)


def test_spoilt_films_keep_their_pixels() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        turned = quarter_turn(FILM, generator)
        assert torch.equal(turned.rot90(1, (0, 1)), FILM) or torch.equal(turned.rot90(-1, (0, 1)), FILM)
        tiles = shuffled_tiles(torch.rand(60, 60), generator)  # 60 divides by 2 to 6
        assert tuple(tiles.shape) == (60, 60)
    film = torch.rand(60, 60)
    mixed = shuffled_tiles(film, generator)
    assert torch.equal(mixed.flatten().sort().values, film.flatten().sort().values)


def test_a_batch_is_drawn_from_the_generator_alone() -> None:
    images = FILM.expand(11, 1, 30, 30)
    bad = decoys(images, torch.Generator().manual_seed(2))
    assert bad.shape == images.shape
    assert 0.0 <= float(bad.min()) <= float(bad.max()) <= 1.0
    assert torch.equal(bad, decoys(images, torch.Generator().manual_seed(2)))
    assert float((bad - images).abs().mean((1, 2, 3)).min()) > 0.02
