"""Cross-attention with an ACE segment, forward and backward, against SDPA with concatenation and eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cxrl.ops import attention


@pytest.mark.parametrize(("queries", "dim"), [(64, 16), (256, 40), (1024, 40), (256, 80), (256, 160)])
def test_cross_attention(compare: Callable[..., Any], queries: int, dim: int) -> None:
    batch, heads, keys, extra = 4, 4, 77, 8
    q = torch.randn(batch, heads, queries, dim, requires_grad=True)
    k, v = (torch.randn(batch, heads, keys, dim, requires_grad=True) for _ in range(2))
    extra_k, extra_v = (torch.randn(heads, extra, dim, requires_grad=True) for _ in range(2))
    leaves, grad = (q, k, v, extra_k, extra_v), torch.randn(batch, heads, queries, dim)

    def step(backend: str) -> Callable[[], object]:
        def run() -> object:
            output = attention(q, k, v, extra_k=extra_k, extra_v=extra_v, backend=backend)
            return torch.autograd.grad(output, leaves, grad)

        return run

    compare(
        "cross-attention fwd+bwd",
        f"B={batch} H={heads} N={queries} 77+8 D={dim}",
        {"auto": step("auto"), "sdpa": step("sdpa"), "eager": step("reference")},
        num_bytes=4 * batch * heads * (4 * queries + 4 * (keys + extra)) * dim,
        flops=10 * batch * heads * queries * (keys + extra) * dim,
    )
