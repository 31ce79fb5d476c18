"""The run directory: whose it is, who may write to it, and the metrics of every epoch.

A folder is a run's by a marker that was written here and a configuration that loads, never by the names in
it. Whatever else lies there is not touched: it is refused where it bears a name of ours, and passed over
where it does not. The marker is locked while a process works on the run; the system lets go of it when that
process dies, however it does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import uuid
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.presets import load_yaml
from cxrl.storage import layout
from cxrl.storage.checkpoint import checkpoints, delete_checkpoint, remove_partial, strays
from cxrl.storage.privacy import owner_only
from cxrl.storage.writing import cannot_write, check_folder_writable, write_json, write_text

FORMAT = 1
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

MAY_CHANGE = (
    "run",
    "eval",
    "data.cache",
    "data.restricted",
    "model.offload",
    "model.gradient_checkpointing",
    "train.num_epochs",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.eval_every",
    "train.early_stop_diversity",
    "train.early_stop_fid",
    "train.patience",
)
"""Settings that a resumed run may change: they alter how long it trains and what it writes, not what it
learns."""


class RunDir:
    """A directory that this run owns.

    Attributes:
        path: The directory.
        run_id: Names the run, from :meth:`claim` on; a checkpoint says to which run it belongs.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.run_id = ""
        self._lock: _Lock | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / layout.CHECKPOINTS

    @property
    def adapter(self) -> Path:
        return self.path / layout.ADAPTER

    @property
    def samples(self) -> Path:
        return self.path / layout.SAMPLES

    def check(self, config: Config, *, resume: bool, overwrite: bool) -> None:
        """Refuse a run that :meth:`claim` would refuse, before anything is loaded. Changes nothing.

        Raises:
            CxrlError: It cannot be written, another process works on it, it holds what is not ours or a run
                and neither flag is given, or a resumed run's configuration differs in what it learns.
        """
        if resume and overwrite:
            raise CxrlError("--resume and --overwrite contradict each other; give one")
        check_folder_writable(self.path, "--run-dir", of_run=True)
        if not self._is_ours():
            return
        if self._lock is None:
            _Lock(self.path / layout.MARKER).close()
        if not (resume or overwrite) and self._holds_work():
            raise CxrlError(
                f"{self.path} already holds a run; go on with --resume, replace it with --overwrite, or "
                "choose another --run-dir"
            )
        if resume and (self.path / layout.CONFIG).exists():
            check_same(load_yaml(self.path / layout.CONFIG), config, self.path / layout.CONFIG)

    def claim(self, config: Config, *, resume: bool, overwrite: bool) -> None:
        """Make the directory this run's, until :meth:`release`, and write the configuration. Restricted data:
        for the owner alone, as are the folders above that did not exist.

        A run that has not completed an epoch holds nothing to lose: it is replaced without a flag.

        Raises:
            CxrlError: As :meth:`check`.
        """
        private, marker = config.data.is_restricted, self.path / layout.MARKER
        self.check(config, resume=resume, overwrite=overwrite)
        try:
            with owner_only(private):
                self.path.mkdir(parents=True, exist_ok=True)
                if private:
                    self._close_to_others()
                _make_marker(marker)
                self._lock = _Lock(marker)
                self.check(config, resume=resume, overwrite=overwrite)  # what was there may have changed
                self.run_id = _read_marker(marker)
                if overwrite or not (resume or self._holds_work()):
                    self._clear()
                remove_partial(self.checkpoints)
                self._remove_temporary()
                for name in (layout.CHECKPOINTS, layout.SAMPLES, layout.LOGS):
                    (self.path / name).mkdir(exist_ok=True)
                if not (resume and (self.path / layout.CONFIG).exists()):
                    self.write_config(config)
        except OSError as error:
            self.release()
            raise cannot_write(
                Path(error.filename or self.path), error, "choose another --run-dir"
            ) from error
        except BaseException:
            self.release()
            raise

    def write_config(self, config: Config) -> None:
        """Write the configuration; of a resumed run once its checkpoint is seen to fit."""
        write_text(self.path / layout.CONFIG, config.to_yaml())

    def has_result(self) -> bool:
        """Whether a run was finished here."""
        return (self.path / layout.SUMMARY).exists() or (self.adapter / layout.ADAPTER_FILE).exists()

    def release(self) -> None:
        """Let another process work here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def roll_back(self, epochs: int) -> list[str]:
        """Make the folder say what a run of ``epochs`` epochs says: later ones will be written again.

        Returns:
            What the user should know, a line each.
        """
        path = self.path / layout.METRICS
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        kept = [line for line in lines if _epoch_of(line) < epochs]
        write_text(path, "".join(f"{line}\n" for line in kept))
        for path in self.samples.glob("*-kept.png"):  # an earlier version's, written again at the end
            if layout.is_grid(path.name):
                _delete(path)
        if _epochs(self.adapter / layout.ADAPTER_FILE) > epochs:
            remove_adapter(self.adapter)
        if _epochs(self.path / layout.SUMMARY) > epochs:
            for name in (layout.SUMMARY, layout.SCORES, layout.GALLERY, layout.HEADROOM):
                _delete(self.path / name)
            _delete(self.samples / layout.RESULT_GRID)
        ignored = strays(self.checkpoints)
        return [f"{self.checkpoints}: no checkpoints, passed over: {', '.join(ignored)}"] if ignored else []

    def add_session(self, about: Mapping[str, Any]) -> None:
        """Note a process that works on the run; what earlier ones noted stays, unless it is damaged.

        Raises:
            CxrlError: It cannot be written.
        """
        path = self.path / layout.PROVENANCE
        try:
            before = json.loads(path.read_text(encoding="utf-8"))["sessions"] if path.exists() else []
            before = before if isinstance(before, list) else []
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            before = []
        write_json(path, {"sessions": [*before, about]})

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add the line of an epoch. Raises CxrlError when it cannot be written."""
        path = self.path / layout.METRICS
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(path, error, "make room and go on with --resume") from error

    def _is_ours(self) -> bool:
        """Whether a run of ours is here; False for a folder with none of our names.

        Raises:
            CxrlError: Something bears a name of ours and is not a run's: nothing here may be touched.
        """
        if not self.path.exists():
            return False
        named = [name for name in (*layout.FILES, *layout.FOLDERS) if os.path.lexists(self.path / name)]
        if not named:
            return False
        marker, config = self.path / layout.MARKER, self.path / layout.CONFIG
        if layout.MARKER not in named:
            raise self._foreign(named, f"there is no {layout.MARKER} of a run beside them")
        _read_marker(marker)
        wrong = [name for name in named if not _is_kind(self.path / name, folder=name in layout.FOLDERS)]
        if wrong:
            raise self._foreign(wrong, "a run has another kind of file there")
        if config.exists():
            try:
                load_yaml(config)
            except CxrlError as error:
                raise CxrlError(
                    f"{config} does not load, so nothing was touched: {error}; mend it, or choose another "
                    "--run-dir"
                ) from None
        return True

    def _foreign(self, names: Iterable[str], reason: str) -> CxrlError:
        return CxrlError(
            f"{self.path} holds what this run did not write: {', '.join(names)} ({reason}); nothing was "
            "touched: move it away, or choose another --run-dir"
        )

    def _holds_work(self) -> bool:
        """Whether an epoch was completed here."""
        metrics = self.path / layout.METRICS
        return bool(
            checkpoints(self.checkpoints)
            or (metrics.is_file() and metrics.stat().st_size)
            or self.has_result()
        )

    def _close_to_others(self) -> None:
        """What a run writes quotes the data set; a folder with files of others is not closed to them."""
        ours = (self.path / layout.MARKER).exists() or not any(self.path.iterdir())
        if ours:
            self.path.chmod(0o700)
        elif self.path.stat().st_mode & 0o077:
            raise CxrlError(
                f"{self.path} holds other files and others can read it, which restricted data forbid; choose "
                "another --run-dir"
            )

    def _clear(self) -> None:
        """Delete what runs write and nothing else; the configuration last, so that a kill leaves a
        recognisable run. The marker stays.
        """
        for name in reversed(layout.FILES):
            if name not in (layout.MARKER, layout.CONFIG):
                (self.path / name).unlink(missing_ok=True)
        remove_adapter(self.adapter)
        for path in checkpoints(self.checkpoints):
            delete_checkpoint(path)
        remove_partial(self.checkpoints)
        for path in self.samples.glob("*.png"):
            if layout.is_grid(path.name):
                path.unlink()
        logs = self.path / layout.LOGS
        for path in (logs / layout.TENSORBOARD).glob("*") if not logs.is_symlink() else ():
            if layout.is_event_file(path.name) and path.is_file():
                path.unlink()
        for folder in (logs / layout.TENSORBOARD, *(self.path / name for name in layout.FOLDERS)):
            with contextlib.suppress(OSError):  # missing, or with something in it that is not ours
                folder.rmdir()
        (self.path / layout.CONFIG).unlink(missing_ok=True)

    def _remove_temporary(self) -> None:
        """Delete what killed processes were writing; not what a live one writes here, a report say."""
        for folder in (self.path, self.samples, self.adapter):
            for path in folder.glob(".*"):
                writer = layout.temporary_writer(path.name)
                if writer is not None and path.is_file() and not _lives(writer):
                    path.unlink(missing_ok=True)


class _Lock:
    """An exclusive lock of a file, which ends with the process. Raises CxrlError when another has it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        busy = False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Where a marker cannot be linked into place, another process may have put its own there since.
            busy = os.fstat(self._descriptor).st_ino != path.stat().st_ino
        except BlockingIOError:
            busy = True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(self._descriptor)
                raise
            warnings.warn(f"{path.parent}: this file system has no locks; run one process here", stacklevel=3)
        if busy:
            os.close(self._descriptor)
            raise CxrlError(
                f"another process is working on the run in {path.parent}; wait for it, or choose another "
                "--run-dir"
            )

    def close(self) -> None:
        os.close(self._descriptor)


def remove_adapter(folder: Path) -> None:
    """Delete the files of an adapter, its description first: what is left is then recognised as none.

    Raises:
        CxrlError: One cannot be deleted; it is named.
    """
    for name in reversed(layout.ADAPTER_FILES):
        _delete(folder / name)
    if is_card(folder / layout.CARD_FILE):
        _delete(folder / layout.CARD_FILE)


def is_card(path: Path) -> bool:
    """Whether a file is a model card that was written here, perhaps edited since."""
    try:
        return layout.CARD_MARK in path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CxrlError(f"cannot delete {path}: {error.strerror or error}") from error


def _make_marker(path: Path) -> None:
    """Write a marker where there is none. Of two processes one makes it, and both find the same."""
    if path.exists():
        return
    partial = path.with_name(layout.temporary_name(path.name, os.getpid()))
    write_json(partial, {"format": FORMAT, "run": uuid.uuid4().hex})
    try:
        os.link(partial, path)  # unlike a rename, it fails where another was quicker
    except OSError:
        if not path.exists():  # a file system without hard links
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read_marker(path: Path) -> str:
    """The run that a marker names. Raises CxrlError where it is not one of ours."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] == FORMAT and len(bytes.fromhex(data["run"])) == 16:
            return data["run"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise CxrlError(
        f"{path} was not written by this version of cxrl: nothing in {path.parent} was touched; choose "
        "another --run-dir"
    )


def _lives(pid: int) -> bool:
    """Whether another process has this number."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _is_kind(path: Path, *, folder: bool) -> bool:
    return path.is_dir() if folder else path.is_file()


def check_same(saved: Config, config: Config, source: Path) -> None:
    """Raise CxrlError naming the first setting that a resumed run must not change."""
    check_settings(settings(saved), config, source)


def settings(config: Config) -> dict[str, Any]:
    """The settings that decide what a run learns, by their full names; JSON."""
    # Rates that fall over the run's epochs are others where these are.
    fixed = () if config.optim.schedule == "constant" else ("train.num_epochs",)
    return {
        name: value
        for name, value in flat(config.to_dict()).items()
        if name != "preset"
        and (name in fixed or not any(name == p or name.startswith(f"{p}.") for p in MAY_CHANGE))
    }


def check_settings(old: Mapping[str, Any], config: Config, source: Path) -> None:
    """As :func:`check_same`, with what :func:`settings` gave when the run was saved. An option that was not
    there yet had its default, with which everything is as it was.
    """
    new, old = settings(config), settings(Config()) | dict(old)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise CxrlError(
                f"{name}: {new.get(name)!r}, but the run in {source} was started with {old.get(name)!r}; "
                "resume with the same settings, or start another --run-dir"
            )


def _epochs(path: Path) -> float:
    """The epochs of a summary or an adapter; 0 where there is none, and more than any where it is damaged."""
    if not path.is_file():
        return 0
    try:
        return int(json.loads(path.read_text(encoding="utf-8")).get("epochs", 0))
    except (OSError, ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return float("inf")


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as ``a.b`` → value."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _epoch_of(line: str) -> float:
    """The epoch of a metrics line; a line that was cut by a kill counts as the latest."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")
