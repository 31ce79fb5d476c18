"""Attention forward and backward: cross-attention with an ACE segment, and self-attention.

SDPA concatenates; so do plain matmul-softmax, ``torch.compile`` and xformers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrl.ops import attention
from cxrl.ops.attention import attention_reference, attention_sdpa, attention_xformers

BATCH, HEADS = 4, 4


Comparators = Callable[[list[Tensor]], dict[str, Callable[[], object]]]


@pytest.fixture
def comparators(device: str, fastest_compiled: Callable[..., Any]) -> Comparators:
    """One forward and backward by ``auto`` and by everything stock that runs here, which checks nothing."""

    def of(leaves: list[Tensor]) -> dict[str, Callable[[], object]]:
        q, k, v, *extra = leaves
        extra_k, extra_v = extra or (None, None)
        grad = torch.randn_like(q)

        def step(forward: Callable[..., Tensor]) -> Callable[[], object]:
            return lambda: torch.autograd.grad(forward(q, k, v, extra_k, extra_v), leaves, grad)

        functions = {
            "auto": step(lambda q, k, v, ek, ev: attention(q, k, v, extra_k=ek, extra_v=ev)),
            "sdpa": step(attention_sdpa),
            "eager": step(attention_reference),
            "compile": fastest_compiled(step, attention_reference),
        }
        if device == "cuda" and importlib.util.find_spec("xformers"):
            functions["xformers"] = step(attention_xformers)
        return functions

    return of


@pytest.mark.parametrize(("queries", "dim"), [(64, 16), (256, 40), (1024, 40), (256, 80), (256, 160)])
def test_cross_attention(
    compare: Callable[..., Any], comparators: Comparators, queries: int, dim: int
) -> None:
    keys, extra = 77, 8
    q, k, v = (torch.randn(BATCH, HEADS, n, dim, requires_grad=True) for n in (queries, keys, keys))
    extra_kv = [torch.randn(HEADS, extra, dim, requires_grad=True) for _ in range(2)]
    compare(
        "cross-attention fwd+bwd",
        f"B={BATCH} H={HEADS} N={queries} 77+8 D={dim}",
        comparators([q, k, v, *extra_kv]),
        num_bytes=4 * BATCH * HEADS * (4 * queries + 4 * (keys + extra)) * dim,
        flops=10 * BATCH * HEADS * queries * (keys + extra) * dim,
    )


@pytest.mark.parametrize(("queries", "dim"), [(64, 16), (256, 40), (1024, 40)])
def test_self_attention(
    compare: Callable[..., Any], comparators: Comparators, queries: int, dim: int
) -> None:
    leaves = [torch.randn(BATCH, HEADS, queries, dim, requires_grad=True) for _ in range(3)]
    compare(
        "self-attention fwd+bwd",
        f"B={BATCH} H={HEADS} N={queries} D={dim}",
        comparators(leaves),
        num_bytes=4 * BATCH * HEADS * 8 * queries * dim,
        flops=10 * BATCH * HEADS * queries * queries * dim,
    )
