"""Triton backend of pairwise_comparison and group_win_rate: each one fused kernel.

The formulas are in :mod:`cxrl.ops.pairwise_comparison`. A program takes tiles of samples [n, m, k] against
their banks, which lie in the caches: statistics, comparison, score and slope in one pass, nothing of size
N·M·K in memory. Wins are counted in integers (a win 2, a tie 1), so adding them atomically is exact in any
order; the program that finishes last turns the counts into win_rate.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cxrl_kernels._common import unavailable, zeroed_counters

__all__ = [
    "SUPPORTED",
    "group_win_rate",
    "pairwise_comparison",
    "pairwise_comparison_backward",
    "unavailable",
]

SUPPORTED: frozenset[str] = frozenset()

TILE = 2048  # pairs that a program has in flight
MAX_PROGRAMS = 2048  # each adds K counts to the same K numbers
SORT_FROM = 4096  # samples from which sorting by prompt beats comparing all with all
_FORM_CODES = {"difference": 0, "win": 1, "bradley_terry": 2, "direct": 3}
_DIFFERENCE = tl.constexpr(0)
_WIN = tl.constexpr(1)
_BRADLEY_TERRY = tl.constexpr(2)
_DEFAULT_MIN_STD = tl.constexpr(1e-6)


@triton.jit
def _load_bank(bank, m, m_stride, M: tl.constexpr, known):
    """[n, m, k] of the banks whose addresses [n, 1, k] are given, and which of them exist."""
    inside = known & (m < M)[None, :, None]
    return tl.load(bank + m[None, :, None] * m_stride, mask=inside, other=0.0), inside


@triton.jit
def _inverse_scale(bank, m_stride, floor, M: tl.constexpr, known, BLOCK_M: tl.constexpr):
    """Mean [n, k] of every bank and one over its floored standard deviation."""
    total = tl.zeros([known.shape[0], known.shape[2]], tl.float32)
    for start in range(0, M, BLOCK_M):
        tile, _ = _load_bank(bank, start + tl.arange(0, BLOCK_M), m_stride, M, known)
        total += tl.sum(tile, 1)
    mean = total / M
    squares = tl.zeros_like(total)
    for start in range(0, M, BLOCK_M):
        tile, inside = _load_bank(bank, start + tl.arange(0, BLOCK_M), m_stride, M, known)
        deviation = tl.where(inside, tile - mean[:, None, :], 0.0)
        squares += tl.sum(deviation * deviation, 1)
    return mean, 1.0 / tl.maximum(tl.sqrt(squares / M), floor)


@triton.jit
def _pairwise_comparison_fwd_kernel(
    rewards,
    anchors,
    prompt_of,
    weights,
    min_std,
    score,
    win_rate,
    slope,
    counters,  # [K] halves won, then programs finished; zeros before and after
    temperature,
    num_samples,
    num_prompts,
    tiles,
    reward_n,  # strides
    reward_k,
    anchor_p,
    anchor_m,
    anchor_k,
    prompt_n,
    weight_k,
    min_std_k,
    M: tl.constexpr,
    K: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    k = tl.arange(0, BLOCK_K)
    weight = tl.load(weights + k * weight_k, mask=k < K, other=0.0)
    floor = tl.full([BLOCK_K], _DEFAULT_MIN_STD, tl.float32)
    if min_std is not None:
        floor = tl.load(min_std + k * min_std_k, mask=k < K, other=1.0)
    counts = tl.zeros([BLOCK_K], tl.int64)
    for tile_index in range(tiles):
        n = (tl.program_id(0) * tiles + tile_index).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        cell = (n < num_samples)[:, None] & (k < K)[None, :]
        own = tl.load(rewards + n[:, None] * reward_n + k[None, :] * reward_k, mask=cell, other=0.0)
        group = tl.load(prompt_of + n * prompt_n, mask=n < num_samples, other=0)
        valid = (group >= 0) & (group < num_prompts)
        known = (cell & valid[:, None])[:, None, :]
        bank = anchors + group[:, None, None] * anchor_p + k[None, None, :] * anchor_k
        mean = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        inverse = mean
        if FORM == _DIFFERENCE or FORM == _BRADLEY_TERRY:  # noqa: SIM109 (Triton knows no such tuple)
            mean, inverse = _inverse_scale(bank, anchor_m, floor[None, :], M, known, BLOCK_M)
        if FORM == _BRADLEY_TERRY:
            inverse = inverse / temperature
        halves = tl.zeros([BLOCK_N, BLOCK_K], tl.int32)
        chance = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        density = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for start in range(0, M, BLOCK_M):
            tile, inside = _load_bank(bank, start + tl.arange(0, BLOCK_M), anchor_m, M, known)
            gap = own[:, None, :] - tile
            won = tl.where(gap > 0, 2, tl.where(gap == 0, 1, 0))
            halves += tl.sum(tl.where(inside, won, 0), 1)
            if FORM == _BRADLEY_TERRY:
                z = gap * inverse[:, None, :]
                e = tl.exp(-tl.abs(z))  # in (0, 1]: nothing overflows
                sigmoid = tl.where(z >= 0, 1.0, e) / (1.0 + e)
                chance += tl.sum(tl.where(inside, sigmoid, 0.0), 1)
                density += tl.sum(tl.where(inside, e / ((1.0 + e) * (1.0 + e)), 0.0), 1)
        counts += tl.sum(halves, 0).to(tl.int64)
        if FORM == _DIFFERENCE:
            value = (own - mean) * inverse
            steep = inverse
        elif FORM == _WIN:
            value = halves.to(tl.float32) * (0.5 / M)
            steep = tl.zeros_like(own)
        elif FORM == _BRADLEY_TERRY:
            value = chance / M
            steep = density * inverse / M
        else:
            value = own
            steep = tl.full([BLOCK_N, BLOCK_K], 1.0, tl.float32)
        total = tl.sum(tl.where(cell, value * weight[None, :], 0.0), 1)
        tl.store(score + n, tl.where(valid, total, float("nan")), mask=n < num_samples)
        steep = tl.where(valid[:, None], steep, float("nan"))
        tl.store(slope + n[:, None] * K + k[None, :], steep, mask=cell)
    tl.atomic_add(counters + k, counts, mask=k < K, sem="relaxed")
    tl.debug_barrier()  # the counts of all threads before the one that says so
    finished = tl.atomic_add(counters + K, 1, sem="acq_rel")
    if finished == tl.num_programs(0) - 1:
        won = tl.atomic_xchg(counters + k, tl.zeros([BLOCK_K], tl.int64), mask=k < K)
        tl.store(win_rate + k, won.to(tl.float32) * (0.5 / M) / num_samples, mask=k < K)
        tl.store(counters + K, 0)


@triton.jit
def _pairwise_comparison_bwd_kernel(
    grad_score, weights, slope, out, size, K, grad_stride, weight_k, BLOCK: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    grad = tl.load(grad_score + i // K * grad_stride, mask=inside, other=0.0)
    weight = tl.load(weights + i % K * weight_k, mask=inside, other=0.0)
    tl.store(out + i, grad * weight * tl.load(slope + i, mask=inside, other=0.0), mask=inside)


@triton.jit
def _group_win_rate_fwd_kernel(
    rewards,
    prompt_of,
    order,  # None: samples are not sorted by prompt
    starts,  # of the group of every sorted sample
    ends,
    out,
    num_samples,
    reward_n,
    reward_k,
    prompt_n,
    out_n,
    out_k,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    k = tl.arange(0, BLOCK_K)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    n = first + tl.arange(0, BLOCK)
    if order is None:
        begin, end = first * 0, first * 0 + num_samples
    else:
        begin = tl.load(starts + first)
        end = tl.load(ends + tl.minimum(first + BLOCK, num_samples) - 1)
        n = tl.load(order + n, mask=n < num_samples, other=num_samples)
    cell = (n < num_samples)[:, None] & (k < K)[None, :]
    own = tl.load(rewards + n[:, None] * reward_n + k[None, :] * reward_k, mask=cell, other=0.0)
    group = tl.load(prompt_of + n * prompt_n, mask=n < num_samples, other=0)
    size = tl.zeros([BLOCK], tl.int32)
    halves = tl.zeros([BLOCK, BLOCK_K], tl.int32)
    for start in range(begin, end, BLOCK):
        other = start + tl.arange(0, BLOCK)
        inside = other < end
        if order is not None:
            other = tl.load(order + other, mask=inside, other=0)
        theirs = tl.load(prompt_of + other * prompt_n, mask=inside, other=0)
        same = inside[None, :] & (group[:, None] == theirs[None, :])
        size += tl.sum(same.to(tl.int32), 1)
        reward = tl.load(
            rewards + other[:, None] * reward_n + k[None, :] * reward_k,
            mask=inside[:, None] & (k < K)[None, :],
            other=0.0,
        )
        gap = own[:, None, :] - reward[None, :, :]
        won = tl.where(gap > 0, 2, tl.where(gap == 0, 1, 0))
        halves += tl.sum(tl.where(same[:, :, None], won, 0), 1)
    # A sample ties with itself: take that half away again.
    share = (halves - 1).to(tl.float32) * 0.5 / tl.maximum(size - 1, 1).to(tl.float32)[:, None]
    share = tl.where((size > 1)[:, None], share, 0.5)
    tl.store(out + n[:, None] * out_n + k[None, :] * out_k, share, mask=cell)


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
    """Write score [N], win_rate [K] and slope [N, K] to ``out``."""
    score, win_rate, slope = out
    num_samples, num_rewards = rewards.shape
    num_prompts, num_anchors, _ = anchors.shape
    if num_samples == 0 or num_rewards == 0:
        score.zero_()
        win_rate.zero_()
        return
    block_k = triton.next_power_of_2(num_rewards)
    block_m = min(triton.next_power_of_2(num_anchors), max(1, TILE // block_k))
    block_n = min(32, max(1, TILE // (block_k * block_m)))
    tiles = triton.cdiv(num_samples, block_n * MAX_PROGRAMS)
    with torch.cuda.device_of(rewards):
        _pairwise_comparison_fwd_kernel[(triton.cdiv(num_samples, block_n * tiles),)](
            rewards,
            anchors,
            prompt_of,
            weights,
            min_std,
            score,
            win_rate,
            slope,
            zeroed_counters(num_rewards + 1, rewards.device),
            temperature,
            num_samples,
            num_prompts,
            tiles,
            *rewards.stride(),
            *anchors.stride(),
            prompt_of.stride(0),
            weights.stride(0),
            0 if min_std is None else min_std.stride(0),
            M=num_anchors,
            K=num_rewards,
            FORM=_FORM_CODES[form],
            BLOCK_N=block_n,
            BLOCK_M=block_m,
            BLOCK_K=block_k,
            num_warps=4,
        )


def pairwise_comparison_backward(grad_score: Tensor, weights: Tensor, slope: Tensor, out: Tensor) -> None:
    """Write the gradient of the rewards [N, K] to ``out``."""
    size = slope.numel()
    if size == 0:
        return
    slope = slope.contiguous()
    block = 1024
    with torch.cuda.device_of(slope):
        _pairwise_comparison_bwd_kernel[(triton.cdiv(size, block),)](
            grad_score,
            weights,
            slope,
            out,
            size,
            slope.shape[1],
            grad_score.stride(0),
            weights.stride(0),
            BLOCK=block,
            num_warps=4,
        )


def group_win_rate(rewards: Tensor, prompt_of: Tensor, out: Tensor) -> None:
    """Write the share of the others of its prompt that each sample beats, [N, K], to ``out``."""
    num_samples, num_rewards = rewards.shape
    if rewards.numel() == 0:
        return
    order = starts = ends = None
    if num_samples >= SORT_FROM:
        ordered, order = prompt_of.sort(stable=True)
        starts = torch.searchsorted(ordered, ordered)
        ends = torch.searchsorted(ordered, ordered, right=True)
    block_k = triton.next_power_of_2(num_rewards)
    block = 16 if block_k > 8 else 32
    with torch.cuda.device_of(rewards):
        _group_win_rate_fwd_kernel[(triton.cdiv(num_samples, block),)](
            rewards,
            prompt_of,
            order,
            starts,
            ends,
            out,
            num_samples,
            *rewards.stride(),
            prompt_of.stride(0),
            *out.stride(),
            K=num_rewards,
            BLOCK=block,
            BLOCK_K=block_k,
            num_warps=4,
        )
