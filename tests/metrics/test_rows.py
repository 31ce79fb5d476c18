"""Rows of a matrix on disk, a few at a time."""

from __future__ import annotations

import subprocess
import sys
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


def test_distances_of_many_films_are_in_memory_a_block_at_a_time(tmp_path: Path) -> None:
    """Two sets of 160 MB each, which would be 320 MB each in float64, in a hundred more than before."""
    script = tmp_path / "measured.py"
    script.write_text(
        "import resource\n"
        "import numpy as np\n"
        "from cxrl.metrics.distribution import kernel_distance, moments, moments_distance\n"
        "from cxrl.metrics.rows import Rows\n"
        "def peak():\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "def of(number):\n"
        "    x, y = (Rows(np.load(f'{s}.npy', mmap_mode='r'), np.arange(number)) for s in 'xy')\n"
        "    moments_distance(moments(x), moments(y))\n"
        "    kernel_distance(x, y, subset_size=100)\n"
        "of(2000)\n"
        "before = peak()\n"
        "of(160_000)\n"
        "print(peak() - before)\n"
    )
    for name in "xy":
        whole = np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.float32, (160_000, 256))
        for start in range(0, len(whole), 20_000):
            whole[start : start + 20_000] = np.random.default_rng(start).normal(size=(20_000, 256))
        del whole
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100
