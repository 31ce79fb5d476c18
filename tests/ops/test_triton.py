"""Runs the tests of the Triton kernels in Triton's interpreter, in a process of their own.

Whether kernels are compiled or interpreted is settled when they are first imported, for the whole process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cxrl.ops import unavailable_reason

OPS = ("attention", "pairwise_comparison", "trajectory_log_prob")
ALL_OPS = (*OPS, "denoise_step", "group_win_rate")


@pytest.mark.parametrize("op", OPS)
def test_in_the_interpreter(op: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    file = Path(__file__).with_name(f"test_triton_{op}.py")
    options = ["-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inner")]
    command = [sys.executable, "-m", "pytest", *options, str(file)]
    # A --basetemp of the outer run would be emptied by the inner one.
    environment = {**os.environ, "PYTEST_ADDOPTS": "", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=file.parents[2], check=False
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


@pytest.mark.parametrize("op", ALL_OPS)
def test_needs_a_cuda_device(op: str) -> None:
    pytest.importorskip("triton")
    reason = unavailable_reason(op, "triton", "cpu")
    assert reason is not None
    assert reason.startswith("it needs CUDA tensors, these are on cpu")


def test_what_it_cannot_do_is_said() -> None:
    pytest.importorskip("triton")
    for need in ("float64", "gradients of the latents or the table"):
        reason = unavailable_reason("trajectory_log_prob", "triton", "cuda", (need,))
        assert reason == f"it does not support {need}"


def test_without_triton_the_reason_is_given() -> None:
    # The package imports; the dispatcher says what is missing.
    program = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import cxrl_kernels\n"
        "from cxrl.ops import unavailable_reason\n"
        f"for op in {ALL_OPS!r}:\n"
        "    reason = unavailable_reason(op, 'triton', 'cuda')\n"
        "    assert 'cannot be imported' in reason and 'triton' in reason, reason\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
