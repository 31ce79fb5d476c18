"""Triton backend of trajectory_log_prob and denoise_step: one launch each way, every byte read once.

The formulas are in :mod:`cxrl.ops.trajectory_log_prob`. A row (B of them, ``row_size`` = C·H·W elements) is
cut into ``splits`` parts, one program each, so that few long rows still fill a card. The parts' sums go to
memory, and the program of a row that finishes last adds them up in a fixed order. How a row is cut depends
on its size alone: a row's log-probability has the same bits in every batch.

Where all tensors have one layout the order of the elements does not matter and a row is flat. Where layouts
differ, programs walk in channels-last order: a thread's neighbours then read neighbouring positions of the
contiguous tensors, channel by channel.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from cxrl_kernels._common import unavailable, zeroed_counters

__all__ = ["SUPPORTED", "denoise_step", "trajectory_log_prob", "trajectory_log_prob_backward", "unavailable"]

SUPPORTED: frozenset[str] = frozenset()

MAX_BLOCK = 2048  # elements that a program has in flight: 8 of each tensor in a thread
BLOCKS_IN_PART = 2
MAX_SPLITS = 1024
_HALF_LOG_TWO_PI = tl.constexpr(0.5 * math.log(2.0 * math.pi))


@triton.jit
def _at(i, positions, CHANNELS: tl.constexpr, LAST: tl.constexpr):
    """Offset in its row of element ``i`` of the walk, for a channels-last tensor or a contiguous one."""
    if CHANNELS > 1 and not LAST:
        offset = (i % CHANNELS) * positions + i // CHANNELS
    else:
        offset = i
    return offset


@triton.jit
def _load_row(ptr, row, stride, i, inside, positions, CHANNELS: tl.constexpr, LAST: tl.constexpr):
    offset = _at(i, positions, CHANNELS, LAST)
    return tl.load(ptr + row * stride + offset, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store_row(ptr, row, stride, i, inside, positions, CHANNELS: tl.constexpr, LAST: tl.constexpr, value):
    offset = _at(i, positions, CHANNELS, LAST)
    tl.store(ptr + row * stride + offset, value.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _store_log_prob(log_prob, row, total, row_size, c_x, c_e, sigma, STEP: tl.constexpr):
    spread = tl.where(sigma > 0, sigma, 1.0)
    result = -0.5 * (total / row_size) / (spread * spread) - tl.log(spread) - _HALF_LOG_TWO_PI
    finite = (tl.abs(c_x) < float("inf")) & (tl.abs(c_e) < float("inf")) & (sigma < float("inf"))
    result = tl.where(finite & (sigma > 0), result, float("nan"))
    if STEP:
        result = tl.where(finite & (sigma == 0), 0.0, result)
    tl.store(log_prob + row, result)


@triton.jit
def _trajectory_log_prob_fwd_kernel(
    cond,
    uncond,
    x_t,
    other,  # x_prev; the noise if STEP
    x_prev,  # written if STEP
    table,
    log_prob,
    partial,
    counters,
    guidance,
    row_size,
    positions,
    splits,
    blocks,
    cond_stride,
    uncond_stride,
    x_t_stride,
    other_stride,
    x_prev_stride,
    table_stride,
    column_stride,
    CHANNELS: tl.constexpr,
    COND_LAST: tl.constexpr,
    UNCOND_LAST: tl.constexpr,
    X_T_LAST: tl.constexpr,
    OTHER_LAST: tl.constexpr,
    X_PREV_LAST: tl.constexpr,
    GUIDED: tl.constexpr,
    STEP: tl.constexpr,
    SPLITS: tl.constexpr,  # power of two >= splits
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program // splits).to(tl.int64)
    c_x = tl.load(table + row * table_stride)
    c_e = tl.load(table + row * table_stride + column_stride)
    sigma = tl.load(table + row * table_stride + 2 * column_stride)
    squares = tl.zeros([BLOCK], tl.float32)
    for block in range(blocks):
        i = ((program % splits) * blocks + block) * BLOCK + tl.arange(0, BLOCK)
        inside = i < row_size
        model = _load_row(cond, row, cond_stride, i, inside, positions, CHANNELS, COND_LAST)
        if GUIDED:
            without = _load_row(uncond, row, uncond_stride, i, inside, positions, CHANNELS, UNCOND_LAST)
            model = tl.fma(guidance, model - without, without)
        x = _load_row(x_t, row, x_t_stride, i, inside, positions, CHANNELS, X_T_LAST)
        after = _load_row(other, row, other_stride, i, inside, positions, CHANNELS, OTHER_LAST)
        # Each rounding is spelled out: sampling and scoring again must agree to the bit.
        mean = tl.fma(c_e, model, c_x * x)
        if STEP:
            after = tl.fma(sigma, after, mean)
            _store_row(x_prev, row, x_prev_stride, i, inside, positions, CHANNELS, X_PREV_LAST, after)
        error = after - mean
        squares += tl.where(inside, error * error, 0.0)
    total = tl.sum(squares, 0)
    if SPLITS == 1:
        _store_log_prob(log_prob, row, total, row_size, c_x, c_e, sigma, STEP)
    else:
        tl.store(partial + program, total)
        finished = tl.atomic_add(counters + row, 1, sem="acq_rel")
        if finished == splits - 1:
            part = tl.arange(0, SPLITS)
            parts = tl.load(
                partial + row * splits + part, mask=part < splits, other=0.0, cache_modifier=".cg"
            )
            _store_log_prob(log_prob, row, tl.sum(parts, 0), row_size, c_x, c_e, sigma, STEP)
            tl.store(counters + row, 0)


@triton.jit
def _trajectory_log_prob_bwd_kernel(
    grad,
    cond,
    uncond,
    x_t,
    x_prev,
    table,
    grad_cond,
    grad_uncond,
    guidance,
    row_size,
    positions,
    splits,
    blocks,
    grad_stride,
    cond_stride,
    uncond_stride,
    x_t_stride,
    x_prev_stride,
    grad_cond_stride,
    grad_uncond_stride,
    table_stride,
    column_stride,
    CHANNELS: tl.constexpr,
    COND_LAST: tl.constexpr,
    UNCOND_LAST: tl.constexpr,
    X_T_LAST: tl.constexpr,
    X_PREV_LAST: tl.constexpr,
    GRAD_COND_LAST: tl.constexpr,
    GRAD_UNCOND_LAST: tl.constexpr,
    GUIDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program // splits).to(tl.int64)
    c_x = tl.load(table + row * table_stride)
    c_e = tl.load(table + row * table_stride + column_stride)
    sigma = tl.load(table + row * table_stride + 2 * column_stride)
    factor = tl.load(grad + row * grad_stride) * c_e / (sigma * sigma * row_size)
    for block in range(blocks):
        i = ((program % splits) * blocks + block) * BLOCK + tl.arange(0, BLOCK)
        inside = i < row_size
        model = _load_row(cond, row, cond_stride, i, inside, positions, CHANNELS, COND_LAST)
        if GUIDED:
            without = _load_row(uncond, row, uncond_stride, i, inside, positions, CHANNELS, UNCOND_LAST)
            model = tl.fma(guidance, model - without, without)
        x = _load_row(x_t, row, x_t_stride, i, inside, positions, CHANNELS, X_T_LAST)
        after = _load_row(x_prev, row, x_prev_stride, i, inside, positions, CHANNELS, X_PREV_LAST)
        to_model = factor * (after - tl.fma(c_e, model, c_x * x))
        to_cond = to_model
        if GUIDED:
            to_cond = guidance * to_model
            to_uncond = to_model - to_cond
            _store_row(
                grad_uncond, row, grad_uncond_stride, i, inside, positions, CHANNELS, GRAD_UNCOND_LAST,
                to_uncond,
            )  # fmt: skip
        _store_row(grad_cond, row, grad_cond_stride, i, inside, positions, CHANNELS, GRAD_COND_LAST, to_cond)


@functools.lru_cache(maxsize=1024)
def _order(shape: torch.Size, stride: tuple[int, ...]) -> str | None:
    """How a row's elements lie: "flat" as in a contiguous tensor, "last" channels last, None otherwise."""

    def dense(dims: list[int]) -> bool:
        expected = 1
        for dim in reversed(dims):
            if shape[dim] != 1 and stride[dim] != expected:
                return False
            expected *= shape[dim]
        return True

    if dense(list(range(1, len(shape)))):
        return "flat"
    return "last" if dense([*range(2, len(shape)), 1]) else None


def _dense_rows(t: Tensor) -> Tensor:
    return t if _order(t.shape, t.stride()) is not None else t.contiguous()


def _layouts(*tensors: Tensor | None) -> tuple[int, int, list[bool]]:
    """Channels and positions of the walk (1 channel: rows are flat), and which tensors are channels last."""
    orders = [None if t is None else _order(t.shape, t.stride()) for t in tensors]
    shape = next(t.shape for t in tensors if t is not None)
    size = shape[1:].numel()
    if size == 0 or len({order for order in orders if order is not None}) == 1:
        return 1, size, [False] * len(tensors)
    return shape[1], size // shape[1], [order == "last" for order in orders]


@functools.lru_cache(maxsize=1024)
def _cut(row_size: int) -> tuple[int, int, int, int]:
    """Parts of a row, blocks in a part, elements in a block, warps. By the row's size and nothing else."""
    block = min(MAX_BLOCK, max(128, triton.next_power_of_2(row_size)))
    blocks = max(1, triton.cdiv(row_size, block))
    in_part = max(min(blocks, BLOCKS_IN_PART), triton.cdiv(blocks, MAX_SPLITS))
    return triton.cdiv(blocks, in_part), in_part, block, max(1, block // 256)


def _forward(
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    x_t: Tensor,
    other: Tensor,
    table_rows: Tensor,
    x_prev: Tensor | None,
    log_prob: Tensor,
) -> None:
    batch = x_t.shape[0]
    if batch == 0:
        return
    cond, x_t, other = _dense_rows(cond), _dense_rows(x_t), _dense_rows(other)
    uncond = None if uncond is None else _dense_rows(uncond)
    channels, positions, last = _layouts(cond, uncond, x_t, other, x_prev)
    row_size = channels * positions
    splits, in_part, block, num_warps = _cut(row_size)
    partial = counters = log_prob
    if splits > 1:
        partial = torch.empty(batch * splits, dtype=torch.float32, device=x_t.device)
        counters = zeroed_counters(batch, x_t.device)
    with torch.cuda.device_of(x_t):
        _trajectory_log_prob_fwd_kernel[(batch * splits,)](
            cond,
            uncond,
            x_t,
            other,
            x_prev,
            table_rows,
            log_prob,
            partial,
            counters,
            guidance,
            row_size,
            positions,
            splits,
            in_part,
            cond.stride(0),
            0 if uncond is None else uncond.stride(0),
            x_t.stride(0),
            other.stride(0),
            0 if x_prev is None else x_prev.stride(0),
            *table_rows.stride(),
            channels,
            *last,
            GUIDED=uncond is not None,
            STEP=x_prev is not None,
            SPLITS=triton.next_power_of_2(splits),
            BLOCK=block,
            num_warps=num_warps,
        )


def trajectory_log_prob(
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    x_t: Tensor,
    x_prev: Tensor,
    table_rows: Tensor,
    out: Tensor,
) -> None:
    """Write the log-probabilities [B] to ``out``."""
    _forward(cond, uncond, guidance, x_t, x_prev, table_rows, None, out)


def denoise_step(
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    x_t: Tensor,
    noise: Tensor,
    table_rows: Tensor,
    out: tuple[Tensor, Tensor],
) -> None:
    """Write x_prev [B, ...] and the log-probabilities [B] to ``out``."""
    _forward(cond, uncond, guidance, x_t, noise, table_rows, *out)


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
    """Write the gradients of both model outputs to ``out`` (the second is empty without ``uncond``)."""
    batch = x_t.shape[0]
    if x_t.numel() == 0:
        return
    cond, x_t, x_prev = _dense_rows(cond), _dense_rows(x_t), _dense_rows(x_prev)
    uncond = None if uncond is None else _dense_rows(uncond)
    grad_cond, grad_uncond = out[0], None if uncond is None else out[1]
    channels, positions, last = _layouts(cond, uncond, x_t, x_prev, grad_cond, grad_uncond)
    row_size = channels * positions
    splits, in_part, block, num_warps = _cut(row_size)
    with torch.cuda.device_of(x_t):
        _trajectory_log_prob_bwd_kernel[(batch * splits,)](
            grad,
            cond,
            uncond,
            x_t,
            x_prev,
            table_rows,
            grad_cond,
            grad_uncond,
            guidance,
            row_size,
            positions,
            splits,
            in_part,
            grad.stride(0),
            cond.stride(0),
            0 if uncond is None else uncond.stride(0),
            x_t.stride(0),
            x_prev.stride(0),
            grad_cond.stride(0),
            0 if grad_uncond is None else grad_uncond.stride(0),
            *table_rows.stride(),
            channels,
            *last,
            GUIDED=uncond is not None,
            BLOCK=block,
            num_warps=num_warps,
        )
