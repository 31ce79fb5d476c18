"""The one way to write a file: beside its place, synced, renamed there. A kill leaves the old one or the new.

What is no regular file (a device, a FIFO, a terminal) is written to and never replaced; a symbolic link keeps
pointing where it points. A new file follows the umask, or is its owner's alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrl.errors import CxrlError
from cxrl.storage.layout import FILES, FOLDERS, MARKER, temporary_name
from cxrl.storage.privacy import current_umask, owner_only

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def replacing(path: Path, *, private: bool = False, hint: str = "") -> Iterator[Path]:
    """A path to write to, whose content takes the place of ``path`` when the block ends without an error.

    For what writes by itself (safetensors, PIL, pydicom); else :func:`write_bytes` and its kin. Folders above
    that are missing are made.

    Args:
        path: The file.
        private: For its owner alone, whatever the umask; so are the folders that are made.
        hint: What to do when it cannot be written, for the message.

    Raises:
        CxrlError: It cannot be written; the message names ``path``, and nothing of it is left.
    """
    partial: Path | None = None
    try:
        with owner_only(private):
            _make_folder(path.parent)
            special = _is_special(path)
            target = path if special else Path(os.path.realpath(path))
            partial = target.with_name(temporary_name(target.name, os.getpid()))
            if special:  # nothing is put beside a device: its folder is the system's
                partial = _scratch_file(path.name)
            partial.unlink(missing_ok=True)  # one that a kill left, under another umask
            yield partial
            if special:
                with path.open("wb") as file:
                    file.write(partial.read_bytes())
                partial.unlink()
                return
            # Libraries choose modes of their own, safetensors 0600. A file that is there keeps its mode.
            mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~current_umask()
            partial.chmod(0o600 if private else mode)
            sync(partial)
            os.replace(partial, target)
            sync(target.parent)
    except OSError as error:
        raise cannot_write(path, error, hint) from error
    finally:
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path, *, hint: str = "") -> Iterator[Path]:
    """A folder to fill, which takes the place of ``path`` when the block ends without an error.

    Args:
        path: Not there, or an empty folder.
        hint: As in :func:`replacing`.

    Raises:
        CxrlError: It cannot be written or is not empty; the message names ``path``; nothing of it is left.
    """
    path = Path(os.path.abspath(path))
    partial = path.with_name(temporary_name(path.name, os.getpid()))
    try:
        _make_folder(path.parent)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():  # libraries choose modes of their own
                file.chmod(0o666 & ~current_umask())
                sync(file)
        os.rename(partial, path)
        sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error, hint) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_bytes(path: Path, data: bytes, *, private: bool = False, hint: str = "") -> None:
    """Write a file whole or not at all. Raises CxrlError that names it."""
    with replacing(path, private=private, hint=hint) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str, *, private: bool = False, hint: str = "") -> None:
    """As :func:`write_bytes`, in UTF-8."""
    write_bytes(path, text.encode("utf-8"), private=private, hint=hint)


def write_json(path: Path, data: Any, *, private: bool = False, hint: str = "") -> None:
    """As :func:`write_bytes`, indented. Raises ValueError where a number is not finite: JSON has none."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n", private=private, hint=hint)


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    metadata: dict[str, str] | None = None,
    private: bool = False,
    hint: str = "",
) -> None:
    """As :func:`write_bytes`, a safetensors file. Each tensor is copied: some may share memory."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path, private=private, hint=hint) as partial:
        try:
            copies = {
                k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()
            }
            save_file(copies, partial, metadata)
        except SafetensorError as error:  # a type of its own, also where the disk is full
            raise OSError(str(error)) from error


def check_writable(path: Path, option: str) -> None:
    """Raise CxrlError, naming ``option``, unless a file can be written there and no run's own file is there.
    Leaves nothing behind.
    """
    _check_no_run(path, option)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if _is_special(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        _probe(Path(os.path.realpath(path)).parent)
    except (OSError, ValueError) as error:
        raise _refused(path, option, error) from None


def _check_no_run(path: Path, option: str) -> None:
    """Refuse what bears a name of a run's own in the folder of a run: it would be lost, or take its place."""
    real = Path(os.path.realpath(path))
    for folder in real.parents:
        if (folder / MARKER).is_file() and real.relative_to(folder).parts[0] in (*FILES, *FOLDERS):
            raise CxrlError(f"{option}: {path} is a file of the run in {folder}; choose a path outside of it")


def check_folder_writable(folder: Path, option: str, *, of_run: bool = False) -> None:
    """Raise CxrlError, naming ``option``, unless files can be written into a folder, there or not, that is no
    run's and none of a run's own. A new folder beside a run's own ones is no run's.

    Args:
        folder: The folder.
        option: What named it.
        of_run: What is written there is the run itself.
    """
    _check_no_run(folder, option)
    if not of_run and (Path(os.path.realpath(folder)) / MARKER).is_file():
        raise CxrlError(
            f"{option}: {folder} is the folder of a run, where only the run writes; choose another, such as "
            f"{folder / 'images'}"
        )
    try:
        _probe(folder)
    except (OSError, ValueError) as error:
        raise _refused(folder, option, error) from None


def check_new_folder(folder: Path, option: str) -> None:
    """Raise CxrlError, naming ``option``, unless :func:`new_folder` can make the folder."""
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        check_folder_writable(folder, option)
        check_folder_writable(folder.absolute().parent, option, of_run=True)
    elif os.path.lexists(folder):
        raise CxrlError(f"{option}: {folder} is there and no empty folder; choose another place")
    else:
        check_folder_writable(folder, option)


def _probe(folder: Path) -> None:
    """Write a file into a folder, or into the first above it that exists, and delete it. Raises OSError."""
    above = folder
    while not above.exists() and not above.is_symlink():
        above = above.parent
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{above} is no folder")
    probe = above / temporary_name("probe", os.getpid())
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT, 0o600))
    finally:
        probe.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError, hint: str = "") -> CxrlError:
    """The error for a file that could not be written."""
    reason = error.strerror or str(error) or type(error).__name__
    return CxrlError(f"cannot write {path}: {reason}{f'; {hint}' if hint else ''}")


def sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # a file in its place, which the system tells misleadingly
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None


def _refused(path: Path, option: str, error: Exception) -> CxrlError:
    reason = (getattr(error, "strerror", None) or str(error)).lower()
    return CxrlError(f"{option}: cannot write {path}: {reason}; choose another place")


def _is_special(path: Path) -> bool:
    """Whether something is there that is no regular file: a device, a FIFO, a socket, a folder."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _scratch_file(name: str) -> Path:
    import tempfile

    descriptor, scratch = tempfile.mkstemp(suffix=f"-{name}")
    os.close(descriptor)
    return Path(scratch)
