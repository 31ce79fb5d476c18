"""Checkpoints: a folder of safetensors and JSON, complete or absent, whenever the process dies.

    checkpoints/step-NNNNNN/   NNNNNN optimizer steps
        weights.safetensors    trainable weights            ema.safetensors    their average
        optimizer.safetensors  AdamW's moments and steps    bank.safetensors   anchor rewards by prompt
        good.safetensors       average of the last evaluation within limits
        state.json             numbers                      policy.json        what the weights belong to
        manifest.json          size and SHA-256 of every other file

Written to a temporary folder, every file fsynced, then renamed. Random numbers need no state: every
generator is a function of (seed, purpose, epoch), so the epoch restores them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cxrl.errors import CxrlError
from cxrl.models.policy import EMA_FILE, POLICY_FILE
from cxrl.storage.reading import check_weights, read_json, read_tensors

MANIFEST, STATE_FILE = "manifest.json", "state.json"
_TEMPORARY = ".partial-"


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
    target = folder / f"step-{step:06d}"
    partial = folder / f"{_TEMPORARY}{target.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, tensors in checkpoint.tensors.items():
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial / name)
        _write_json(partial / STATE_FILE, checkpoint.state)
        _write_json(partial / POLICY_FILE, checkpoint.policy)
        manifest = {path.name: _describe(path) for path in sorted(partial.iterdir())}
        _write_json(partial / MANIFEST, manifest)
        for path in partial.iterdir():
            sync(path)
        sync(partial)
        if target.exists():  # left by a run that was killed between this rename and the next epoch
            _discard(target)
        os.rename(partial, target)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        older = checkpoints(folder)
        kept = f"{older[-1]} is intact" if older else "there is no older one"
        reason = getattr(error, "strerror", None) or str(error)
        raise CxrlError(
            f"cannot write checkpoint {target}: {reason}; {kept}; make room and go on with --resume"
        ) from error
    for old in checkpoints(folder)[:-keep]:
        _discard(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def remove_partial(folder: Path) -> None:
    """Delete what a killed process left half written or half deleted."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and check it against its manifest.

    Raises:
        CxrlError: A file is missing, truncated or damaged; the message names it and says what to do.
    """
    try:
        manifest = read_json(path / MANIFEST)
        for name, expected in manifest.items():
            if not (path / name).is_file():
                raise CxrlError(f"cannot read {path / name}: it is missing")
            found = _describe(path / name)
            if found["size"] != expected["size"]:
                raise CxrlError(
                    f"cannot read {path / name}: {found['size']} bytes, expected {expected['size']}"
                )
            if found["sha256"] != expected["sha256"]:
                raise CxrlError(f"cannot read {path / name}: its content has changed since it was written")
        tensors = {n: read_tensors(path / n) for n in manifest if n.endswith(".safetensors")}
        return Checkpoint(tensors, read_json(path / STATE_FILE), read_json(path / POLICY_FILE))
    except (CxrlError, OSError) as error:
        older = [p for p in checkpoints(path.parent) if p < path]
        advice = f"to go on from {older[-1].name}" if older else "to start again, there is no older one"
        raise CxrlError(f"{error}; delete {path} and use --resume {advice}") from error


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, Tensor]:
    """AdamW's state by the weights' names: ``<name>/exp_avg``, ``<name>/exp_avg_sq``, ``<name>/step``."""
    return {
        f"{name}/{key}": value
        for name, p in parameters.items()
        for key, value in optimizer.state.get(p, {}).items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, Tensor],
    source: str,
) -> None:
    """Put back what :func:`optimizer_tensors` gave. Raises CxrlError when it belongs to other weights."""
    moments = {n.removesuffix("/exp_avg"): t for n, t in tensors.items() if n.endswith("/exp_avg")}
    if moments:
        check_weights(parameters, moments, source)
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        p = parameters[name]
        optimizer.state[p][field] = value.to(p.device)


def sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(path: Path) -> None:
    """Delete a checkpoint so that a kill on the way leaves no half of it under its name."""
    doomed = path.with_name(f"{_TEMPORARY}old-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _describe(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


__all__ = ["EMA_FILE", "Checkpoint", "load_checkpoint", "save_checkpoint"]
