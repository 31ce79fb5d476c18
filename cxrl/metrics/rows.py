"""Some rows of a matrix that may be larger than memory, read a few at a time."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1024


class Rows:
    """Rows of a matrix [M, D], as features of the films of a set.

    A memory map is opened anew for every read, so that no more of the file than that read stays mapped.

    Attributes:
        shape: (N, D), of the rows that were picked.
    """

    def __init__(self, matrix: np.ndarray | Tensor, rows: np.ndarray | None = None) -> None:
        """Args:
        matrix: [M, D].
        rows: int64 [N], which of them; None for all.
        """
        self._matrix = matrix.detach().cpu().numpy() if isinstance(matrix, Tensor) else matrix
        self._rows = np.arange(len(matrix)) if rows is None else np.asarray(rows)
        self.shape: tuple[int, int] = (len(self._rows), int(matrix.shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, places: np.ndarray | Tensor) -> Tensor:
        """float64 [n, D] of the rows at ``places`` in [0, N).

        Raises:
            ValueError: A row is not finite.
        """
        wanted = np.asarray(places)
        found = torch.empty(len(wanted), self.shape[1], dtype=torch.float64)
        for start in range(0, len(wanted), _BLOCK):
            part = wanted[start : start + _BLOCK]
            values = torch.from_numpy(opened(self._matrix)[self._rows[part]].astype(np.float64))
            bad = (~values.isfinite()).any(1)
            if bool(bad.any()):
                raise ValueError(f"row {int(part[int(bad.nonzero()[0])])} is not finite")
            found[start : start + len(part)] = values
        return found

    def blocks(self) -> Iterator[Tensor]:
        """All rows in their order, float64 [n, D] at a time. Raises as :meth:`take`."""
        for start in range(0, len(self), _BLOCK):
            yield self.take(np.arange(start, min(start + _BLOCK, len(self))))


def opened(matrix: np.ndarray) -> np.ndarray:
    """A memory map opened anew, so that what is read through it is in memory no longer than it is; any other
    array as it is.
    """
    if not isinstance(matrix, np.memmap) or not isinstance(matrix.base, mmap.mmap):
        return matrix  # no map, or a part of one, which does not know where it begins
    return np.memmap(matrix.filename, matrix.dtype, "r", matrix.offset, matrix.shape)
