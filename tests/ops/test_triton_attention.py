"""The Triton kernels of attention. Collected on a GPU, and in the interpreter by test_triton.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cxrl_kernels import attention as provider
from cxrl_kernels._common import INTERPRETED
from torch import Tensor

from cxrl.ops import attention
from cxrl.ops.attention import attention_reference

# B, H, N, L, E, D, rows of k (0: as many as B), extra shared by all rows
SIZES = [
    (2, 1, 9, 5, 3, 40, 0, True),  # head dimension in two tiles
    (3, 2, 5, 7, 2, 13, 2, False),  # no power of two, shared keys, extra keys of each row
    (2, 1, 131, 77, 0, 16, 0, True),  # several blocks of queries and of keys, the last not full
    (1, 1, 64, 64, 16, 16, 0, True),  # all blocks full
    (1, 1, 3, 2, 1, 160, 0, True),
    (1, 1, 300, 3, 2, 8, 0, True),  # queries cut into parts
    (1, 1, 1, 1, 0, 1, 0, True),
    (0, 2, 5, 7, 2, 8, 0, True),
    (2, 1, 0, 3, 1, 8, 0, True),
]
# The interpreter multiplies the raw bits of bfloat16.
DTYPES = [torch.float32, torch.float16, *([] if INTERPRETED else [torch.bfloat16])]
# float32: PyTorch's own float32 attention is off by as much; half precision: one rounding of the result,
# half an ulp of values up to 4 (forward), of the gradient's own size (relative to its norm).
FORWARD = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
BACKWARD = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

Arguments = dict[str, Any]


def make(size: tuple[Any, ...], device: str, dtype: torch.dtype = torch.float32) -> Arguments:
    b, h, n, keys, e, d, kv, shared = size

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    def heads(batch: int, rows: int) -> Tensor:
        # As a projection leaves them: [B, N, H·D] seen as heads.
        return random(batch, rows, h * d).view(batch, rows, h, d).transpose(1, 2)

    args: Arguments = {"q": heads(b, n), "k": heads(kv or b, keys), "v": heads(kv or b, keys)}
    for name in ("extra_k", "extra_v"):
        args[name] = random(h if shared else b * h, e, d) if e else None
    args["kv_index"] = torch.randint(kv, (b,), device=device) if kv else None
    return args


def leaves_of(args: Arguments) -> list[Tensor]:
    return [a.requires_grad_() for a in args.values() if a is not None and a.is_floating_point()]


def double(args: Arguments) -> Arguments:
    return {n: a.detach().double() if a is not None and a.is_floating_point() else a for n, a in args.items()}


def check_against_float64(args: Arguments, scale: float | None = None) -> list[Tensor]:
    dtype = args["q"].dtype
    expected_args = double(args)
    expected_leaves, leaves = leaves_of(expected_args), leaves_of(args)
    expected = attention_reference(**expected_args, scale=scale)
    actual = attention(**args, scale=scale, backend="triton")
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=FORWARD[dtype], atol=FORWARD[dtype])
    grad = torch.randn_like(expected).to(dtype)
    gradients = torch.autograd.grad(actual, leaves, grad)
    expected_gradients = torch.autograd.grad(expected, expected_leaves, grad.double())
    for a, e in zip(gradients, expected_gradients, strict=True):
        assert a.dtype == dtype
        assert (a.double() - e).norm() <= BACKWARD[dtype] * e.norm() + 1e-6 * math.sqrt(e.numel())
    return [actual, *gradients]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_matches_float64(triton_device: str, size: tuple[Any, ...], dtype: torch.dtype) -> None:
    check_against_float64(make(size, triton_device, dtype))


def test_strides(triton_device: str) -> None:
    args = make((2, 2, 5, 7, 3, 16, 0, True), triton_device)
    args["q"] = torch.randn(2, 2, 16, 10, device=triton_device)[..., ::2].transpose(
        2, 3
    )  # no dense dimension
    args["k"] = torch.randn(1, 2, 7, 16, device=triton_device).expand(2, 2, 7, 16)  # one row for all
    args["v"] = torch.randn(10_000, device=triton_device)[9_017 : 9_017 + 448].view(2, 2, 7, 16)
    args["extra_k"] = torch.randn(2, 6, 16, device=triton_device)[:, ::2]
    check_against_float64(args)


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_scale(triton_device: str, scale: float) -> None:
    check_against_float64(make((1, 1, 5, 21, 2, 8, 0, True), triton_device), scale)


def test_large_scores(triton_device: str) -> None:
    args = make((1, 1, 3, 5, 0, 8, 0, True), triton_device)
    args["q"], args["k"] = 100 * args["q"], 100 * args["k"]
    leaves = leaves_of(args)
    actual = attention(**args, backend="triton")
    for t in (actual, *torch.autograd.grad(actual.sum(), leaves)):
        assert t.isfinite().all()
    torch.testing.assert_close(actual.double(), attention_reference(**double(args)), rtol=1e-3, atol=1e-3)


def test_written_completely_and_deterministic(triton_device: str, poisoned: None) -> None:
    args = make((3, 1, 21, 7, 3, 13, 2, True), triton_device, torch.float16)
    args["kv_index"][:] = 1  # nobody attends to row 0 of k: gradient 0
    leaves = leaves_of(args)
    runs = []
    for _ in range(2):
        output = attention(**args, backend="triton")
        runs.append([output, *torch.autograd.grad(output.float().square().sum(), leaves)])
    assert all(t.isfinite().all() for t in runs[0])
    assert (runs[0][2][0] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_inputs_are_not_touched(triton_device: str) -> None:
    args = make((2, 1, 5, 7, 3, 40, 1, True), triton_device)
    copies = {name: t.clone() for name, t in args.items()}
    attention(**args, backend="triton").sum()
    assert all(torch.equal(args[name], copy) for name, copy in copies.items())


@pytest.mark.parametrize(
    ("dim", "tiles"),
    [
        (1, (16, 0)),
        (16, (16, 0)),
        (40, (32, 16)),
        (64, (64, 0)),
        (80, (64, 16)),
        (120, (128, 0)),
        (160, (128, 32)),
    ],
)
def test_head_dimensions_are_padded_little(dim: int, tiles: tuple[int, int]) -> None:
    assert provider.head_tiles(dim) == tiles


@pytest.mark.parametrize("kernel", ["forward", "dq", "dkv"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_problem_has_tiles(kernel: str, dtype: torch.dtype) -> None:
    for dim in range(1, 600, 7):
        for queries, keys in ((1, 1), (4096, 77), (4096, 4096)):
            tiles = provider.tiles_for(kernel, dim, dtype, 80, queries, keys)
            assert tiles.queries >= 16
            assert tiles.keys >= 16
