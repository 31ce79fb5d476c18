"""Checkpoints are complete or absent, and a damaged one is named."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cxrl.errors import CxrlError
from cxrl.storage.checkpoint import (
    Checkpoint,
    checkpoints,
    load_checkpoint,
    remove_partial,
    save_checkpoint,
    strays,
)
from cxrl.storage.layout import CHECKPOINT_FILES, WEIGHTS_FILE


def content(value: float, size: int = 4) -> Checkpoint:
    tensors = {name: {} for name in CHECKPOINT_FILES if name.endswith(".safetensors")}
    tensors[WEIGHTS_FILE] = {"a": torch.full((size,), value)}
    return Checkpoint(tensors, {"epoch": int(value)}, {"base": "x"})


def save(folder: Path, step: int, keep: int = 9, **settings: Any) -> Path:
    return save_checkpoint(folder, content(step, **settings), step=step, keep=keep)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path, 12)
    assert path.name == "step-000012"
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.tensors["weights.safetensors"]["a"], torch.full((4,), 12.0))
    assert loaded.tensors["bank.safetensors"] == {}
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


EVENTS = ("open", "mkdir", "fsync", "replace", "rename", "unlink", "rmdir", "chmod")


class Killed(BaseException):
    """The process is gone: nothing cleans up after it."""


@contextmanager
def killed_at(nth: int) -> Iterator[list[str]]:
    """Inside, the nth call that changes the disk does not happen, nor any after it. Gives the calls."""
    calls: list[str] = []

    def wrap(name: str, original: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if len(calls) >= nth:
                raise Killed
            calls.append(name)
            return original(*args, **kwargs)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for name in EVENTS:
            patch.setattr(os, name, wrap(name, getattr(os, name)))
        yield calls


def number_of_events(folder: Path) -> int:
    with killed_at(10_000) as calls:
        save(folder, 3, keep=2)
    assert {"open", "mkdir", "fsync", "replace", "rename", "unlink", "rmdir"} <= set(calls)
    return len(calls)


def test_a_kill_at_any_event_leaves_complete_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies before the nth change of the disk: what is there afterwards can be loaded."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # an event like others, but slow
    before = tmp_path / "before"
    save(before, 1)
    save(before, 2)
    last_is_new = []
    for nth in range(number_of_events(shutil.copytree(before, tmp_path / "whole"))):
        folder = shutil.copytree(before, tmp_path / str(nth))
        with killed_at(nth), pytest.raises(Killed):
            save(folder, 3, keep=2)
        left = checkpoints(folder)
        for path in left:
            load_checkpoint(path)
        assert [p.name for p in left[-2:]] in (
            ["step-000001", "step-000002"],
            ["step-000002", "step-000003"],
        ), nth
        last_is_new.append(left[-1].name == "step-000003")
        remove_partial(folder)
        assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
        save(folder, 3, keep=2)  # what was left is in nobody's way
        assert [p.name for p in checkpoints(folder)] == ["step-000002", "step-000003"]
    assert last_is_new == sorted(last_is_new)
    assert {True, False} == set(last_is_new)


def test_what_is_no_checkpoint_is_passed_over_and_kept(tmp_path: Path) -> None:
    save(tmp_path, 2)
    names = ("step-000002-keep", "step-2", "step-²", "step-", "step-00000x", "step-000007.bak", "notes")
    for name in names:
        shutil.copytree(tmp_path / "step-000002", tmp_path / name)
    (tmp_path / "step-000099").write_text("a file")
    (tmp_path / "step-000097").mkdir()
    (tmp_path / "step-000098").symlink_to(tmp_path / "step-000002")
    assert strays(tmp_path) == sorted([*names, "step-000099", "step-000098", "step-000097"])
    save(tmp_path, 4, keep=1)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000004"]
    for name in names:
        load_checkpoint(tmp_path / name)


def test_a_checkpoint_with_files_of_others_is_put_aside_and_not_deleted(tmp_path: Path) -> None:
    (save(tmp_path, 2) / "notes.txt").write_text("mine")
    save(tmp_path, 2)
    (tmp_path / "step-000002" / "more.txt").write_text("mine too")
    save(tmp_path, 4, keep=1)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000004"]
    assert (tmp_path / "step-000002-kept-1" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "step-000002-kept-2" / "more.txt").read_text() == "mine too"
    load_checkpoint(tmp_path / "step-000002-kept-1")


@pytest.mark.parametrize(
    "damaged",
    [
        "[]",
        "{}",
        '{"weights.safetensors": 3}',
        '{"weights.safetensors": {"size": 3}}',
        '{"../weights.safetensors": {"size": 3, "sha256": ""}}',
        "[" * 5000,
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, damaged: str) -> None:
    path = save(tmp_path, 1)
    (path / "manifest.json").write_text(damaged)
    with pytest.raises(CxrlError, match=rf"cannot read {path}.*delete {path}"):
        load_checkpoint(path)


def test_a_full_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = save(tmp_path, 1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
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


def test_files_of_others_stay_in_what_a_killed_process_left(tmp_path: Path) -> None:
    for name in (".partial-step-000002", ".partial-old-step-000001"):
        shutil.copytree(save(tmp_path / "other", 3), tmp_path / name)
        (tmp_path / name / "notes.txt").write_text("mine")
    remove_partial(tmp_path)
    left = {
        str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if "other" not in p.parts and p.is_file()
    }
    assert left == {".partial-step-000002/notes.txt", ".partial-old-step-000001/notes.txt"}
