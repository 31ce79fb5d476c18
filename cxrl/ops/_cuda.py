"""The CUDA backend: gives :mod:`cxrl._C` addresses, sizes and strides of tensors, the device and the stream.

Callers have checked shapes, dtypes and devices. Nothing here waits for the device. Counters that the kernels
leave at zero are kept for every device and stream; a launch that is captured into a graph gets its own.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import Tensor

from cxrl.ops import _cpp
from cxrl.ops._cpp import (
    _DTYPE_CODES,
    _FORM_CODES,
    _attention_arguments,
    _attention_view,
    _dense_last,
    _describe,
    _extra_view,
    _operand,
    _size,
    _table,
)

SUPPORTED: frozenset[str] = frozenset()


def unavailable(op: str, device_type: str) -> str | None:
    """Why the CUDA backend cannot run ``op`` here, or None."""
    if _cpp._IMPORT_ERROR is not None:
        return (
            f"cxrl._C cannot be imported ({_cpp._IMPORT_ERROR}); build it with "
            "`pip install -e . --no-build-isolation` (needs a C++17 compiler and nvcc)"
        )
    if not _cpp._C.has_cuda:
        return (
            "cxrl._C was built without CUDA; put nvcc on PATH (or set CUDACXX) and build it again with "
            "`CXRL_CUDA=ON pip install -e . --no-build-isolation`"
        )
    if _cpp._C.cuda.emulated:
        return (
            None if device_type == "cpu" else f"it is emulated on the CPU, these tensors are on {device_type}"
        )
    if device_type != "cuda":
        return f"it needs CUDA tensors, these are on {device_type}"
    if torch.version.hip is not None:
        return "it needs an NVIDIA GPU, this torch is built for ROCm"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    device = torch.cuda.current_device()
    problem = _cpp._C.cuda.problem(device)
    if problem:
        major, minor = torch.cuda.get_device_capability(device)
        return (
            f"cxrl._C has no kernels that run on {torch.cuda.get_device_name(device)} ({problem}); "
            f"build it with CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES={major}{minor}"
        )
    return None


def _call(t: Tensor) -> tuple[int, int]:
    """(device, stream) to launch on."""
    if t.device.type != "cuda":
        return 0, 0  # emulated
    return t.device.index, torch.cuda.current_stream(t.device).cuda_stream


def _on(t: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensor's device the current one, for the launch and for what is allocated around it."""
    if t.device.type != "cuda" or t.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(t.device)


@functools.cache
def _kept_counters(device: torch.device, stream: int, size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.int64, device=device)


def _counters(t: Tensor, stream: int, count: int) -> Tensor:
    """At least ``count`` 64-bit zeros, which the kernel leaves at zero."""
    size = max(1024, 1 << (count - 1).bit_length())
    if t.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(size, dtype=torch.int64, device=t.device)
    return _kept_counters(t.device, stream, size)


def _row_sums(x_t: Tensor, stream: int, keep: list[Tensor]) -> tuple[int, int]:
    """Scratch for rows of more than one tile: a float for every tile, a counter for every row."""
    batch, row_size = _size(x_t)
    tiles = -(-row_size // _cpp._C.cuda.step_tile)
    if tiles <= 1 or batch == 0:
        return 0, 0
    keep += [x_t.new_empty(batch * tiles, dtype=torch.float32), _counters(x_t, stream, batch)]
    return keep[-2].data_ptr(), keep[-1].data_ptr()


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
    with _on(x_t):
        call = _call(x_t)
        _cpp._C.cuda.trajectory_log_prob(
            *call,
            _operand(cond, size, keep),
            _operand(uncond, size, keep),
            guidance,
            _operand(x_t, size, keep),
            _operand(x_prev, size, keep),
            *_table(table_rows, keep),
            batch,
            size,
            *_row_sums(x_t, call[1], keep),
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
    with _on(x_t):
        _cpp._C.cuda.trajectory_log_prob_backward(
            *_call(x_t),
            grad.data_ptr(),
            grad.stride(0),
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
    with _on(x_t):
        call = _call(x_t)
        _cpp._C.cuda.denoise_step(
            *call,
            _operand(cond, size, keep),
            _operand(uncond, size, keep),
            guidance,
            _operand(x_t, size, keep),
            _operand(noise, size, keep),
            *_table(table_rows, keep),
            batch,
            size,
            *_row_sums(x_t, call[1], keep),
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
    # Named again, so that dense copies live until the launch.
    rewards, anchors, prompt_of, weights = (t.contiguous() for t in (rewards, anchors, prompt_of, weights))
    min_std = None if min_std is None else min_std.contiguous()
    with _on(rewards):
        call = _call(rewards)
        _cpp._C.cuda.pairwise_comparison(
            *call,
            rewards.data_ptr(),
            anchors.data_ptr(),
            prompt_of.data_ptr(),
            weights.data_ptr(),
            0 if min_std is None else min_std.data_ptr(),
            _FORM_CODES[form],
            temperature,
            rewards.shape[0],
            *anchors.shape,
            _counters(rewards, call[1], rewards.shape[1] + 1).data_ptr(),
            *(t.data_ptr() for t in out),
        )


def pairwise_comparison_backward(grad_score: Tensor, weights: Tensor, slope: Tensor, out: Tensor) -> None:
    weights, slope = weights.contiguous(), slope.contiguous()
    with _on(slope):
        _cpp._C.cuda.pairwise_comparison_backward(
            *_call(slope),
            grad_score.data_ptr(),
            grad_score.stride(0),
            weights.data_ptr(),
            slope.data_ptr(),
            *slope.shape,
            out.data_ptr(),
        )


def group_win_rate(rewards: Tensor, prompt_of: Tensor, out: Tensor) -> None:
    with _on(rewards):
        groups, order = prompt_of.sort(stable=True)
        rewards = rewards[order]
        _cpp._C.cuda.group_win_rate(
            *_call(rewards),
            rewards.data_ptr(),
            groups.data_ptr(),
            order.data_ptr(),
            *rewards.shape,
            out.data_ptr(),
        )


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
    with _on(q):
        alive, arguments = _attention_arguments(q, k, v, extra_k, extra_v, kv_index, scale)
        _cpp._C.cuda.attention(*_call(q), *arguments, _attention_view(out[0]), out[1].data_ptr())
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
    log_sum_exp: Tensor,
    out: tuple[Tensor, ...],
) -> None:
    with _on(q):
        keep, arguments = _attention_arguments(q, k, v, extra_k, extra_v, kv_index, scale)
        grad, result, log_sum_exp = _dense_last(grad), _dense_last(result), log_sum_exp.contiguous()
        extra = (None, None) if extra_k is None else tuple(_extra_view(t, q.shape[1]) for t in out[3:])
        batch, heads, queries, keys, num_extra, dim, _ = shape = arguments[3]
        splits = _cpp._C.cuda.attention_splits(shape, _DTYPE_CODES[q.dtype])
        delta = q.new_empty(batch, heads, queries, dtype=torch.float32)
        parts = q.new_empty(batch, splits, heads, keys + num_extra, 2, dim, dtype=torch.float32)
        _cpp._C.cuda.attention_backward(
            *_call(q),
            _attention_view(grad),
            *arguments,
            _attention_view(result),
            log_sum_exp.data_ptr(),
            delta.data_ptr(),
            parts.data_ptr(),
            (*(_attention_view(t) for t in out[:3]), *extra),
        )
        del keep
