"""Runs the tests of the ops on the CUDA kernels without a GPU: their source, compiled for the CPU.

``csrc/cuda/emulator/emulator.h`` says what that shows and what it cannot. Threads in reverse order must give
the same results: they do not if a barrier is missing.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = (
    "fuzz_arguments.py", "test_attention.py", "test_pairwise_comparison.py", "test_trajectory_log_prob.py",
)  # fmt: skip


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension with emulated CUDA kernels."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the emulator runs on Linux and x86-64 only")
    if importlib.util.find_spec("pybind11") is None or shutil.which("cmake") is None:
        pytest.skip("building needs cmake and pybind11")
    import pybind11

    build = tmp_path_factory.mktemp("emulated")
    configure = [
        "cmake", str(ROOT), "-DCXRL_CUDA=EMULATE", "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", ".", "-j", str(os.cpu_count())]):
        run = subprocess.run(command, cwd=build, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    (module,) = build.glob("_C*.so")
    return module


@pytest.mark.slow
@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_ops_on_emulated_kernels(emulated: Path, order: str, tmp_path: Path) -> None:
    files = [str(Path(__file__).with_name(name)) for name in FILES]
    options = ["-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inner")]
    command = [sys.executable, "-m", "pytest", *options, "-k", "[cuda", *files]
    environment = {
        **os.environ,
        "PYTEST_ADDOPTS": "",  # a --basetemp of the outer run would be emptied by the inner one
        "CXRL_TEST_EXTENSION": str(emulated),
        "CXRL_EMULATOR_ORDER": order,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert "skipped" not in run.stdout
