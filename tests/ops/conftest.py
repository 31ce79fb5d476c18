"""Every backend that runs here, with every instruction set of the C++ one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
import torch

from cxrl.ops import _dispatch, unavailable_reason


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


@pytest.fixture(params=CPU_BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of a backend that runs on the CPU, set up; skips what this machine lacks."""
    name, _, isa = request.param.partition(":")
    if name == "reference":
        yield name
        return
    reason = unavailable_reason("trajectory_log_prob", name)
    if reason is not None:
        pytest.skip(reason)
    from cxrl import _C

    _C.set_isa(isa)
    yield name
    _C.set_isa("auto")


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
