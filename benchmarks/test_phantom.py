"""Films a second of the phantom: ``OMP_NUM_THREADS=1 pytest benchmarks/test_phantom.py``.

Rendering is numpy on one core; ``extra_info`` holds images per second.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from cxrl.data.phantom.films import corpus

NUM_FILMS = 64


@pytest.mark.parametrize("size", [64, 128])
def test_phantom(benchmark: BenchmarkFixture, size: int) -> None:
    films = benchmark.pedantic(corpus, (NUM_FILMS,), {"seed": 0, "size": size}, rounds=5, warmup_rounds=1)
    assert len(films) == NUM_FILMS
    benchmark.extra_info["images_per_second"] = NUM_FILMS / benchmark.stats.stats.median
