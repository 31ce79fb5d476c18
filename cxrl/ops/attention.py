"""Softmax attention with an extra key segment and shared keys.

    out = softmax(scale · q [k ; extra_k]ᵀ) [v ; extra_v]        softmax in float32 (float64 for float64)

``extra_k``/``extra_v`` are the keys and values of the ACE tokens, attended to after the prompt's.
``kv_index`` maps the batch row of the queries to that of ``k`` and ``v``, so the samples of a prompt share
one.
Shapes: q [B, H, N, D]; k, v [Bk, H, L, D]; extra [H, E, D], or [B·H, E, D] with one each; kv_index int64 [B].
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cxrl.ops import _compiled, _dispatch

FEW_KEYS = 256
LITTLE_WORK = 1_300_000  # products of one score matrix; below, what a call costs outside its kernel decides
_KEPT_ROW = 16  # of kept probabilities: whole vectors of every instruction set
ATTENTION_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def concatenate_extra(
    q: Tensor, k: Tensor, v: Tensor, extra_k: Tensor | None, extra_v: Tensor | None, kv_index: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Keys and values as stock kernels want them: gathered by ``kv_index``, the extra segment appended."""
    if kv_index is not None:
        k, v = k[kv_index], v[kv_index]
    if extra_k is None or extra_v is None:
        return k, v
    shape = (q.shape[0], q.shape[1], extra_k.shape[1], q.shape[3])
    return torch.cat([k, _per_row(extra_k, shape)], 2), torch.cat([v, _per_row(extra_v, shape)], 2)


def _per_row(extra: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    if extra.shape[0] == shape[1]:
        return extra.unsqueeze(0).expand(shape)
    return extra.reshape(shape)


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    kv_index: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The formula in plain PyTorch: what every backend is tested and timed against. Checks nothing."""
    k, v = concatenate_extra(q, k, v, extra_k, extra_v, kv_index)
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    factor = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = (q.to(compute) @ k.to(compute).transpose(-1, -2)) * factor
    return (scores.softmax(-1) @ v.to(compute)).to(q.dtype)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    kv_index: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Softmax attention over ``k`` and ``extra_k`` together.

    Args:
        q: [B, H, N, D] float32, float16 or bfloat16.
        k: [Bk, H, L, D], Bk = B without ``kv_index``; dtype of q, as all that follow.
        v: [Bk, H, L, D].
        extra_k: [H, E, D] shared by all rows, or [B·H, E, D]; appended to k without a copy where possible.
        extra_v: As ``extra_k``; both or neither.
        kv_index: int64 [B], the row of k and v that each query row attends to.
        scale: Of the scores; None means 1/√D.
        backend: See :data:`cxrl.ops.BACKENDS`; None means ``CXRL_BACKEND`` or ``auto``.

    Returns:
        [B, H, N, D] in the dtype of q, differentiable in q, k, v, extra_k and extra_v.

    Raises:
        ValueError: A shape, dtype, device or (on the CPU) index does not fit; the backend cannot run. A wrong
            index on a GPU gives nan in our kernels, because looking would stall the device.
    """
    device_type = q.device.type
    if torch.is_autocast_enabled(device_type):
        q, k, v, extra_k, extra_v = _autocast(q, k, v, extra_k, extra_v)
    check_attention(q, k, v, extra_k, extra_v, kv_index, scale)
    shape = q.shape
    scale = 1.0 / math.sqrt(shape[3]) if scale is None else scale
    num_keys = k.shape[2] + (0 if extra_k is None else extra_k.shape[1])
    choose = _choose if torch.compiler.is_compiling() else _known_choice
    chosen = choose(backend, device_type, shape, num_keys, q.dtype)
    if chosen in _PLAIN:
        if kv_index is not None:
            _check_rows(kv_index, k.shape[0])
        return _PLAIN[chosen](q, k, v, extra_k, extra_v, kv_index, scale)
    keep = _compiled.wants_grad(q, k, v, extra_k, extra_v)
    return _attention_op(q, k, v, extra_k, extra_v, kv_index, scale, keep, chosen)[0]


def attention_case(shape: tuple[int, ...], num_keys: int, dtype: torch.dtype) -> str:
    """What the speed depends on: much work or little, many keys or few, dtype and head dimension.

    Args:
        shape: [B, H, N, D] of the queries.
        num_keys: Of every head, the extra segment included.
        dtype: Of the tensors.
    """
    batch, heads, queries, dim = shape
    kind = "few" if num_keys <= FEW_KEYS else "many"
    if batch * heads * queries * num_keys * dim < LITTLE_WORK:
        kind = "little"
    return f"{kind}/{str(dtype).removeprefix('torch.')}/{max(8, 1 << (dim - 1).bit_length())}"


def _choose(
    backend: str | None, device_type: str, shape: tuple[int, ...], num_keys: int, dtype: torch.dtype
) -> str:
    needs: tuple[str, ...] = ("float64",) if dtype is torch.float64 else ()
    if shape[3] > 160:
        needs += ("a head dimension above 160",)
    case = attention_case(shape, num_keys, dtype)
    return _dispatch.select("attention", backend, device_type, needs, case)


_known_choice = _dispatch.remembered(_choose)


def attention_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    kv_index: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """PyTorch's fused attention after gathering and concatenating, which it needs. Checks nothing."""
    k, v = concatenate_extra(q, k, v, extra_k, extra_v, kv_index)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)


def attention_xformers(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    kv_index: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """xformers' memory-efficient attention after gathering and concatenating. Checks nothing."""
    ops = importlib.import_module("xformers.ops")
    k, v = concatenate_extra(q, k, v, extra_k, extra_v, kv_index)
    out = ops.memory_efficient_attention(*(t.transpose(1, 2) for t in (q, k, v)), scale=scale)
    return out.transpose(1, 2)


_PLAIN = {"reference": attention_reference, "sdpa": attention_sdpa, "xformers": attention_xformers}


def _autocast(*tensors: Tensor | None) -> list[Any]:
    """What autocast does for scaled_dot_product_attention: everything to its dtype."""
    present = [t for t in tensors if t is not None]
    dtype = torch.get_autocast_dtype(present[0].device.type)
    return [None if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def _empty_heads(t: Tensor) -> Tensor:
    """An empty [B, H, N, D] laid out as [B, N, H, D], which merges its heads without a copy."""
    batch, heads, rows, dim = t.shape
    return t.new_empty(batch, rows, heads, dim).transpose(1, 2)


def _allocate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    kv_index: Tensor | None,
    scale: float,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    kept = _kept_row(k, extra_k) if keep and backend == "cpp" else ()
    return _empty_heads(q), q.new_empty((*q.shape[:3], *kept), dtype=torch.float32)


def _kept_row(k: Tensor, extra_k: Tensor | None) -> tuple[int, ...]:
    """Size of a row of kept probabilities; empty where the keys are too many to keep them."""
    num_keys = k.shape[2] + (0 if extra_k is None else extra_k.shape[1])
    return (-(-num_keys // _KEPT_ROW) * _KEPT_ROW,) if num_keys <= FEW_KEYS else ()


def _allocate_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    *others: Any,
) -> tuple[Tensor, ...]:
    extra = [q.new_empty(0) if t is None else q.new_empty(t.shape) for t in (extra_k, extra_v)]
    return (_empty_heads(q), _empty_heads(k), _empty_heads(v), *extra)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    kv_index: Tensor | None,
    scale: float,
    *others: Any,
) -> None:
    check_attention(q, k, v, extra_k, extra_v, kv_index, scale)


def _check_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    kv_index: Tensor | None,
    scale: float,
    out: Tensor,
    saved: Tensor,
    backend: str,
) -> None:
    check_attention(q, k, v, extra_k, extra_v, kv_index, scale)
    for name, t in (("grad", grad), ("out", out)):
        _compiled.check_tensor("attention", name, t, q.shape, q.dtype, q.device)
    rows = q.shape[:3]
    kept = backend == "cpp" and saved.ndim == 4
    shape = (*rows, *_kept_row(k, extra_k)) if kept else rows
    _compiled.check_tensor("attention", "saved", saved, shape, torch.float32, q.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, extra_k, extra_v, kv_index, scale, _, backend = inputs
    ctx.save_for_backward(q, k, v, extra_k, extra_v, kv_index, *output)
    ctx.scale, ctx.backend = scale, backend


def _backward(
    ctx: Any, run: Callable[..., Any], grad: Tensor, grad_saved: Tensor
) -> tuple[Tensor | None, ...]:
    q, k, v, extra_k, extra_v, kv_index, out, saved = ctx.saved_tensors
    grad_q, grad_k, grad_v, *extra = run(
        grad, q, k, v, extra_k, extra_v, kv_index, ctx.scale, out, saved, ctx.backend
    )
    if extra_k is None:
        extra = [None, None]
    return grad_q, grad_k, grad_v, *extra, None, None, None, None


_ARGUMENTS = "Tensor q, Tensor k, Tensor v, Tensor? extra_k, Tensor? extra_v, Tensor? kv_index, float scale"
# Returns the result and, for the backward, in float32 the log of the softmax denominators [B, H, N]; or where
# gradients are wanted and the keys are few, the C++ backend's probabilities [B, H, N, L + E rounded up]: as
# eager autograd it keeps them rather than compute one product in seven again.
_attention_op = _compiled.CompiledOp(
    "attention",
    f"({_ARGUMENTS}, bool keep, str backend) -> (Tensor, Tensor)",
    _allocate,
    _check,
    setup_context=_setup_context,
    backward=_backward,
    backward_op=_compiled.CompiledOp(
        "attention_backward",
        f"(Tensor grad, {_ARGUMENTS}, Tensor out, Tensor saved, str backend) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        _allocate_backward,
        _check_backward,
    ),
)


def _extra_fits(
    shape: torch.Size,
    dtype: torch.dtype,
    device: torch.device,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
) -> bool:
    if extra_k is None or extra_v is None:
        return extra_k is extra_v
    extra = extra_k.shape
    return (
        len(extra) == 3
        and extra == extra_v.shape
        and extra[2] == shape[3]
        and extra[0] in (shape[1], shape[0] * shape[1])
        and dtype is extra_k.dtype is extra_v.dtype
        and extra_k.device == device == extra_v.device
    )


def _index_fits(kv_index: Tensor, batch: int, device: torch.device) -> bool:
    return kv_index.dtype is torch.int64 and kv_index.shape == (batch,) and kv_index.device == device


def check_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    kv_index: Tensor | None,
    scale: float | None,
) -> None:
    """Refuse arguments whose shape, dtype or device does not fit, naming the one that is wrong."""
    shape, dtype, device, keys = q.shape, q.dtype, q.device, k.shape
    if (
        len(shape) == 4 == len(keys)
        and dtype in ATTENTION_DTYPES
        and dtype is k.dtype is v.dtype
        and shape[1] == keys[1]
        and shape[3] == keys[3] > 0
        and keys[2] > 0
        and keys == v.shape
        and k.device == device == v.device
        and (shape[0] == keys[0] if kv_index is None else _index_fits(kv_index, shape[0], device))
        and _extra_fits(shape, dtype, device, extra_k, extra_v)
        and (scale is None or math.isfinite(scale))
    ):
        return  # the usual call, in a few microseconds
    if q.ndim != 4 or q.dtype not in ATTENTION_DTYPES or q.shape[3] < 1:
        raise ValueError(f"attention: q must be floating [B, H, N, D >= 1], got {q.dtype} {tuple(q.shape)}")
    batch, heads, _, dim = q.shape
    if k.ndim != 4 or k.shape[1] != heads or k.shape[3] != dim or k.shape[2] < 1:
        raise ValueError(f"attention: k must be [Bk, {heads}, L >= 1, {dim}], got {tuple(k.shape)}")
    if v.shape != k.shape:
        raise ValueError(f"attention: v has shape {tuple(v.shape)}, k has {tuple(k.shape)}")
    if (extra_k is None) != (extra_v is None):
        raise ValueError("attention: give both extra_k and extra_v, or neither")
    if extra_k is not None and extra_v is not None:
        if extra_k.ndim != 3 or extra_k.shape[0] not in (heads, batch * heads) or extra_k.shape[2] != dim:
            raise ValueError(
                f"attention: extra_k must be [{heads}, E, {dim}] or [{batch * heads}, E, {dim}], "
                f"got {tuple(extra_k.shape)}"
            )
        if extra_v.shape != extra_k.shape:
            raise ValueError(
                f"attention: extra_v has shape {tuple(extra_v.shape)}, extra_k {tuple(extra_k.shape)}"
            )
    for name, tensor in (("k", k), ("v", v), ("extra_k", extra_k), ("extra_v", extra_v)):
        if tensor is not None and (tensor.dtype != q.dtype or tensor.device != q.device):
            raise ValueError(
                f"attention: {name} is {tensor.dtype} on {tensor.device}, q is {q.dtype} on {q.device}"
            )
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"attention: scale must be finite, got {scale}")
    if kv_index is None:
        if k.shape[0] != batch:
            raise ValueError(
                f"attention: k has {k.shape[0]} rows for {batch} of q; give kv_index to share keys"
            )
        return
    if not _index_fits(kv_index, batch, q.device):
        raise ValueError(
            f"attention: kv_index must be int64 [{batch}] on {q.device}, got {kv_index.dtype} "
            f"{tuple(kv_index.shape)} on {kv_index.device}"
        )


def _check_rows(kv_index: Tensor, num_rows: int) -> None:
    """Refuse an index of a row that k does not have. Looks at values: CPU only."""
    if kv_index.device.type != "cpu" or torch.compiler.is_compiling():
        return
    bad = (kv_index < 0) | (kv_index >= num_rows)
    if bool(bad.any()):
        b = int(bad.nonzero()[0])
        raise ValueError(f"attention: kv_index[{b}] = {int(kv_index[b])}, expected 0 to {num_rows - 1}")
