"""Triton backend of attention: flash attention with an extra key segment and shared keys, both directions.

The kernels and their maths are in ``_attention.py``; here are the tile sizes and the launches. Nothing is
concatenated, repeated or atomically added: a key row that several query rows share gets its gradient from
float32 parts, one for each of them, that a last kernel adds up in a fixed order. So do short key segments
whose blocks alone would not fill a card: their queries are cut into parts.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from cxrl_kernels._attention import (
    _attention_bwd_dkv_kernel,
    _attention_bwd_dq_kernel,
    _attention_bwd_sum_kernel,
    _attention_fwd_kernel,
)
from cxrl_kernels._common import INDEX_LIMIT, capability_of, unavailable

__all__ = ["SUPPORTED", "attention", "attention_backward", "unavailable"]

SUPPORTED: frozenset[str] = frozenset({"a head dimension above 160"})

FILL = 512  # programs that keep the largest cards busy: two for each of their processors, and more
MIN_QUERIES_IN_SPLIT = 256


class Tiles(NamedTuple):
    """Queries and keys of a tile, warps, and depth of the load pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


# By kernel and precision: the first entry whose width (of the head, in tiles) is enough.
_TILES: dict[tuple[str, str], list[tuple[int, Tiles]]] = {
    ("forward", "half"): [
        (64, Tiles(128, 64, 4, 3)),
        (96, Tiles(128, 64, 8, 3)),
        (128, Tiles(128, 64, 8, 3)),
        (256, Tiles(64, 32, 4, 2)),
    ],
    ("dq", "half"): [
        (64, Tiles(128, 64, 8, 2)),
        (128, Tiles(64, 64, 4, 2)),
        (256, Tiles(64, 32, 4, 2)),
    ],
    ("dkv", "half"): [
        (64, Tiles(64, 128, 8, 2)),
        (128, Tiles(64, 64, 8, 2)),
        (256, Tiles(32, 64, 8, 2)),
    ],
    ("forward", "single"): [
        (64, Tiles(64, 32, 8, 2)),
        (128, Tiles(32, 32, 8, 2)),
        (256, Tiles(16, 32, 8, 1)),
    ],
    ("dq", "single"): [
        (64, Tiles(32, 32, 8, 1)),
        (128, Tiles(32, 16, 8, 1)),
        (256, Tiles(16, 16, 8, 1)),
    ],
    ("dkv", "single"): [
        (64, Tiles(32, 32, 8, 1)),
        (128, Tiles(16, 32, 8, 1)),
        (256, Tiles(16, 16, 8, 1)),
    ],
}
_ANY_WIDTH = Tiles(16, 16, 4, 1)


def _power(n: int) -> int:
    return max(16, triton.next_power_of_2(n))  # a product has at least 16 of everything


@functools.lru_cache(maxsize=256)
def head_tiles(dim: int) -> tuple[int, int]:
    """Tiles that a head dimension is kept in: (MAIN, TAIL), powers of two from 16; TAIL 0 if one will do."""
    whole = _power(dim)
    main = whole // 2
    tail = _power(dim - main) if dim > main >= 16 else 0
    return (main, tail) if tail and main + tail < whole else (whole, 0)


@functools.lru_cache(maxsize=1024)
def tiles_for(kernel: str, dim: int, dtype: torch.dtype, capability: int, queries: int, keys: int) -> Tiles:
    """Tile sizes of a kernel ("forward", "dq", "dkv") for a problem, from plain tables: nothing is timed."""
    precision = "single" if dtype == torch.float32 else "half"
    width = sum(head_tiles(dim))
    tiles = next((t for limit, t in _TILES[kernel, precision] if width <= limit), _ANY_WIDTH)
    if kernel != "dkv" and keys <= 128:
        tiles = tiles._replace(
            keys=min(tiles.keys, 32)
        )  # 77 keys fill three tiles of 32, one and a bit of 64
    return tiles._replace(queries=min(tiles.queries, _power(queries)), keys=min(tiles.keys, _power(keys)))


def _precision() -> str:
    """How float32 products are rounded: exactly, unless torch was told that tf32 will do."""
    settings = torch.backends.cuda.matmul
    newer = getattr(settings, "fp32_precision", None)  # since torch 2.9, which refuses a mix of both
    return "tf32" if (settings.allow_tf32 if newer is None else newer == "tf32") else "ieee"


def _addressable(t: Tensor) -> Tensor:
    """``t`` [..., rows, D], or a dense copy where the kernels could not address it."""
    if t.stride(-1) == 1 or t.shape[-1] == 1:
        rows, stride = t.shape[-2], t.stride(-2)
        if rows * stride < INDEX_LIMIT:
            return t
    return t.contiguous()


def _extra_strides(t: Tensor | None, heads: int) -> tuple[int, int, int]:
    """Batch, head and row stride of [H, E, D], which every row shares, or [B·H, E, D]."""
    if t is None:
        return 0, 0, 0
    head, row = t.stride()[:2]
    return (0 if t.shape[0] == heads else heads * head), head, row


def _shape_constants(dim: int, dtype: torch.dtype) -> dict[str, Any]:
    main, tail = head_tiles(dim)
    precision = _precision() if dtype == torch.float32 else "ieee"  # half precision products are exact
    return {"D": dim, "MAIN": main, "TAIL": tail, "PRECISION": precision}


def _segment_constants(tiles: Tiles, num_keys: int, num_extra: int) -> dict[str, Any]:
    block_e = min(tiles.keys, _power(num_extra))
    return {
        "BLOCK_M": tiles.queries,
        "BLOCK_N": tiles.keys,
        "BLOCK_E": block_e,
        "WHOLE_N": num_keys % tiles.keys == 0,
        "WHOLE_E": num_extra % block_e == 0,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    kv_index: Tensor | None,
    scale: float,
    keep: bool,
    out: tuple[Tensor, Tensor],
) -> None:
    """Write the result [B, H, N, D] and the log of the softmax denominators [B, H, N] to ``out``."""
    batch, heads, num_queries, dim = q.shape
    if q.numel() == 0:
        return
    q, k, v = _addressable(q), _addressable(k), _addressable(v)
    if extra_k is not None and extra_v is not None:
        extra_k, extra_v = (None, None) if extra_k.shape[1] == 0 else map(_addressable, (extra_k, extra_v))
    kv_index = None if kv_index is None else kv_index.contiguous()
    num_keys, num_extra = k.shape[2], 0 if extra_k is None else extra_k.shape[1]
    tiles = tiles_for("forward", dim, q.dtype, capability_of(q), num_queries, num_keys)
    with torch.cuda.device_of(q):
        _attention_fwd_kernel[(triton.cdiv(num_queries, tiles.queries) * batch * heads,)](
            q,
            k,
            v,
            extra_k,
            extra_v,
            kv_index,
            *out,
            scale,
            heads,
            num_queries,
            num_keys,
            num_extra,
            k.shape[0],
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *_extra_strides(extra_k, heads),
            *_extra_strides(extra_v, heads),
            *out[0].stride()[:3],
            **_shape_constants(dim, q.dtype),
            **_segment_constants(tiles, num_keys, num_extra),
        )


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    kv_index: Tensor | None,
    scale: float,
    result: Tensor,
    log_sum_exp: Tensor,
    out: tuple[Tensor, ...],
) -> None:
    """Write the gradients of q, k, v, extra_k and extra_v (the last two empty without them) to ``out``."""
    batch, heads, num_queries, dim = q.shape
    if q.numel() == 0:
        for t in out:
            t.zero_()
        return
    grad, q, k, v, result = (_addressable(t) for t in (grad, q, k, v, result))
    if extra_k is not None and extra_v is not None:
        extra_k, extra_v = (None, None) if extra_k.shape[1] == 0 else map(_addressable, (extra_k, extra_v))
    kv_index = None if kv_index is None else kv_index.contiguous()
    log_sum_exp = log_sum_exp.contiguous()
    num_keys, num_extra = k.shape[2], 0 if extra_k is None else extra_k.shape[1]
    tiles = tiles_for("dq", dim, q.dtype, capability_of(q), num_queries, num_keys)
    delta = torch.empty_like(log_sum_exp)
    with torch.cuda.device_of(q):
        _attention_bwd_dq_kernel[(triton.cdiv(num_queries, tiles.queries) * batch * heads,)](
            grad,
            q,
            k,
            v,
            extra_k,
            extra_v,
            kv_index,
            result,
            log_sum_exp,
            delta,
            out[0],
            scale,
            heads,
            num_queries,
            num_keys,
            num_extra,
            k.shape[0],
            *grad.stride()[:3],
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *_extra_strides(extra_k, heads),
            *_extra_strides(extra_v, heads),
            *result.stride()[:3],
            *out[0].stride()[:3],
            **_shape_constants(dim, q.dtype),
            **_segment_constants(tiles, num_keys, num_extra),
        )
        common = (grad, q, log_sum_exp, delta, scale)
        strides = (k.stride()[:3], v.stride()[:3])
        grad_strides = (out[1].stride()[:3], out[2].stride()[:3])
        _keys_backward(*common, k, v, kv_index, False, strides, out[1], out[2], grad_strides)
        if extra_k is not None and extra_v is not None:
            strides = (_extra_strides(extra_k, heads), _extra_strides(extra_v, heads))
            grad_strides = (_extra_strides(out[3], heads), _extra_strides(out[4], heads))
            shared = extra_k.shape[0] == heads and batch > 1
            _keys_backward(*common, extra_k, extra_v, None, shared, strides, out[3], out[4], grad_strides)


Strides = tuple[tuple[int, ...], tuple[int, ...]]


def _keys_backward(
    grad: Tensor,
    q: Tensor,
    log_sum_exp: Tensor,
    delta: Tensor,
    scale: float,
    k: Tensor,
    v: Tensor,
    kv_index: Tensor | None,
    shared: bool,
    strides: Strides,
    grad_k: Tensor,
    grad_v: Tensor,
    grad_strides: Strides,
) -> None:
    """The gradients of one segment's keys and values. ``shared``: by all rows of the batch."""
    batch, heads, num_queries, dim = q.shape
    num_keys = k.shape[-2]
    tiles = tiles_for("dkv", dim, q.dtype, capability_of(q), num_queries, num_keys)
    programs = triton.cdiv(num_keys, tiles.keys) * batch * heads
    splits = min(triton.cdiv(FILL, programs), triton.cdiv(num_queries, MIN_QUERIES_IN_SPLIT))
    blocks_in_split = triton.cdiv(triton.cdiv(num_queries, tiles.queries), splits)
    splits = triton.cdiv(num_queries, blocks_in_split * tiles.queries)
    target_k, target_v, target_strides = grad_k, grad_v, ((0, *grad_strides[0]), (0, *grad_strides[1]))
    size = num_keys * dim
    in_parts = splits > 1 or shared or kv_index is not None
    if in_parts:
        shape = (2, splits, batch, heads, num_keys, dim)
        target_k, target_v = torch.empty(shape, dtype=torch.float32, device=q.device)
        target_strides = ((batch * heads * size, heads * size, size, dim),) * 2
    _attention_bwd_dkv_kernel[(programs * splits,)](
        grad,
        q,
        k,
        v,
        kv_index,
        log_sum_exp,
        delta,
        target_k,
        target_v,
        scale,
        heads,
        num_queries,
        num_keys,
        k.shape[0],
        splits,
        blocks_in_split,
        *grad.stride()[:3],
        *q.stride()[:3],
        *strides[0],
        *strides[1],
        *target_strides[0],
        *target_strides[1],
        **_shape_constants(dim, q.dtype),
        BLOCK_M=tiles.queries,
        BLOCK_N=tiles.keys,
        WHOLE_M=num_queries % tiles.queries == 0,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    if in_parts:
        block = min(256, triton.next_power_of_2(size))
        rows = 1 if shared else grad_k.numel() // (heads * size)
        _attention_bwd_sum_kernel[(triton.cdiv(size, block) * heads * rows, 2)](
            target_k,
            target_v,
            kv_index,
            grad_k,
            grad_v,
            batch,
            heads,
            size,
            splits * batch,
            *grad_strides[0],
            *grad_strides[1],
            D=dim,
            SHARED=shared,
            BLOCK_R=8,
            BLOCK_X=block,
            num_warps=4,
        )
