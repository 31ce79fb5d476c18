from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cxrl.ops import _cpp, _dispatch, trajectory_log_prob, unavailable_reason


def call(backend: str | None = None) -> torch.Tensor:
    x = torch.zeros(1, 4, 2, 2)
    return trajectory_log_prob(x, None, 1.0, x, x, torch.ones(1, 3), backend=backend)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="unknown backend 'cp'; choose one of auto, reference"):
        call("cp")


def test_unknown_backend_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXRL_BACKEND", "torch")
    _dispatch.forget_choices()
    with pytest.raises(ValueError, match="CXRL_BACKEND='torch'; choose one of"):
        call()


def test_environment_forces_a_backend(monkeypatch: pytest.MonkeyPatch, cpp: str) -> None:
    for name in ("reference", "cpp"):
        monkeypatch.setenv("CXRL_BACKEND", name)
        _dispatch.forget_choices()
        assert _dispatch.select("trajectory_log_prob", None, "cpu") == name
    # The argument is stronger, and a backend of another op's leaves this one alone.
    assert _dispatch.select("trajectory_log_prob", "reference", "cpu") == "reference"
    monkeypatch.setenv("CXRL_BACKEND", "sdpa")
    _dispatch.forget_choices()
    assert _dispatch.select("trajectory_log_prob", None, "cpu") == "cpp"
    assert _dispatch.select("attention", None, "cpu") == "sdpa"


def test_a_backend_of_another_op() -> None:
    with pytest.raises(ValueError, match="trajectory_log_prob has no such backend; it has reference, cpp"):
        call("sdpa")


def test_gpu_backends_say_what_they_need() -> None:
    with pytest.raises(ValueError, match="backend 'triton' cannot run: "):
        call("triton")
    with pytest.raises(ValueError, match="backend 'cuda' cannot run: "):
        call("cuda")
    assert "CUDA" in str(unavailable_reason("attention", "xformers"))


def test_cpp_says_what_it_needs(cpp: str) -> None:
    assert (
        unavailable_reason("trajectory_log_prob", "cpp", "cuda") == "it needs CPU tensors, these are on cuda"
    )


def test_missing_extension_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_cpp, "_IMPORT_ERROR", "libgomp.so.1: cannot open shared object file")
    _dispatch.forget_choices()
    with pytest.raises(ValueError, match=r"libgomp.so.1: cannot open.*pip install -e"):
        call("cpp")
    with caplog.at_level(logging.WARNING, logger="cxrl"):
        for _ in range(3):
            call()
    assert len(caplog.records) == 1  # auto falls back, and says so once
    assert "trajectory_log_prob runs on backend 'reference' (cpp: cxrl._C cannot be imported" in caplog.text


def test_every_op_runs_without_the_extension() -> None:
    program = """
import sys, logging
logging.disable(logging.WARNING)
sys.modules["cxrl._C"] = None
import torch, cxrl.ops as ops
x = torch.zeros(1, 4, 2, 2)
ops.trajectory_log_prob(x, None, 1.0, x, x, torch.ones(1, 3))
ops.denoise_step(x, None, 1.0, x, x, torch.ones(1, 3))
r, zero = torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)
ops.pairwise_comparison(r, torch.zeros(1, 2, 1), zero, torch.ones(1), "win")
ops.group_win_rate(r, zero)
ops.attention(x, x, x)
assert "cxrl._C" in str(ops.unavailable_reason("trajectory_log_prob", "cpp"))
"""
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "CXRL_BACKEND": ""})


def test_every_op_runs_for_a_user_without_a_home() -> None:
    # As in a container: no HOME, and a user whom the system does not know.
    program = """
import pwd
def unknown(user):
    raise KeyError(user)
pwd.getpwuid = unknown
import pathlib, torch, cxrl.ops as ops
from cxrl.ops import tune
try:
    raise SystemExit(f"there is a home: {pathlib.Path.home()}")
except RuntimeError:
    pass
x = torch.zeros(1, 4, 2, 2)
ops.trajectory_log_prob(x, None, 1.0, x, x, torch.ones(1, 3))
ops.denoise_step(x, None, 1.0, x, x, torch.ones(1, 3))
r, zero = torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)
ops.pairwise_comparison(r, torch.zeros(1, 2, 1), zero, torch.ones(1), "win")
ops.group_win_rate(r, zero)
ops.attention(x, x, x)
assert tune.main([]) == 2
"""
    homes = ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME")
    environment = {name: value for name, value in os.environ.items() if name not in homes}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == "error: this user has no home for the table; set XDG_CACHE_HOME, or --dry-run\n"


def test_a_table_that_may_not_be_read_is_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, cpp: str
) -> None:
    # A home of somebody else's: what pathlib says of it depends on who asks.
    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Path, "read_text", forbidden)
    monkeypatch.setattr(_dispatch, "device_key", lambda device: "here")
    with caplog.at_level(logging.WARNING, logger="cxrl"):
        call()
    assert "ops-here.json is ignored (PermissionError" in caplog.text


def test_instruction_sets(cpp: str) -> None:
    from cxrl import _C

    with pytest.raises(ValueError, match="instruction set 'mmx' is not built or not supported"):
        _C.set_isa("mmx")
    assert _C.isa() in ("baseline", "avx2", "avx512")
