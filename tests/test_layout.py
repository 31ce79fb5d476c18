"""What the layout promises: one op name, one file everywhere; the import of the package costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import cxrl

ROOT = Path(__file__).parents[1]
OPS = ("attention", "pairwise_comparison", "trajectory_log_prob")
TESTS_OF_BACKENDS = (
    {"triton", "cuda", "cuda_emulation", "kernel_resources"} | {f"triton_{op}" for op in OPS}
)  # fmt: skip


def op_files(folder: str, pattern: str, prefix: str = "") -> set[str]:
    return {path.stem.removeprefix(prefix) for path in (ROOT / folder).glob(pattern)}


@pytest.mark.parametrize(
    ("folder", "pattern", "prefix", "others"),
    [
        ("cxrl/ops", "[a-z]*.py", "", {"tune"}),
        ("csrc/cpu", "*.cpp", "", {"dispatch", "kernels"}),
        ("tests/ops", "test_*.py", "test_", {"compiled", "dispatch", "tune", *TESTS_OF_BACKENDS}),
        ("benchmarks", "test_*.py", "test_", {"phantom", "rollout", "train_step"}),
    ],
)
def test_one_file_for_each_op(folder: str, pattern: str, prefix: str, others: set[str]) -> None:
    names = op_files(folder, pattern, prefix)
    assert set(OPS) <= names
    assert names - set(OPS) <= others


@pytest.mark.parametrize(
    ("folder", "pattern"), [("kernels/cxrl_kernels", "[a-z]*.py"), ("csrc/cuda", "*.cu")]
)
def test_gpu_files_are_named_after_their_op(folder: str, pattern: str) -> None:
    assert op_files(folder, pattern) == set(OPS)


def test_kernels_is_no_package() -> None:
    # A top-level package `kernels` would shadow the library of that name for everything run from here.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    program = (
        "import importlib.util as u, sys\n"
        "spec = u.find_spec('kernels')\n"
        "assert spec is None or spec.origin is not None or spec.loader is None, spec\n"
        "import cxrl_kernels, pathlib\n"
        "assert pathlib.Path(cxrl_kernels.__file__).parent.name == 'cxrl_kernels'\n"
        "assert 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_import_is_light() -> None:
    program = "import cxrl, sys; assert 'torch' not in sys.modules, 'importing cxrl imports torch'"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_public_surface() -> None:
    assert set(cxrl.__all__) <= set(dir(cxrl))
    for name in cxrl.__all__:
        assert getattr(cxrl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'; public names: Config"):
        cxrl.trian  # noqa: B018
