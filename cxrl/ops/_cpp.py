"""The C++ CPU backend: describes tensors to :mod:`cxrl._C` as addresses, sizes and strides.

Callers have checked shapes, dtypes and devices; the extension itself checks values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    # After torch, so that both use the OpenMP runtime (and its threads) that torch brings.
    import cxrl._C as _C

    _IMPORT_ERROR: str | None = None
except ImportError as error:
    _IMPORT_ERROR = str(error)

SUPPORTED: frozenset[str] = frozenset({"a head dimension above 160"})

_DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_FORM_CODES = {"difference": 0, "win": 1, "bradley_terry": 2, "direct": 3}

Description = tuple[int, int, int, int]


def unavailable(op: str, device_type: str) -> str | None:
    """Why the C++ backend cannot run ``op`` here, or None."""
    if _IMPORT_ERROR is not None:
        return (
            f"cxrl._C cannot be imported ({_IMPORT_ERROR}); build it with "
            "`pip install -e . --no-build-isolation` (needs a C++17 compiler)"
        )
    return None if device_type == "cpu" else f"it needs CPU tensors, these are on {device_type}"


def _describe(t: Tensor, row_size: int) -> Description | None:
    """(address, dtype, row stride, channels if channels last else 0), or None if a row is not dense."""
    if t.is_contiguous():
        return t.data_ptr(), _DTYPE_CODES[t.dtype], row_size, 0
    shape, stride = t.shape, t.stride()
    if t.numel() == 0 or row_size == 1:
        return t.data_ptr(), _DTYPE_CODES[t.dtype], stride[0], 0
    if t[0].is_contiguous():
        return t.data_ptr(), _DTYPE_CODES[t.dtype], stride[0], 0
    if t.ndim > 2 and t[0].movedim(0, -1).is_contiguous():
        return t.data_ptr(), _DTYPE_CODES[t.dtype], stride[0], shape[1]
    return None


def _operand(t: Tensor | None, row_size: int, keep: list[Tensor]) -> Description | None:
    """The description of ``t``, or of a dense copy that ``keep`` holds alive."""
    if t is None:
        return None
    description = _describe(t, row_size)
    if description is None:
        copy = t.contiguous()
        keep.append(copy)
        description = _describe(copy, row_size)
    return description


def _table(table_rows: Tensor, keep: list[Tensor]) -> tuple[int, int]:
    row, column = table_rows.stride()
    if column != 1:
        table_rows = table_rows.contiguous()
        keep.append(table_rows)
        row = 3
    return table_rows.data_ptr(), row


def _size(t: Tensor) -> tuple[int, int]:
    """Rows and the elements of one."""
    batch = t.shape[0]
    return batch, t.numel() // batch if batch else 0


def trajectory_log_prob(
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    x_t: Tensor,
    x_prev: Tensor,
    table_rows: Tensor,
    out: Tensor,
) -> None:
    keep: list[Tensor] = []
    batch, size = _size(x_t)
    _C.trajectory_log_prob(
        _operand(cond, size, keep),
        _operand(uncond, size, keep),
        guidance,
        _operand(x_t, size, keep),
        _operand(x_prev, size, keep),
        *_table(table_rows, keep),
        batch,
        size,
        out.data_ptr(),
    )


def trajectory_log_prob_backward(
    grad: Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    x_t: Tensor,
    x_prev: Tensor,
    table_rows: Tensor,
    out: tuple[Tensor, Tensor],
) -> None:
    keep: list[Tensor] = []
    batch, size = _size(x_t)
    _C.trajectory_log_prob_backward(
        grad.data_ptr(),
        grad.stride()[0],
        _operand(cond, size, keep),
        _operand(uncond, size, keep),
        guidance,
        _operand(x_t, size, keep),
        _operand(x_prev, size, keep),
        *_table(table_rows, keep),
        batch,
        size,
        _describe(out[0], size),
        None if uncond is None else _describe(out[1], size),
    )


def denoise_step(
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    x_t: Tensor,
    noise: Tensor,
    table_rows: Tensor,
    out: tuple[Tensor, Tensor],
) -> None:
    keep: list[Tensor] = []
    batch, size = _size(x_t)
    x_prev, log_prob = out
    _C.denoise_step(
        _operand(cond, size, keep),
        _operand(uncond, size, keep),
        guidance,
        _operand(x_t, size, keep),
        _operand(noise, size, keep),
        *_table(table_rows, keep),
        batch,
        size,
        _describe(x_prev, size),
        log_prob.data_ptr(),
    )


def pairwise_comparison(
    rewards: Tensor,
    anchors: Tensor,
    prompt_of: Tensor,
    weights: Tensor,
    form: str,
    min_std: Tensor | None,
    temperature: float,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    # Named again, so that dense copies live until the call returns.
    rewards, anchors, prompt_of, weights = (t.contiguous() for t in (rewards, anchors, prompt_of, weights))
    min_std = None if min_std is None else min_std.contiguous()
    score, win_rate, slope = out
    _C.pairwise_comparison(
        rewards.data_ptr(),
        anchors.data_ptr(),
        prompt_of.data_ptr(),
        weights.data_ptr(),
        0 if min_std is None else min_std.data_ptr(),
        _FORM_CODES[form],
        temperature,
        rewards.shape[0],
        *anchors.shape,
        score.data_ptr(),
        win_rate.data_ptr(),
        slope.data_ptr(),
    )


def pairwise_comparison_backward(grad_score: Tensor, weights: Tensor, slope: Tensor, out: Tensor) -> None:
    weights, slope = weights.contiguous(), slope.contiguous()
    _C.pairwise_comparison_backward(
        grad_score.data_ptr(),
        grad_score.stride(0),
        weights.data_ptr(),
        slope.data_ptr(),
        *slope.shape,
        out.data_ptr(),
    )


def group_win_rate(rewards: Tensor, prompt_of: Tensor, out: Tensor) -> None:
    rewards, prompt_of = rewards.contiguous(), prompt_of.contiguous()
    _C.group_win_rate(rewards.data_ptr(), prompt_of.data_ptr(), *rewards.shape, out.data_ptr())


def _attention_view(t: Tensor | None) -> tuple[int, ...] | None:
    """(address, dtype, batch, head and row stride) of a [B, H, N, D] tensor with a dense last dimension."""
    return None if t is None else (t.data_ptr(), _DTYPE_CODES[t.dtype], *t.stride()[:3])


def _extra_view(t: Tensor | None, heads: int) -> tuple[int, ...] | None:
    """The same of [H, E, D], which every row shares, or [B·H, E, D]."""
    if t is None:
        return None
    head, row = t.stride()[:2]
    return t.data_ptr(), _DTYPE_CODES[t.dtype], 0 if t.shape[0] == heads else heads * head, head, row


def _saved(t: Tensor) -> tuple[int, int]:
    """(address, row stride of probabilities, or 0 for logs of denominators): the forward's second result."""
    return t.data_ptr(), t.shape[3] if t.ndim == 4 else 0


def _dense_last(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _attention_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    kv_index: Tensor | None,
    scale: float,
) -> tuple[list[Tensor | None], tuple[Any, ...]]:
    tensors = [None if t is None else _dense_last(t) for t in (q, k, v, extra_k, extra_v)]
    index = None if kv_index is None else kv_index.contiguous()
    heads = q.shape[1]
    views = (*(_attention_view(t) for t in tensors[:3]), *(_extra_view(t, heads) for t in tensors[3:]))
    num_extra = 0 if extra_k is None else extra_k.shape[1]
    shape = (*q.shape[:3], k.shape[2], num_extra, q.shape[3], k.shape[0])
    return [*tensors, index], (views, 0 if index is None else index.data_ptr(), scale, shape)


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
    alive, arguments = _attention_arguments(q, k, v, extra_k, extra_v, kv_index, scale)
    _C.attention(*arguments, _attention_view(out[0]), *_saved(out[1]))
    del alive


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
    saved: Tensor,
    out: tuple[Tensor, ...],
) -> None:
    alive, arguments = _attention_arguments(q, k, v, extra_k, extra_v, kv_index, scale)
    grad = _dense_last(grad)
    extra = (None, None) if extra_k is None else tuple(_extra_view(t, q.shape[1]) for t in out[3:])
    views = (*(_attention_view(t) for t in out[:3]), *extra)
    saved = saved.contiguous()
    _C.attention_backward(_attention_view(grad), *arguments, *_saved(saved), views)
    del alive
