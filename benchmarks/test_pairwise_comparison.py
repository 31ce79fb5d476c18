"""``pairwise_comparison`` forward in every form, and backward where there is one; ``group_win_rate``.

Against eager PyTorch and ``torch.compile``, which check nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cxrl.ops import group_win_rate, pairwise_comparison
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
    prompt_of = torch.randint(p, (n,))
    grad = torch.randn(n)
    rewards.requires_grad_(backward)

    def step(function: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], object]:
        def run() -> object:
            score, win_rate = function(rewards, anchors, prompt_of, weights, form)
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


def test_group_win_rate(compare: Callable[..., Any], fastest_compiled: Callable[..., Any]) -> None:
    p, size, k = 64, 16, 3
    rewards, prompt_of = torch.randn(p * size, k), torch.arange(p).repeat_interleave(size)

    def stock(rewards: torch.Tensor, prompt_of: torch.Tensor) -> torch.Tensor:
        # The best that eager PyTorch has: it knows that groups are equal and in order, which the op does not.
        own, other = rewards.view(p, size, 1, k), rewards.view(p, 1, size, k)
        beaten = (own > other).to(rewards.dtype) + 0.5 * (own == other).to(rewards.dtype)
        return ((beaten.sum(2) - 0.5) / (size - 1)).view(-1, k)

    def step(function: Callable[..., torch.Tensor]) -> Callable[[], object]:
        return lambda: function(rewards, prompt_of)

    torch.testing.assert_close(stock(rewards, prompt_of), group_win_rate(rewards, prompt_of))
    compare(
        "group_win_rate",
        f"N={p * size} P={p} K={k}",
        {
            "auto": step(group_win_rate),
            "eager": step(stock),
            "compile": fastest_compiled(step, stock, THREADS),
        },
        num_bytes=4 * 2 * p * size * k + 8 * p * size,
        flops=p * size * size * k * 2,
    )
