"""What the CUDA backend says where it cannot run. Its kernels: the tests of the ops, test_cuda_emulation."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from cxrl.ops import _cpp, _cuda, attention, unavailable_reason

OPS = ("attention", "trajectory_log_prob", "denoise_step", "pairwise_comparison", "group_win_rate")


def extension(*, problem: str | None = None, emulated: bool = False) -> Any:
    """A stand-in for cxrl._C: built without CUDA, or with it and this problem on the device."""
    if problem is None and not emulated:
        return types.SimpleNamespace(has_cuda=False)
    cuda = types.SimpleNamespace(emulated=emulated, problem=lambda device: problem)
    return types.SimpleNamespace(has_cuda=True, cuda=cuda)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that this machine need not have."""
    monkeypatch.setattr(_cpp, "_IMPORT_ERROR", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")


@pytest.mark.parametrize("op", OPS)
def test_without_the_extension(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    monkeypatch.setattr(_cpp, "_IMPORT_ERROR", "no such file")
    reason = str(unavailable_reason(op, "cuda", "cuda"))
    assert reason.startswith("cxrl._C cannot be imported (no such file); build it with `pip install -e .")


def test_without_cuda_in_the_extension(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpp, "_C", extension(), raising=False)
    reason = str(_cuda.unavailable("attention", "cuda"))
    assert reason.startswith("cxrl._C was built without CUDA; put nvcc on PATH")


def test_on_the_cpu(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpp, "_C", extension(problem=""), raising=False)
    assert _cuda.unavailable("attention", "cpu") == "it needs CUDA tensors, these are on cpu"
    assert _cuda.unavailable("attention", "cuda") is None


def test_without_a_gpu(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpp, "_C", extension(problem=""), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _cuda.unavailable("attention", "cuda") == "torch finds no CUDA device"


def test_architecture_that_was_not_compiled(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpp, "_C", extension(problem="no kernel image is available"), raising=False)
    reason = str(_cuda.unavailable("attention", "cuda"))
    assert "no kernels that run on a card (no kernel image is available)" in reason
    assert "CMAKE_CUDA_ARCHITECTURES=75" in reason


def test_rocm(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpp, "_C", extension(problem=""), raising=False)
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert "ROCm" in str(_cuda.unavailable("attention", "cuda"))


def test_emulated_kernels_take_cpu_tensors_only(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpp, "_C", extension(emulated=True), raising=False)
    assert _cuda.unavailable("attention", "cpu") is None
    assert "emulated on the CPU" in str(_cuda.unavailable("attention", "cuda"))


def test_wide_heads_are_refused() -> None:
    q = torch.zeros(1, 1, 2, 168)
    with pytest.raises(ValueError, match="does not support a head dimension above 160"):
        attention(q, q, q, backend="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_another_stream_and_a_graph() -> None:
    from cxrl.ops import trajectory_log_prob

    if (reason := unavailable_reason("trajectory_log_prob", "cuda", "cuda")) is not None:
        pytest.skip(reason)
    args = [torch.randn(3, 4, 48, 48, device="cuda") for _ in range(4)]
    rows = torch.rand(3, 3, device="cuda") + 0.1

    def run() -> torch.Tensor:
        return trajectory_log_prob(args[0], args[1], 2.0, args[2], args[3], rows, backend="cuda")

    expected = run()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        on_stream = run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, expected)
    assert torch.equal(on_stream, expected)
