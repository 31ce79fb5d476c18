"""``trajectory_log_prob`` forward and backward, and ``denoise_step``.

Against eager PyTorch and ``torch.compile``, which get the table, as cxrl does, and check nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cxrl.ops import denoise_step, trajectory_log_prob
from cxrl.ops.trajectory_log_prob import denoise_step_reference, trajectory_log_prob_reference


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(("batch", "size"), [(8, 8), (96, 8), (8, 16), (64, 16), (8, 64), (32, 64)])
def test_trajectory_log_prob(
    compare: Callable[..., Any],
    fastest_compiled: Callable[..., Any],
    batch: int,
    size: int,
    guidance: float,
) -> None:
    shape = (batch, 4, size, size)
    outputs = [torch.randn(shape, requires_grad=True) for _ in range(1 if guidance == 1.0 else 2)]
    cond, uncond = outputs if len(outputs) == 2 else (outputs[0], None)
    x_t, x_prev = torch.randn(shape), torch.randn(shape)
    rows = torch.tensor([0.9, 0.3, 0.2]).expand(batch, 3).contiguous()
    grad = torch.randn(batch)

    def step(function: Callable[..., torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(cond, uncond, guidance, x_t, x_prev, rows), outputs, grad)

    compare(
        "trajectory_log_prob fwd+bwd",
        "x".join(map(str, shape)) + ("" if uncond is None else " guided"),
        {
            "auto": step(trajectory_log_prob),
            "eager": step(trajectory_log_prob_reference),
            "compile": fastest_compiled(step, trajectory_log_prob_reference),
        },
        num_bytes=4 * x_t.numel() * (4 + 3 * len(outputs)),
        flops=x_t.numel() * (8 + 4 * len(outputs)),
    )


@pytest.mark.parametrize(("batch", "size", "guidance"), [(32, 8, 1.0), (32, 64, 4.0)])
def test_denoise_step(
    compare: Callable[..., Any],
    fastest_compiled: Callable[..., Any],
    batch: int,
    size: int,
    guidance: float,
) -> None:
    shape = (batch, 4, size, size)
    cond, x_t, noise = torch.randn(shape), torch.randn(shape), torch.randn(shape)
    uncond = None if guidance == 1.0 else torch.randn(shape)
    rows = torch.tensor([0.9, 0.3, 0.2]).expand(batch, 3).contiguous()

    @torch.no_grad()
    def call(function: Callable[..., Any]) -> object:
        return function(cond, uncond, guidance, x_t, noise, rows)

    def step(function: Callable[..., Any]) -> Callable[[], object]:
        return lambda: call(function)

    num_tensors = 4 if uncond is None else 5
    compare(
        "denoise_step",
        "x".join(map(str, shape)) + ("" if uncond is None else " guided"),
        {
            "auto": step(denoise_step),
            "eager": step(denoise_step_reference),
            "compile": fastest_compiled(step, denoise_step_reference),
        },
        num_bytes=4 * x_t.numel() * num_tensors,
        flops=x_t.numel() * (6 + 2 * num_tensors),
    )
