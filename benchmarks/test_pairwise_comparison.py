"""``pairwise_comparison`` against eager PyTorch and ``torch.compile``, which check nothing.

Forward in every form, and backward to the rewards where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cxrl.ops import pairwise_comparison
from cxrl.ops.pairwise_comparison import pairwise_comparison_reference

# Compiled code for this op meets at many barriers: one thread may be faster.
THREADS = ({}, {"options": {"cpp.threads": 1}})


@pytest.mark.parametrize(
    ("form", "backward"),
    [
        ("difference", False),
        ("win", False),
        ("bradley_terry", False),
        ("difference", True),
        ("bradley_terry", True),
    ],
)
def test_pairwise_comparison(
    compare: Callable[..., Any], fastest_compiled: Callable[..., Any], form: str, backward: bool
) -> None:
    n, p, m, k = 4096, 256, 8, 3
    rewards, anchors, weights = torch.randn(n, k), torch.randn(p, m, k), torch.ones(k)
    prompt = torch.randint(p, (n,))
    grad = torch.randn(n)
    rewards.requires_grad_(backward)

    def step(function: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], object]:
        def run() -> object:
            score, win_rate = function(rewards, anchors, prompt, weights, form)
            return torch.autograd.grad(score, rewards, grad) if backward else (score, win_rate)

        return run

    compare(
        f"pairwise_comparison {form}{' fwd+bwd' if backward else ''}",
        f"N={n} P={p} M={m} K={k}",
        {
            "auto": step(pairwise_comparison),
            "eager": step(pairwise_comparison_reference),
            "compile": fastest_compiled(step, pairwise_comparison_reference, THREADS),
        },
        num_bytes=4 * (n * k + p * m * k + n) + 8 * n,
        flops=n * m * k * 4,
    )
