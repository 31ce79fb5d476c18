"""What stands between the arguments of ``torch.ops.cxrl`` and the kernels, which take addresses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrl.ops import attention, denoise_step, group_win_rate, pairwise_comparison, trajectory_log_prob

FUZZ = Path(__file__).with_name("fuzz_arguments.py")


def fuzz(backend: str, **environment: str) -> str:
    """Run fuzz_arguments.py in a process of its own, where a crash is only a failure."""
    options = ["-q", "-s", "-p", "no:cacheprovider", "-o", "timeout=900", "-k", f"[{backend}"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(FUZZ)],
        env={**os.environ, "PYTEST_ADDOPTS": "", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        cwd=FUZZ.parents[2],
        check=False,
    )
    assert run.returncode == 0, f"status {run.returncode} after\n" + run.stdout[-4000:] + run.stderr[-2000:]
    return run.stdout


def test_no_argument_reaches_a_wrong_address(cpp: str) -> None:
    assert "skipped" not in fuzz(cpp).splitlines()[-1]


@pytest.mark.timeout(900)  # busy cores take several times as long
@pytest.mark.slow  # half a minute: the interpreter takes a tenth of a second for each call of attention
def test_no_argument_reaches_a_wrong_address_in_triton() -> None:
    pytest.importorskip("triton")
    assert "skipped" not in fuzz("triton", TRITON_INTERPRET="1").splitlines()[-1]


def step(batch: int = 2) -> dict[str, Any]:
    names = ("cond", "uncond", "guidance", "x_t", "x_prev", "table_rows")
    latents = [torch.randn(batch, 4, 3, 5) for _ in range(4)]
    return dict(zip(names, (*latents[:2], 2.0, *latents[2:], torch.rand(batch, 3) + 0.1), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table_rows": torch.ones(1, 3)}, r"table_rows must be \[2, 3\], got \(1, 3\)"),
        (
            {"table_rows": torch.ones(2, 3, dtype=torch.float64)},
            "x_prev and table_rows must be torch.float32",
        ),
        ({"x_prev": torch.randn(1, 4, 3, 5)}, "x_prev has shape"),
        ({"uncond": None}, "guidance 2.0 needs model_output_uncond"),
        ({"x_t": None}, "x_t must be a tensor, got None"),
        ({"cond": torch.empty(2, 4, 3, 5, device="meta")}, "model_output_cond is on meta, x_t on cpu"),
    ],
)
def test_the_error_names_the_argument(cpp: str, change: dict[str, Any], message: str) -> None:
    arguments = step() | change
    with pytest.raises(ValueError, match=f"trajectory_log_prob.*: {message}"):
        torch.ops.cxrl.trajectory_log_prob(*arguments.values(), cpp)
    with pytest.raises(ValueError, match=f"trajectory_log_prob.*: {message}"):
        torch.ops.cxrl.trajectory_log_prob_backward(torch.ones(2), *arguments.values(), cpp)


def test_fakes_refuse_too(cpp: str) -> None:
    arguments = {name: t.to("meta") if isinstance(t, Tensor) else t for name, t in step().items()}
    assert torch.ops.cxrl.trajectory_log_prob(*arguments.values(), cpp).shape == (2,)
    arguments["table_rows"] = torch.empty(1, 3, device="meta")
    with pytest.raises(ValueError, match="table_rows must be"):
        torch.ops.cxrl.trajectory_log_prob(*arguments.values(), cpp)


def test_freed_memory_is_named(cpp: str) -> None:
    arguments = step()
    arguments["x_prev"].untyped_storage().resize_(0)
    for function in (trajectory_log_prob, torch.ops.cxrl.trajectory_log_prob.default):
        with pytest.raises(ValueError, match="x_prev has elements but no memory: its storage was freed"):
            function(*arguments.values(), backend=cpp)


def negative(t: Tensor) -> Tensor:
    """``t``, whose memory holds -t."""
    return torch.complex(t, -t).conj().imag


def zero(t: Tensor) -> Tensor:
    """Zeros without memory, as forward-mode autograd makes them."""
    return torch._efficientzerotensor(t.shape)


@pytest.mark.parametrize("lazy", [negative, zero])
def test_lazy_tensors_mean_what_they_say(backend: str, lazy: Any) -> None:
    def check(function: Any, *arguments: Any) -> None:
        for i, argument in enumerate(arguments):
            if not isinstance(argument, Tensor) or argument.dtype != torch.float32:
                continue
            changed = lazy(argument)
            if lazy is zero and argument is table:
                continue  # no log-probability
            results = [
                function(*arguments[:i], t, *arguments[i + 1 :], backend=backend)
                for t in (changed, changed.clone().resolve_neg())
            ]
            torch.testing.assert_close(*results)

    arguments = step()
    table = arguments["table_rows"]
    check(trajectory_log_prob, *arguments.values())
    check(denoise_step, *arguments.values())
    rewards, prompt_of = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    check(pairwise_comparison, rewards, torch.randn(2, 4, 2), prompt_of, torch.ones(2), "difference")
    check(group_win_rate, rewards, prompt_of)
    check(attention, *torch.randn(3, 2, 2, 5, 8))
