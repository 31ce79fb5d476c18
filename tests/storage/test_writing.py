"""The one way to write: the old file or the new, modes, devices, links, and errors that name the file."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cxrl.errors import CxrlError
from cxrl.storage import layout
from cxrl.storage.writing import (
    check_folder_writable,
    check_new_folder,
    check_writable,
    replacing,
    write_bytes,
    write_json,
    write_tensors,
    write_text,
)


@pytest.fixture(params=[0o022, 0o077, 0o002])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_every_kind_of_content(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "text", "ü\n")
    write_json(tmp_path / "json", {"a": [1, 2.5]})
    write_bytes(tmp_path / "bytes", b"\0\1")
    shared = torch.arange(6.0)
    write_tensors(tmp_path / "tensors", {"x": shared[:3], "y": shared, "t": shared.view(2, 3).T})
    assert (tmp_path / "a" / "b" / "text").read_text(encoding="utf-8") == "ü\n"
    assert (tmp_path / "json").read_text() == '{\n  "a": [\n    1,\n    2.5\n  ]\n}\n'
    assert (tmp_path / "bytes").read_bytes() == b"\0\1"
    assert torch.equal(load_file(tmp_path / "tensors")["t"], shared.view(2, 3).T)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "json", {"a": float("nan")})
    assert names(tmp_path) == {"a", "json", "bytes", "tensors"}


def test_modes_follow_the_umask_or_are_the_owners_alone(tmp_path: Path, mask: int) -> None:
    write_text(tmp_path / "open" / "file", "")
    write_tensors(tmp_path / "open" / "tensors", {"x": torch.zeros(1)})
    write_text(tmp_path / "closed" / "file", "", private=True)
    write_tensors(tmp_path / "closed" / "tensors", {"x": torch.zeros(1)}, private=True)
    assert {mode(p) for p in (tmp_path / "open").iterdir()} == {0o666 & ~mask}
    assert {mode(p) for p in (tmp_path / "closed").iterdir()} == {0o600}
    assert mode(tmp_path / "closed") == 0o700
    assert mode(tmp_path / "open") == 0o777 & ~mask
    (tmp_path / "open" / "file").chmod(0o640)
    write_text(tmp_path / "open" / "file", "again", private=True)
    assert mode(tmp_path / "open" / "file") == 0o600


def write_half(path: Path, error: BaseException, hint: str = "") -> None:
    with replacing(path, hint=hint) as partial:
        partial.write_text("half")
        raise error


def test_what_fails_on_the_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    for error in (KeyboardInterrupt(), ValueError("no"), OSError(errno.ENOSPC, "No space left on device")):
        expected = CxrlError if isinstance(error, OSError) else type(error)
        with pytest.raises(expected):
            write_half(path, error)
        assert path.read_text() == "old"
        assert names(tmp_path) == {"file"}
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(CxrlError, match=rf"^cannot write {path}: No space left on device; make room$"):
        write_half(path, full, hint="make room")


def test_a_kill_leaves_the_old_file_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    found = []
    for nth in range(12):
        path, calls = tmp_path / str(nth) / "file", 0
        write_text(path, "old")

        def die(*args: object, original: object, nth: int = nth, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls > nth:
                raise Killed
            return original(*args, **kwargs)  # type: ignore[operator]

        with monkeypatch.context() as patch:
            for name in ("open", "fsync", "replace", "unlink", "chmod"):
                original = getattr(os, name)
                patch.setattr(os, name, lambda *a, o=original, **k: die(*a, original=o, **k))
            with contextlib.suppress(Killed):
                write_text(path, "new")
        found.append(path.read_text())
    assert found == sorted(found, reverse=True), "old until some call, new from there on"
    assert {"old", "new"} == set(found)


def test_a_device_is_written_to_and_stays_one(tmp_path: Path, full_device: Path) -> None:
    before = full_device.stat().st_rdev
    link = tmp_path / "link"
    link.symlink_to(full_device)
    for path in (full_device, link):
        with pytest.raises(CxrlError, match=rf"cannot write {path}: No space left on device"):
            write_text(path, "x")
        assert stat.S_ISCHR(full_device.stat().st_mode)
        assert full_device.stat().st_rdev == before
    assert link.is_symlink()
    assert not [n for n in os.listdir(full_device.parent) if "cxrl" in n]


def test_a_fifo_gets_the_content(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "fifo").read_text()))
    reader.start()
    write_text(tmp_path / "fifo", "through")
    reader.join(timeout=10)
    assert read == ["through"]
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def test_a_link_keeps_pointing_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("old")
    (tmp_path / "link").symlink_to("there/file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_text() == "new"
    assert names(tmp_path / "there") == {"file"}


@pytest.mark.parametrize("name", ["folder", "file/below", "folder/"])
def test_what_cannot_be_a_file_is_told_before_and_at_the_write(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    path = tmp_path / name
    with pytest.raises(CxrlError, match=rf"^--out: cannot write {path}.*choose another place"):
        check_writable(path, "--out")
    with pytest.raises(CxrlError, match=f"cannot write {path}"):
        write_text(path, "x")
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == {"folder", "file"}


def test_a_place_that_can_be_written_stays_untouched_by_the_check(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "new", tmp_path / "a" / "b" / "new", Path("/dev/null")):
        check_writable(path, "--out")
    check_folder_writable(tmp_path / "x" / "y", "--out")
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == {"file"}


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CxrlError, match=r"--out: cannot write .*new: read-only file system"):
        check_writable(tmp_path / "new", "--out")


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    for name in ("n" * 255, "ß" * 127):
        write_text(tmp_path / name, "x")
        assert {p.name for p in tmp_path.iterdir()} == {name}
        assert layout.temporary_writer(layout.temporary_name(name, 77)) == 77
        (tmp_path / name).unlink()


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "adapter/ace.safetensors", "samples/new"])
def test_no_output_goes_over_a_file_of_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".cxrl-run.json").write_text("{}")
    (tmp_path / "link").symlink_to("run")
    for folder in ("run", "link"):
        with pytest.raises(CxrlError, match=r"--out: .* is a file of the run in"):
            check_writable(tmp_path / folder / name, "--out")
        with pytest.raises(CxrlError, match=r"--out: .* is a file of the run in"):
            check_folder_writable(tmp_path / folder / name, "--out")
    for folder in ("run", "link"):
        with pytest.raises(CxrlError, match=r"--out: .* is the folder of a run"):
            check_folder_writable(tmp_path / folder, "--out")
        with pytest.raises(CxrlError, match=r"--out: .* is there and no empty folder"):
            check_new_folder(tmp_path / folder, "--out")
    check_folder_writable(tmp_path / "run", "--run-dir", of_run=True)
    check_folder_writable(tmp_path / "run" / "images", "--out")
    check_new_folder(tmp_path / "run" / "images", "--out")
    (tmp_path / "run" / "empty").mkdir()
    check_new_folder(tmp_path / "run" / "empty", "--out")
    check_writable(tmp_path / "run" / "notes.json", "--out")
    check_writable(tmp_path / "other.json", "--out")
