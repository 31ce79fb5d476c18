"""``pairwise_comparison`` forward against eager PyTorch and ``torch.compile``, in every form.

``torch.compile`` gets all threads or one, as suits it: its code for this op meets at many barriers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cxrl.ops import pairwise_comparison


def fastest_compiled(function: Callable[[], object]) -> Callable[[], object]:
    """``function`` compiled for all threads or for one."""
    seconds = {}
    for options in ({}, {"cpp.threads": 1}):
        compiled = torch.compile(function, options=options)
        for _ in range(3):
            compiled()
        start = time.perf_counter()
        for _ in range(5):
            compiled()
        seconds[compiled] = time.perf_counter() - start
    return min(seconds, key=seconds.__getitem__)


@pytest.mark.parametrize("form", ["difference", "win", "bradley_terry"])
def test_pairwise_comparison(compare: Callable[..., Any], form: str) -> None:
    n, p, m, k = 4096, 256, 8, 3
    rewards, anchors, weights = torch.randn(n, k), torch.randn(p, m, k), torch.ones(k)
    prompt = torch.randint(p, (n,))

    def reference() -> object:
        return pairwise_comparison(rewards, anchors, prompt, weights, form, backend="reference")

    compare(
        f"pairwise_comparison {form}",
        f"N={n} P={p} M={m} K={k}",
        {
            "auto": lambda: pairwise_comparison(rewards, anchors, prompt, weights, form),
            "eager": reference,
            "compile": fastest_compiled(reference),
        },
        num_bytes=4 * (n * k + p * m * k + n) + 8 * n,
        flops=n * m * k * 4,
    )
