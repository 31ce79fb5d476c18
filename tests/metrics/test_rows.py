"""Rows of a matrix on disk, a few at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cxrl.metrics.rows import Rows


@pytest.fixture
def matrix(tmp_path: Path) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(2500, 3)).astype(np.float32)
    np.save(tmp_path / "matrix.npy", values)
    return np.load(tmp_path / "matrix.npy", mmap_mode="r")


def test_rows_are_those_that_were_picked(matrix: np.ndarray) -> None:
    picked = np.random.default_rng(1).permutation(2500)[:2100]
    rows = Rows(matrix, picked)
    assert rows.shape == (len(rows), 3) == (2100, 3)
    expected = torch.from_numpy(np.array(matrix)[picked].astype(np.float64))
    assert torch.equal(torch.cat(list(rows.blocks())), expected)
    assert torch.equal(rows.take(torch.tensor([5, 3, 3])), expected[[5, 3, 3]])


def test_a_part_of_a_map_is_not_taken_for_the_map(matrix: np.ndarray) -> None:
    assert torch.equal(Rows(matrix[7:]).take(np.array([0])), torch.from_numpy(matrix[7:8].astype(np.float64)))


def test_a_row_that_is_not_finite_is_named() -> None:
    values = torch.zeros(1100, 2)
    values[1030, 1] = torch.inf
    with pytest.raises(ValueError, match="row 1030 is not finite"):
        list(Rows(values).blocks())
