"""Checkpoints are complete or absent, and a damaged one is named."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import cxrl.storage.checkpoint as module
from cxrl.errors import CxrlError
from cxrl.storage.checkpoint import (
    Checkpoint,
    checkpoints,
    load_checkpoint,
    load_optimizer,
    optimizer_tensors,
    remove_partial,
    save_checkpoint,
)


def content(value: float, size: int = 4) -> Checkpoint:
    tensors = {"weights.safetensors": {"a": torch.full((size,), value)}, "empty.safetensors": {}}
    return Checkpoint(tensors, {"epoch": int(value)}, {"base": "x"})


def save(folder: Path, step: int, keep: int = 9, **settings: Any) -> Path:
    return save_checkpoint(folder, content(step, **settings), step=step, keep=keep)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path, 12)
    assert path.name == "step-000012"
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.tensors["weights.safetensors"]["a"], torch.full((4,), 12.0))
    assert loaded.tensors["empty.safetensors"] == {}
    assert (loaded.state, loaded.policy) == ({"epoch": 12}, {"base": "x"})
    kinds = {p.suffix for p in path.iterdir()}
    assert kinds == {".json", ".safetensors"}


def test_old_ones_are_deleted_in_order_of_their_steps(tmp_path: Path) -> None:
    for step in (2, 900_000, 1_000_000, 30):
        save(tmp_path, step)
    save(tmp_path, 2_000_000, keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-1000000", "step-2000000"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "manifest", "json"])
def test_damage_is_named_with_what_to_do(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    victim = path / {"manifest": "manifest.json", "json": "state.json"}.get(damage, "weights.safetensors")
    if damage == "delete":
        victim.unlink()
    elif damage == "flip":
        data = bytearray(victim.read_bytes())
        data[-1] ^= 1
        victim.write_bytes(data)
    else:
        os.truncate(victim, victim.stat().st_size // 2)
    with pytest.raises(CxrlError) as error:
        load_checkpoint(path)
    assert str(victim) in str(error.value)
    assert f"delete {path} and use --resume to go on from step-000001" in str(error.value)
    shutil.rmtree(tmp_path / "step-000001")
    with pytest.raises(CxrlError, match="no older one"):
        load_checkpoint(path)


CALLS = ["save_file", "sync", "os.rename", "shutil.rmtree"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("nth", range(6))
def test_an_exception_at_any_call_leaves_complete_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    """The process dies at the nth write, sync, rename or delete: what is there afterwards can be loaded."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    owner, _, name = f"module.{call}".rpartition(".")
    target = {"module": module, "module.os": os, "module.shutil": shutil}[owner]
    original, count = getattr(target, name), 0

    class Killed(BaseException):
        pass

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == nth + 1:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, wrapper)
        try:
            save(tmp_path, 3, keep=2)
            died = False
        except Killed:
            died = True
    remove_partial(tmp_path)
    left = checkpoints(tmp_path)
    assert len(left) >= 2
    for path in left:
        load_checkpoint(path)
    assert left[-1].name in (("step-000002", "step-000003") if died else ("step-000003",))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_full_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = save(tmp_path, 1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(CxrlError, match="No space left on device") as error:
            save(tmp_path, 2, keep=1)
    assert f"{old} is intact" in str(error.value)
    load_checkpoint(old)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_a_write_that_the_system_cuts_leaves_the_old_one(tmp_path: Path) -> None:
    """A real limit of the file size, met in the middle of a safetensors file."""
    old = save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CxrlError, match="cannot write checkpoint"):
            save(tmp_path, 2, keep=1, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    load_checkpoint(old)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_optimizer_state_comes_back(tmp_path: Path) -> None:
    def make() -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
        params = {n: torch.nn.Parameter(torch.ones(3)) for n in "ab"}
        return params, torch.optim.AdamW([{"params": [p]} for p in params.values()], lr=0.1, fused=True)

    def step(params: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, value: float) -> None:
        for k, p in enumerate(params.values()):
            p.grad = torch.full((3,), value + k)
        optimizer.step()

    params, optimizer = make()
    step(params, optimizer, 1.0)
    saved = {k: v.clone() for k, v in optimizer_tensors(optimizer, params).items()}
    assert set(saved) == {f"{n}/{f}" for n in "ab" for f in ("step", "exp_avg", "exp_avg_sq")}
    others, other = make()
    with torch.no_grad():
        for n, p in others.items():
            p.copy_(params[n])
    load_optimizer(other, others, saved, "optimizer.safetensors")
    step(params, optimizer, -0.3)
    step(others, other, -0.3)
    assert all(torch.equal(params[n], others[n]) for n in params)
    with pytest.raises(CxrlError, match=r"optimizer.safetensors.*b"):
        load_optimizer(other, {"a": others["a"]}, saved, "optimizer.safetensors")
    fresh, untouched = make()
    load_optimizer(untouched, fresh, {}, "optimizer.safetensors")  # before the first step there is no state
    assert json.dumps(list(untouched.state)) == "[]"
