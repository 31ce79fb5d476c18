"""Every backend that runs here, with every instruction set of the C++ one.

``CXRL_TEST_EXTENSION=/path/to/_C….so`` tests that build of the extension in place of the installed one: one
with sanitizers, or with the CUDA kernels emulated on the CPU (``csrc/cuda/emulator``).
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator

import pytest
import torch

import cxrl


def _use_extension(path: str) -> None:
    """Make the module at ``path`` the ``cxrl._C`` of this process."""
    loader = importlib.machinery.ExtensionFileLoader("cxrl._C", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("cxrl._C", loader))
    loader.exec_module(module)
    sys.modules["cxrl._C"] = module
    vars(cxrl)["_C"] = module


if os.environ.get("CXRL_TEST_EXTENSION"):
    _use_extension(os.environ["CXRL_TEST_EXTENSION"])

from cxrl.ops import _dispatch, unavailable_reason  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Triton's kernels need a GPU or, in a process of their own, its interpreter: see test_triton.py.
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_triton_*.py"]


def _instruction_sets() -> list[str]:
    """Those of the C++ backend that this processor runs; the best one where the extension is not built."""
    if unavailable_reason("trajectory_log_prob", "cpp") is not None:
        return ["auto"]
    from cxrl import _C

    supported = []
    for isa in ("baseline", "avx2", "avx512"):
        with contextlib.suppress(ValueError):
            _C.set_isa(isa)
            supported.append(isa)
    _C.set_isa("auto")
    return supported


CPU_BACKENDS = ("reference", *(f"cpp:{isa}" for isa in _instruction_sets()))
EMULATED = ("cuda",) if unavailable_reason("trajectory_log_prob", "cuda", "cpu") is None else ()
GPU_BACKENDS = ("cuda", "triton") if torch.cuda.is_available() else ()
# Not run to run: what PyTorch's own kernels lack, or what needs this environment before CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def _fresh_choices(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Neither the environment nor a tuned table of this machine decides what is tested."""
    monkeypatch.delenv(_dispatch.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "no-cache"))
    _dispatch.forget_choices()
    torch.manual_seed(1234)
    yield
    _dispatch.forget_choices()


@pytest.fixture
def cpp() -> str:
    """The C++ backend with the best instruction set; skips where the extension is not built."""
    reason = unavailable_reason("trajectory_log_prob", "cpp")
    if reason is not None:
        pytest.skip(reason)
    return "cpp"


@contextlib.contextmanager
def _running(param: str) -> Iterator[str]:
    """The backend set up: its instruction set, or the GPU as the device of all new tensors."""
    name, _, isa = param.partition(":")
    device = "cuda" if name in GPU_BACKENDS else "cpu"
    if name != "reference":
        reason = unavailable_reason("trajectory_log_prob", name, device)
        if reason is not None:
            pytest.skip(reason)
    if name == "cpp":
        from cxrl import _C

        _C.set_isa(isa)
        yield name
        _C.set_isa("auto")
    elif device == "cuda":
        with torch.device("cuda"):
            yield name
    else:
        yield name


@pytest.fixture(
    params=(*CPU_BACKENDS, *EMULATED, *(pytest.param(b, marks=pytest.mark.gpu) for b in GPU_BACKENDS))
)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of a backend that runs here, set up; on a GPU new tensors are made there."""
    with _running(request.param) as name:
        yield name


@pytest.fixture(params=CPU_BACKENDS)
def cpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """As ``backend``, of those that look at values: on a GPU that would make the host wait."""
    with _running(request.param) as name:
        yield name


@pytest.fixture
def triton_device() -> str:
    """Where the Triton kernels run in this process."""
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Every new tensor starts as nan, so an output that a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
