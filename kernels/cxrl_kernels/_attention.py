"""The kernels behind :mod:`cxrl_kernels.attention`: flash attention over two key segments, both directions.

After Dao, 2023 (arXiv 2307.08691): the scores stay on the chip, the forward leaves L = log Σ exp(s) of every
query, the backward recomputes p = exp(s − L). With o = p v and Δ = rowsum(do · o):

    dv = pᵀ do        ds = p · (do vᵀ − Δ)        dq = scale · ds k        dk = scale · dsᵀ q

Triton's tiles are powers of two. A head dimension that is none is kept as two tiles, MAIN + TAIL (40 = 32 + 8
of 16, 80 = 64 + 16, 160 = 128 + 32), where padding it would waste a third or more of every product. Names end
in the tile: q_main, q_tail; without a tail the tail is an alias that nothing reads.

Scores are kept in base 2, so the softmax is exp2. Addresses inside a head are 32-bit, of heads 64-bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_FAR_BELOW = tl.constexpr(-1e30)  # any score; finite, because scale may be 0


@triton.jit
def _key_row(kv_index, b, kv_batch, num_keys):
    """Row of k and v for batch row b, whether there is one, and its keys.

    Nobody has looked at the index: a wrong one has no keys, so it is not followed.
    """
    kv = tl.load(kv_index + b)
    known = (kv >= 0) & (kv < kv_batch)
    return kv, known, tl.where(known, num_keys, 0)


@triton.jit
def _load_tile(
    ptr, rows, stride, num_rows, WHOLE: tl.constexpr, columns, D: tl.constexpr, FITS: tl.constexpr
):
    """[rows, columns] of a matrix with a dense last dimension of D; zeros outside, if anything can be."""
    ptrs = ptr + rows[:, None] * stride + columns[None, :]
    if WHOLE and FITS:
        tile = tl.load(ptrs)
    elif WHOLE:
        tile = tl.load(ptrs, mask=(columns < D)[None, :], other=0.0)
    elif FITS:
        tile = tl.load(ptrs, mask=(rows < num_rows)[:, None], other=0.0)
    else:
        tile = tl.load(ptrs, mask=(rows < num_rows)[:, None] & (columns < D)[None, :], other=0.0)
    return tile


@triton.jit
def _load_pair(
    ptr, rows, stride, num_rows, WHOLE: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr
):
    main = _load_tile(ptr, rows, stride, num_rows, WHOLE, tl.arange(0, MAIN), D, D >= MAIN)
    tail = main
    if TAIL > 0:
        columns = MAIN + tl.arange(0, TAIL)
        tail = _load_tile(ptr, rows, stride, num_rows, WHOLE, columns, D, D >= MAIN + TAIL)
    return main, tail


@triton.jit
def _store_pair(
    ptr, rows, stride, num_rows, main, tail, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr
):
    columns = tl.arange(0, MAIN)
    mask = (rows < num_rows)[:, None] & (columns < D)[None, :]
    tl.store(ptr + rows[:, None] * stride + columns[None, :], main.to(ptr.dtype.element_ty), mask=mask)
    if TAIL > 0:
        columns = MAIN + tl.arange(0, TAIL)
        mask = (rows < num_rows)[:, None] & (columns < D)[None, :]
        tl.store(ptr + rows[:, None] * stride + columns[None, :], tail.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _products(a_main, a_tail, b_main, b_tail, TAIL: tl.constexpr, PRECISION: tl.constexpr):
    """a bᵀ over the head dimension."""
    result = tl.dot(a_main, tl.trans(b_main), input_precision=PRECISION)
    if TAIL > 0:
        result = tl.dot(a_tail, tl.trans(b_tail), result, input_precision=PRECISION)
    return result


@triton.jit
def _accumulate(p, b_main, b_tail, acc_main, acc_tail, TAIL: tl.constexpr, PRECISION: tl.constexpr):
    """acc + p b."""
    acc_main = tl.dot(p, b_main, acc_main, input_precision=PRECISION)
    if TAIL > 0:
        acc_tail = tl.dot(p, b_tail, acc_tail, input_precision=PRECISION)
    return acc_main, acc_tail


@triton.jit
def _zeros_pair(ROWS: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr):
    main = tl.zeros([ROWS, MAIN], tl.float32)
    tail = main
    if TAIL > 0:
        tail = tl.zeros([ROWS, TAIL], tl.float32)
    return main, tail


@triton.jit
def _forward_segment(
    q_main, q_tail, acc_main, acc_tail, peak, total, k, v, k_n, v_n, num_keys, scale,
    WHOLE: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    for start in range(0, num_keys, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k_main, k_tail = _load_pair(k, keys, k_n, num_keys, WHOLE, D, MAIN, TAIL)
        scores = _products(q_main, q_tail, k_main, k_tail, TAIL, PRECISION)
        if not WHOLE:
            scores = tl.where((keys < num_keys)[None, :], scores, _FAR_BELOW)
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)  # of a real key: every block has one
        p = tl.exp2(scores * scale - new_peak[:, None])
        if not WHOLE:
            p = tl.where((keys < num_keys)[None, :], p, 0.0)  # where scale is 0, all scores are
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(p, 1)
        peak = new_peak
        acc_main = acc_main * shrink[:, None]
        if TAIL > 0:
            acc_tail = acc_tail * shrink[:, None]
        v_main, v_tail = _load_pair(v, keys, v_n, num_keys, WHOLE, D, MAIN, TAIL)
        p = p.to(v_main.dtype)
        acc_main, acc_tail = _accumulate(p, v_main, v_tail, acc_main, acc_tail, TAIL, PRECISION)
    return acc_main, acc_tail, peak, total


@triton.jit
def _attention_fwd_kernel(
    q, k, v, extra_k, extra_v, kv_index, out, log_sum_exp,
    scale, heads, num_queries, num_keys, num_extra, kv_batch,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n,
    extra_k_b, extra_k_h, extra_k_n, extra_v_b, extra_v_h, extra_v_n, out_b, out_h, out_n,
    D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
    WHOLE_N: tl.constexpr, WHOLE_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of queries of one head."""
    blocks = tl.cdiv(num_queries, BLOCK_M)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    rows = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    b, h = head // heads, head % heads
    kv, known = b, True
    if kv_index is not None:
        kv, known, num_keys = _key_row(kv_index, b, kv_batch, num_keys)
    q_main, q_tail = _load_pair(q + b * q_b + h * q_h, rows, q_n, num_queries, False, D, MAIN, TAIL)
    # The running maximum wants scale >= 0; a negative one turns the queries round.
    sign = tl.where(scale < 0, -1.0, 1.0).to(q_main.dtype)
    q_main, q_tail = q_main * sign, q_tail * sign
    scale = tl.abs(scale) * _LOG2_E
    acc_main, acc_tail = _zeros_pair(BLOCK_M, MAIN, TAIL)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc_main, acc_tail, peak, total = _forward_segment(
        q_main, q_tail, acc_main, acc_tail, peak, total,
        k + kv * k_b + h * k_h, v + kv * v_b + h * v_h, k_n, v_n, num_keys, scale,
        WHOLE_N, D, MAIN, TAIL, BLOCK_N, PRECISION,
    )  # fmt: skip
    if extra_k is not None:
        acc_main, acc_tail, peak, total = _forward_segment(
            q_main, q_tail, acc_main, acc_tail, peak, total,
            extra_k + b * extra_k_b + h * extra_k_h, extra_v + b * extra_v_b + h * extra_v_h,
            extra_k_n, extra_v_n, num_extra, scale, WHOLE_E, D, MAIN, TAIL, BLOCK_E, PRECISION,
        )  # fmt: skip
    share = tl.where(known, 1.0 / total, float("nan"))
    out += b * out_b + h * out_h
    acc_main = acc_main * share[:, None]
    if TAIL > 0:
        acc_tail = acc_tail * share[:, None]
    _store_pair(out, rows, out_n, num_queries, acc_main, acc_tail, D, MAIN, TAIL)
    log_sum = tl.where(known, (peak + tl.log2(total)) * _LN_2, float("nan"))
    tl.store(log_sum_exp + head * num_queries + rows, log_sum, mask=rows < num_queries)


@triton.jit
def _dq_segment(
    q_main, q_tail, do_main, do_tail, dq_main, dq_tail, log_sum, delta, k, v, k_n, v_n, num_keys, scale,
    WHOLE: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    for start in range(0, num_keys, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k_main, k_tail = _load_pair(k, keys, k_n, num_keys, WHOLE, D, MAIN, TAIL)
        v_main, v_tail = _load_pair(v, keys, v_n, num_keys, WHOLE, D, MAIN, TAIL)
        scores = _products(q_main, q_tail, k_main, k_tail, TAIL, PRECISION) * scale
        if not WHOLE:
            scores = tl.where((keys < num_keys)[None, :], scores, float("-inf"))
        p = tl.exp2(scores - log_sum[:, None])
        dp = _products(do_main, do_tail, v_main, v_tail, TAIL, PRECISION)
        ds = (p * (dp - delta[:, None])).to(k_main.dtype)
        dq_main, dq_tail = _accumulate(ds, k_main, k_tail, dq_main, dq_tail, TAIL, PRECISION)
    return dq_main, dq_tail


@triton.jit
def _attention_bwd_dq_kernel(
    grad, q, k, v, extra_k, extra_v, kv_index, out, log_sum_exp, delta, grad_q,
    scale, heads, num_queries, num_keys, num_extra, kv_batch,
    grad_b, grad_h, grad_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n,
    extra_k_b, extra_k_h, extra_k_n, extra_v_b, extra_v_h, extra_v_n,
    out_b, out_h, out_n, grad_q_b, grad_q_h, grad_q_n,
    D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
    WHOLE_N: tl.constexpr, WHOLE_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of queries of one head. Leaves Δ for the kernel of the keys."""
    blocks = tl.cdiv(num_queries, BLOCK_M)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    rows = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    b, h = head // heads, head % heads
    kv, known = b, True
    if kv_index is not None:
        kv, known, num_keys = _key_row(kv_index, b, kv_batch, num_keys)
    do_main, do_tail = _load_pair(
        grad + b * grad_b + h * grad_h, rows, grad_n, num_queries, False, D, MAIN, TAIL
    )
    o_main, o_tail = _load_pair(out + b * out_b + h * out_h, rows, out_n, num_queries, False, D, MAIN, TAIL)
    change = tl.sum(do_main.to(tl.float32) * o_main.to(tl.float32), 1)
    if TAIL > 0:
        change += tl.sum(do_tail.to(tl.float32) * o_tail.to(tl.float32), 1)
    tl.store(delta + head * num_queries + rows, change, mask=rows < num_queries)
    log_sum = tl.load(log_sum_exp + head * num_queries + rows, mask=rows < num_queries, other=0.0) * _LOG2_E
    q_main, q_tail = _load_pair(q + b * q_b + h * q_h, rows, q_n, num_queries, False, D, MAIN, TAIL)
    dq_main, dq_tail = _zeros_pair(BLOCK_M, MAIN, TAIL)
    dq_main, dq_tail = _dq_segment(
        q_main, q_tail, do_main, do_tail, dq_main, dq_tail, log_sum, change,
        k + kv * k_b + h * k_h, v + kv * v_b + h * v_h, k_n, v_n, num_keys, scale * _LOG2_E,
        WHOLE_N, D, MAIN, TAIL, BLOCK_N, PRECISION,
    )  # fmt: skip
    if extra_k is not None:
        dq_main, dq_tail = _dq_segment(
            q_main, q_tail, do_main, do_tail, dq_main, dq_tail, log_sum, change,
            extra_k + b * extra_k_b + h * extra_k_h, extra_v + b * extra_v_b + h * extra_v_h,
            extra_k_n, extra_v_n, num_extra, scale * _LOG2_E,
            WHOLE_E, D, MAIN, TAIL, BLOCK_E, PRECISION,
        )  # fmt: skip
    grad_q += b * grad_q_b + h * grad_q_h
    scale = tl.where(known, scale, float("nan"))
    dq_main = dq_main * scale
    if TAIL > 0:
        dq_tail = dq_tail * scale
    _store_pair(grad_q, rows, grad_q_n, num_queries, dq_main, dq_tail, D, MAIN, TAIL)


@triton.jit
def _attention_bwd_dkv_kernel(
    grad, q, k, v, kv_index, log_sum_exp, delta, grad_k, grad_v,
    scale, heads, num_queries, num_keys, kv_batch, splits, blocks_in_split,
    grad_b, grad_h, grad_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n,
    grad_k_split, grad_k_b, grad_k_h, grad_k_n, grad_v_split, grad_v_b, grad_v_h, grad_v_n,
    D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of keys of one head, against one of ``splits`` parts of the row's queries."""
    blocks = tl.cdiv(num_keys, BLOCK_N)
    keys = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    split = (tl.program_id(0) // blocks % splits).to(tl.int64)
    head = (tl.program_id(0) // blocks // splits).to(tl.int64)
    b, h = head // heads, head % heads
    kv, _known = b, True
    if kv_index is not None:
        kv, _known, num_keys = _key_row(kv_index, b, kv_batch, num_keys)
    k_main, k_tail = _load_pair(k + kv * k_b + h * k_h, keys, k_n, num_keys, False, D, MAIN, TAIL)
    v_main, v_tail = _load_pair(v + kv * v_b + h * v_h, keys, v_n, num_keys, False, D, MAIN, TAIL)
    dk_main, dk_tail = _zeros_pair(BLOCK_N, MAIN, TAIL)
    dv_main, dv_tail = _zeros_pair(BLOCK_N, MAIN, TAIL)
    q += b * q_b + h * q_h
    grad += b * grad_b + h * grad_h
    log_sum_exp += head * num_queries
    delta += head * num_queries
    begin = split.to(tl.int32) * blocks_in_split * BLOCK_M
    end = tl.minimum(begin + blocks_in_split * BLOCK_M, num_queries)
    for start in range(begin, end, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        q_main, q_tail = _load_pair(q, rows, q_n, num_queries, WHOLE_M, D, MAIN, TAIL)
        do_main, do_tail = _load_pair(grad, rows, grad_n, num_queries, WHOLE_M, D, MAIN, TAIL)
        # Queries past the last one are zeros, and so is all that they add.
        log_sum = tl.load(log_sum_exp + rows, mask=rows < num_queries, other=0.0) * _LOG2_E
        change = tl.load(delta + rows, mask=rows < num_queries, other=0.0)
        scores = _products(k_main, k_tail, q_main, q_tail, TAIL, PRECISION) * (scale * _LOG2_E)
        scores = tl.where((keys < num_keys)[:, None], scores, float("-inf"))
        p = tl.exp2(scores - log_sum[None, :])
        dv_main, dv_tail = _accumulate(
            p.to(do_main.dtype), do_main, do_tail, dv_main, dv_tail, TAIL, PRECISION
        )
        dp = _products(v_main, v_tail, do_main, do_tail, TAIL, PRECISION)
        ds = (p * (dp - change[None, :])).to(q_main.dtype)
        dk_main, dk_tail = _accumulate(ds, q_main, q_tail, dk_main, dk_tail, TAIL, PRECISION)
    grad_k += split * grad_k_split + b * grad_k_b + h * grad_k_h
    grad_v += split * grad_v_split + b * grad_v_b + h * grad_v_h
    dk_main = dk_main * scale
    if TAIL > 0:
        dk_tail = dk_tail * scale
    _store_pair(grad_k, keys, grad_k_n, num_keys, dk_main, dk_tail, D, MAIN, TAIL)
    _store_pair(grad_v, keys, grad_v_n, num_keys, dv_main, dv_tail, D, MAIN, TAIL)


@triton.jit
def _attention_bwd_sum_kernel(
    parts_k, parts_v, kv_index, grad_k, grad_v,
    batch, heads, size, num_parts, grad_k_b, grad_k_h, grad_k_n, grad_v_b, grad_v_h, grad_v_n,
    D: tl.constexpr, SHARED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Adds parts [splits, B, H, size] up, in a fixed order, over the splits and the rows that share a key."""
    blocks = tl.cdiv(size, BLOCK_X)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    x = tl.program_id(0) % blocks * BLOCK_X + tl.arange(0, BLOCK_X)
    kv, h = head // heads, head % heads
    parts = parts_k
    if tl.program_id(1) == 1:
        parts = parts_v
    total = tl.zeros([BLOCK_X], tl.float32)
    for start in range(0, num_parts, BLOCK_R):
        part = start + tl.arange(0, BLOCK_R)
        wanted = part < num_parts
        if kv_index is not None:
            wanted = wanted & (tl.load(kv_index + part % batch, mask=wanted, other=-1) == kv)
        elif not SHARED:
            wanted = wanted & (part % batch == kv)
        ptrs = parts + (part.to(tl.int64) * heads + h)[:, None] * size + x[None, :]
        total += tl.sum(tl.load(ptrs, mask=wanted[:, None] & (x < size)[None, :], other=0.0), 0)
    if tl.program_id(1) == 0:
        ptrs = grad_k + kv * grad_k_b + h * grad_k_h + x // D * grad_k_n + x % D
        tl.store(ptrs, total.to(grad_k.dtype.element_ty), mask=x < size)
    else:
        ptrs = grad_v + kv * grad_v_b + h * grad_v_h + x // D * grad_v_n + x % D
        tl.store(ptrs, total.to(grad_v.dtype.element_ty), mask=x < size)
