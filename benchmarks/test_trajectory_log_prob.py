"""``trajectory_log_prob`` forward and backward against eager PyTorch and ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cxrl.ops import trajectory_log_prob


@pytest.mark.parametrize(("batch", "size"), [(8, 8), (96, 8), (8, 16), (64, 16), (8, 64), (32, 64)])
def test_trajectory_log_prob(compare: Callable[..., Any], batch: int, size: int) -> None:
    shape = (batch, 4, size, size)
    output = torch.randn(shape, requires_grad=True)
    x_t, x_prev = torch.randn(shape), torch.randn(shape)
    rows = torch.tensor([0.9, 0.3, 0.2]).expand(batch, 3).contiguous()
    grad = torch.randn(batch)

    def reference(output: torch.Tensor) -> torch.Tensor:
        return trajectory_log_prob(output, None, 1.0, x_t, x_prev, rows, backend="reference")

    compiled = torch.compile(reference)

    def step(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(output), output, grad)

    compare(
        "trajectory_log_prob fwd+bwd",
        "x".join(map(str, shape)),
        {
            "auto": step(lambda o: trajectory_log_prob(o, None, 1.0, x_t, x_prev, rows)),
            "eager": step(reference),
            "compile": step(compiled),
        },
        num_bytes=4 * output.numel() * 7,
        flops=output.numel() * 12,
    )
