"""The Triton kernels of trajectory_log_prob. Collected on a GPU, and in the interpreter by test_triton.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrl.ops import denoise_step, trajectory_log_prob
from cxrl.ops.trajectory_log_prob import denoise_step_reference, trajectory_log_prob_reference

# Odd, prime, one, empty, whole blocks, more than one part to a row, no multiple of any vector.
SHAPES = [(2, 4, 16, 16), (2, 3, 5, 7), (1, 1, 1, 1), (0, 4, 2, 2), (5, 13), (2, 3, 4, 5, 6), (2, 3, 61, 67)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# A tree of float32 sums: a few roundings of the squared error.
LOG_PROB_TOLERANCE = {"rtol": 2e-6, "atol": 2e-6}
# One rounding into the gradient's own dtype (half an ulp) on top of float32 arithmetic.
GRAD_TOLERANCE = {
    torch.float32: {"rtol": 2e-5, "atol": 1e-6},
    torch.float16: {"rtol": 1e-3, "atol": 1e-6},
    torch.bfloat16: {"rtol": 8e-3, "atol": 1e-6},
}


def make(
    shape: tuple[int, ...], device: str, dtype: torch.dtype = torch.float32, guided: bool = True
) -> list[Any]:
    def random() -> Tensor:
        return torch.randn(shape, device=device)

    table = torch.rand(shape[0], 3, device=device) + 0.1
    uncond = random().to(dtype) if guided else None
    return [random().to(dtype), uncond, 3.0 if guided else 1.0, random(), random(), table]


def double(args: list[Any]) -> list[Any]:
    return [a.detach().double() if isinstance(a, Tensor) else a for a in args]


def check_against_float64(args: list[Any]) -> None:
    dtype = args[0].dtype
    expected_args = double(args)
    leaves, expected_leaves = (
        [a.requires_grad_() for a in t[:2] if a is not None] for t in (args, expected_args)
    )
    expected = trajectory_log_prob_reference(*expected_args)
    actual = trajectory_log_prob(*args, backend="triton")
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, **LOG_PROB_TOLERANCE)
    grad = torch.randn_like(actual)
    gradients = torch.autograd.grad(actual, leaves, grad)
    for a, e in zip(gradients, torch.autograd.grad(expected, expected_leaves, grad.double()), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), e, **GRAD_TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("guided", [True, False])
def test_matches_float64(
    triton_device: str, shape: tuple[int, ...], dtype: torch.dtype, guided: bool
) -> None:
    check_against_float64(make(shape, triton_device, dtype, guided))


@pytest.mark.parametrize("which", [(0, 1, 3, 4), (0, 1), (1,), (3, 4)])
@pytest.mark.parametrize("shape", [(3, 4, 7, 19), (2, 3, 61, 67)])
def test_channels_last(triton_device: str, shape: tuple[int, ...], which: tuple[int, ...]) -> None:
    args = make(shape, triton_device, torch.bfloat16)
    for i in which:
        args[i] = args[i].to(memory_format=torch.channels_last)
    check_against_float64(args)


def test_strides(triton_device: str) -> None:
    # A trajectory's latents as views [N, T+1, ...], a broadcast table, every second row, a transposed
    # output, an offset storage.
    trajectory = torch.randn(4, 6, 3, 5, 7, device=triton_device)
    cond = torch.randn(8, 3, 7, 5, device=triton_device).transpose(2, 3)[::2]
    uncond = torch.randn(100_000, device=triton_device)[90_013 : 90_013 + 420].view(4, 3, 5, 7)
    table = torch.tensor([[0.9, -0.3, 0.2]], device=triton_device).expand(4, 3)
    check_against_float64([cond, uncond, 5.0, trajectory[:, 2], trajectory[:, 3], table])
    column_major = (torch.rand(3, 4, device=triton_device) + 0.1).t()
    shared = torch.randn(1, 3, 5, 7, device=triton_device).expand(4, 3, 5, 7)
    check_against_float64([cond, uncond, 0.5, shared, trajectory[:, 3], column_major])


def test_expanded_gradient(triton_device: str) -> None:
    args = make((4, 4, 8, 8), triton_device)
    args[0].requires_grad_()
    output = trajectory_log_prob(*args, backend="triton")
    once, again = (
        torch.autograd.grad(output, args[0], g, retain_graph=True)
        for g in (torch.ones((), device=triton_device).expand(4), torch.ones(4, device=triton_device))
    )
    assert torch.equal(once[0], again[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_step(triton_device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    cond, uncond, guidance, x_t, noise, table = make(shape, triton_device, dtype)
    if len(table) > 1:
        table[1, 2] = 0.0  # a deterministic step
    x_prev, log_prob = denoise_step(cond, uncond, guidance, x_t, noise, table, backend="triton")
    expected = denoise_step_reference(*double([cond, uncond, guidance, x_t, noise, table]))
    torch.testing.assert_close(x_prev.double(), expected[0], rtol=1e-6, atol=2e-6)
    # x_prev − μ loses what rounding x_prev to float32 costs: ulp(x_prev) / σ.
    torch.testing.assert_close(log_prob.double(), expected[1], rtol=1e-5, atol=1e-5)
    scored = trajectory_log_prob(cond, uncond, guidance, x_t, x_prev, table.clamp_min(1e-3), backend="triton")
    stochastic = table[:, 2] > 0
    assert torch.equal(scored[stochastic], log_prob[stochastic])
    assert (log_prob[~stochastic] == 0).all()


@pytest.mark.parametrize("shape", [(6, 4, 12, 12), (4, 5, 41, 43)])
def test_rows_do_not_depend_on_their_batch(triton_device: str, shape: tuple[int, ...]) -> None:
    args = make(shape, triton_device)
    whole = trajectory_log_prob(*args, backend="triton")
    parts = [
        trajectory_log_prob(*(a[i : i + 2] if isinstance(a, Tensor) else a for a in args), backend="triton")
        for i in range(0, shape[0], 2)
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_written_completely_and_deterministic(triton_device: str, poisoned: None) -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        args = [
            a.to(memory_format=memory_format) if isinstance(a, Tensor) and a.ndim == 4 else a
            for a in make((2, 3, 53, 59), triton_device, torch.bfloat16)
        ]
        for a in args[:2]:
            a.requires_grad_()
        runs = []
        for _ in range(2):
            log_prob = trajectory_log_prob(*args, backend="triton")
            step = denoise_step(*args, backend="triton")
            runs.append([log_prob, *step, *torch.autograd.grad(log_prob.sum(), args[:2])])
        assert all(t.isfinite().all() for t in runs[0])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's NumPy
def test_bad_tables_give_nan(triton_device: str) -> None:
    # Looking at values would stall a device, so bad ones show in the result.
    args = make((5, 3, 4, 5), triton_device)
    args[5][0, 2] = 0.0
    args[5][1, 2] = -0.3
    args[5][2, 0] = math.inf
    args[5][3, 1] = math.nan
    log_prob = trajectory_log_prob(*args, backend="triton")
    assert log_prob.isnan().tolist() == [True, True, True, True, False]
