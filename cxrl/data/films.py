"""The films of an index, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cxrl.data.index import FilmRecord, Tally
from cxrl.images import unreadable as reasons
from cxrl.images.read import read_image
from cxrl.images.unreadable import UnreadableImage


def read_films(
    films: Sequence[FilmRecord], root: Path, size: int | tuple[int, int], *, tally: Tally, crop: bool = True
) -> tuple[Tensor, list[FilmRecord]]:
    """The films that can be read.

    Args:
        films: Records with an image.
        root: Of the index.
        size: Pixels (height, width), or of a side.
        tally: Gets those that cannot be read, by reason.
        crop: As in :func:`read_image`.

    Returns:
        float32 [n, 1, H, W] and the n records.
    """
    images, kept = [], []
    for film in films:
        try:
            if not film.image:
                raise UnreadableImage(root, reasons.MISSING)
            images.append(read_image(root / film.image, size, crop=crop))
            kept.append(film)
        except UnreadableImage as error:
            tally.add(error.reason, film.film)
    height, width = (size, size) if isinstance(size, int) else size
    return torch.stack(images) if images else torch.zeros(0, 1, height, width), kept
