"""Attention forward and backward: cross-attention with an ACE segment, and self-attention.

SDPA concatenates; so do plain matmul-softmax, ``torch.compile`` and xformers.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrl.ops import attention
from cxrl.ops.attention import attention_reference, attention_sdpa, attention_xformers

BATCH, HEADS = 4, 4


def comparators(leaves: list[Tensor], device: str) -> dict[str, Callable[[], object]]:
    """One forward and backward by ``auto`` and by everything stock that runs here."""
    q, k, v, *extra = leaves
    extra_k, extra_v = extra or (None, None)
    grad = torch.randn_like(q)

    def step(forward: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(), leaves, grad)

    stock: dict[str, Callable[..., Tensor]] = {
        "sdpa": attention_sdpa,
        "eager": attention_reference,
        "compile": torch.compile(attention_reference),
    }
    if device == "cuda" and importlib.util.find_spec("xformers"):
        stock["xformers"] = attention_xformers
    functions = {"auto": step(lambda: attention(q, k, v, extra_k=extra_k, extra_v=extra_v))}
    for name, function in stock.items():
        functions[name] = step(functools.partial(function, q, k, v, extra_k, extra_v))
    return functions


@pytest.mark.parametrize(("queries", "dim"), [(64, 16), (256, 40), (1024, 40), (256, 80), (256, 160)])
def test_cross_attention(compare: Callable[..., Any], device: str, queries: int, dim: int) -> None:
    keys, extra = 77, 8
    q, k, v = (torch.randn(BATCH, HEADS, n, dim, requires_grad=True) for n in (queries, keys, keys))
    extra_kv = [torch.randn(HEADS, extra, dim, requires_grad=True) for _ in range(2)]
    compare(
        "cross-attention fwd+bwd",
        f"B={BATCH} H={HEADS} N={queries} 77+8 D={dim}",
        comparators([q, k, v, *extra_kv], device),
        num_bytes=4 * BATCH * HEADS * (4 * queries + 4 * (keys + extra)) * dim,
        flops=10 * BATCH * HEADS * queries * (keys + extra) * dim,
    )


@pytest.mark.parametrize(("queries", "dim"), [(64, 16), (256, 40), (1024, 40)])
def test_self_attention(compare: Callable[..., Any], device: str, queries: int, dim: int) -> None:
    leaves = [torch.randn(BATCH, HEADS, queries, dim, requires_grad=True) for _ in range(3)]
    compare(
        "self-attention fwd+bwd",
        f"B={BATCH} H={HEADS} N={queries} D={dim}",
        comparators(leaves, device),
        num_bytes=4 * BATCH * HEADS * 8 * queries * dim,
        flops=10 * BATCH * HEADS * queries * queries * dim,
    )
