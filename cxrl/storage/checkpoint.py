"""Checkpoints: a folder of safetensors and JSON, complete or absent, whenever the process dies.

    checkpoints/step-NNNNNN/   NNNNNN optimizer steps
        weights.safetensors    trainable weights            ema.safetensors    their average
        optimizer.safetensors  AdamW's moments and steps    bank.safetensors   anchor rewards by prompt, units
        good.safetensors       average of the last evaluation within limits
        state.json             numbers, and what they belong to: run, settings, base, models, reports
        policy.json            what the weights belong to
        manifest.json          size and SHA-256 of every other file

Written to a temporary folder, every file fsynced, then renamed. Random numbers need no state: every
generator is a function of (seed, purpose, epoch), so the epoch restores them. Only what bears a name and a
manifest of ours counts as a checkpoint, and only files of ours are ever deleted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cxrl.errors import CxrlError
from cxrl.storage.layout import (
    CHECKPOINT_FILES,
    MANIFEST,
    PARTIAL,
    POLICY_FILE,
    STATE_FILE,
    is_temporary,
    step_name,
    step_number,
)
from cxrl.storage.reading import check_files, describe_file, read_json, read_tensors
from cxrl.storage.writing import sync, write_json, write_tensors


@dataclass(frozen=True)
class State:
    """What a part of a run gives to a checkpoint and takes back.

    Attributes:
        tensors: File name → tensors; parts may share a file.
        numbers: JSON.
    """

    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on.

    Attributes:
        tensors: File name → tensors.
        state: Numbers, JSON.
        policy: Description of the policy, JSON.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]
    policy: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, step: int, keep: int) -> Path:
    """Write ``folder/step-NNNNNN`` and delete all but the newest ``keep``.

    Raises:
        CxrlError: It could not be written, as when the disk is full; the older checkpoints are untouched.
    """
    target = folder / step_name(step)
    partial = folder / f"{PARTIAL}{target.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _delete(partial)
        partial.mkdir()
        for name, tensors in checkpoint.tensors.items():
            write_tensors(partial / name, tensors)
        write_json(partial / STATE_FILE, checkpoint.state)
        write_json(partial / POLICY_FILE, checkpoint.policy)
        write_json(partial / MANIFEST, {path.name: describe_file(path) for path in sorted(partial.iterdir())})
        sync(partial)
        if target.exists():  # left by a run that was killed between this rename and the next epoch
            delete_checkpoint(target)
        os.rename(partial, target)
        sync(folder)
    except (OSError, CxrlError) as error:
        with contextlib.suppress(OSError):
            _delete(partial)
        older = checkpoints(folder)
        kept = f"{older[-1]} is intact" if older else "there is no older one"
        reason = getattr(error, "strerror", None) or str(error)
        raise CxrlError(
            f"cannot write checkpoint {target}: {reason}; {kept}; make room and go on with --resume"
        ) from error
    prune(folder, keep)
    return target


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep``."""
    for old in checkpoints(folder)[:-keep]:
        delete_checkpoint(old)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first; anything else in the folder is passed over."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        step = step_number(path.name)
        if step is not None and not path.is_symlink() and (path / MANIFEST).is_file():
            found[step] = path
    return [found[step] for step in sorted(found)]


def strays(folder: Path) -> list[str]:
    """Names in a folder of checkpoints that are none."""
    ours = {path.name for path in checkpoints(folder)}
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return sorted(name for name in names - ours if not name.startswith(PARTIAL))


def remove_partial(folder: Path) -> None:
    """Delete what a killed process left half written or half deleted."""
    for path in folder.glob(f"{PARTIAL}*"):
        _delete(path)


def load_checkpoint(path: Path, files: Sequence[str] | None = None) -> Checkpoint:
    """Read a checkpoint and check it against its manifest.

    Args:
        path: ``checkpoints/step-NNNNNN``.
        files: Of the tensors, those to read; None is all. All are checked.

    Raises:
        CxrlError: A file is missing, truncated or damaged; the message names it and says what to do.
    """
    try:
        names = check_files(path, read_json(path / MANIFEST))
        for name in CHECKPOINT_FILES:
            if name not in names and name != MANIFEST:
                raise CxrlError(f"cannot read {path / name}: it is missing in {MANIFEST}")
        wanted = [n for n in names if n.endswith(".safetensors") and (files is None or n in files)]
        tensors = {n: read_tensors(path / n) for n in wanted}
        return Checkpoint(tensors, read_json(path / STATE_FILE), read_json(path / POLICY_FILE))
    except (CxrlError, OSError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> CxrlError:
    """The error for a checkpoint that cannot be used, with what to do about it."""
    number = step_number(path.name) or 0
    older = [p for p in checkpoints(path.parent) if (step_number(p.name) or 0) < number]
    advice = f"to go on from {older[-1].name}" if older else "to start again, there is no older one"
    return CxrlError(f"{error}; delete {path} and use --resume {advice}")


def delete_checkpoint(path: Path) -> None:
    """Delete a checkpoint so that a kill on the way leaves no half of it under its name. One that holds files
    of others stays, under a name that is no checkpoint's.
    """
    if {p.name for p in path.iterdir()} - set(CHECKPOINT_FILES):
        aside, number = path, 0
        while aside.exists():
            number += 1
            aside = path.with_name(f"{path.name}-kept-{number}")
        os.rename(path, aside)
        return
    doomed = path.with_name(f"{PARTIAL}old-{path.name}")
    _delete(doomed)
    os.rename(path, doomed)
    _delete(doomed)


def _delete(folder: Path) -> None:
    """Delete the files that a checkpoint has, and the folder once it is empty."""
    if not folder.is_dir() or folder.is_symlink():
        return
    for path in folder.iterdir():
        if path.name in CHECKPOINT_FILES or is_temporary(path.name):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
