"""What of a trainer goes into a checkpoint and comes back, and the artefacts of a finished run."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from cxrl.errors import CxrlError
from cxrl.models.policy import EMA_FILE, Policy
from cxrl.rl.comparison import RewardUnits
from cxrl.storage.checkpoint import (
    Checkpoint,
    checkpoints,
    load_checkpoint,
    load_optimizer,
    optimizer_tensors,
    save_checkpoint,
    sync,
)
from cxrl.storage.reading import check_weights
from cxrl.storage.run_dir import SUMMARY, RunDir

if TYPE_CHECKING:
    from cxrl.rl.trainer import Trainer

WEIGHTS_FILE, OPTIMIZER_FILE = "weights.safetensors", "optimizer.safetensors"
BANK_FILE, GOOD_FILE = "bank.safetensors", "good.safetensors"


def save_run(trainer: Trainer) -> None:
    """Write a checkpoint of everything that the next epoch depends on.

    The main process writes; all must hold the same weights, for a resumed run starts all from these.

    Raises:
        CxrlError: It cannot be written, or the processes' weights differ.
    """
    policy, updater = trainer.policy, trainer.updater
    trainer.engine.check_same({**policy.weights(), **{f"ema/{name}": t for name, t in policy.ema.items()}})
    units = trainer.units
    bank = trainer.bank.state()
    if units is not None:
        bank |= {"unit_mean": units.mean, "unit_std": units.std}
    tensors = {
        WEIGHTS_FILE: policy.weights(),
        EMA_FILE: policy.ema,
        GOOD_FILE: trainer.good_ema,
        OPTIMIZER_FILE: optimizer_tensors(updater.optimizer, policy.trainable),
        BANK_FILE: bank,
    }
    state = {
        "epoch": trainer.epoch,
        "step": updater.num_steps,
        "ema_updates": policy.num_ema_updates,
        "ema_epoch": trainer.ema_epoch,
        "good_epoch": trainer.good_epoch,
        "strikes": trainer.limits.strikes,
        "stopped_early": trainer.limits.reason,
        "wall_seconds": trainer.wall_seconds(),
    }
    if trainer.engine.is_main:
        save_checkpoint(
            trainer.run_dir.checkpoints,
            Checkpoint(tensors, state, policy.describe()),
            step=updater.num_steps,
            keep=trainer.config.train.keep_checkpoints,
        )
    trainer.engine.wait()


def load_run(trainer: Trainer) -> None:
    """Put a trainer where its last checkpoint was; at the beginning where there is none.

    Raises:
        CxrlError: The checkpoint is damaged or belongs to another model; the message says what to do.
    """
    saved = checkpoints(trainer.run_dir.checkpoints)
    if not saved:
        trainer.reporter.message(f"no checkpoint in {trainer.run_dir.path}: starting from the beginning")
        return
    path = saved[-1]
    checkpoint = load_checkpoint(path)
    policy, updater, state = trainer.policy, trainer.updater, checkpoint.state
    if checkpoint.policy["base_fingerprint"] != policy.fingerprint:
        raise CxrlError(
            f"{path}: was trained from another base than {policy.base.path}, whose weights differ"
        )
    tensors, device = checkpoint.tensors, trainer.engine.device
    policy.load_weights(dict(tensors[WEIGHTS_FILE]), str(path / WEIGHTS_FILE))
    for name in (EMA_FILE, GOOD_FILE):
        check_weights(policy.trainable, dict(tensors[name]), str(path / name))
    policy.ema = {name: tensors[EMA_FILE][name].to(device) for name in policy.trainable}
    trainer.good_ema = {name: tensors[GOOD_FILE][name].to(device) for name in policy.trainable}
    load_optimizer(updater.optimizer, policy.trainable, tensors[OPTIMIZER_FILE], str(path / OPTIMIZER_FILE))
    bank = dict(tensors[BANK_FILE])
    if "unit_mean" in bank:
        trainer.units = RewardUnits(bank["unit_mean"].to(device), bank["unit_std"].to(device))
    trainer.bank.load_state(bank, device, str(path / BANK_FILE))
    trainer.epoch, updater.num_steps = state["epoch"], state["step"]
    policy.num_ema_updates = state["ema_updates"]
    # Checkpoints from before these two were kept: the average is the last epoch's, no good one is known.
    trainer.ema_epoch, trainer.good_epoch = state.get("ema_epoch", trainer.epoch), state.get("good_epoch", 0)
    trainer.limits.strikes, trainer.limits.reason = state["strikes"], state["stopped_early"]
    trainer.seconds_before = state["wall_seconds"]
    trainer.reporter.message(f"resuming after epoch {trainer.epoch} from {path}")


def save_adapter(run_dir: RunDir, policy: Policy) -> None:
    """Write ``adapter/`` beside its place and rename it there. Raises CxrlError when it cannot be written."""
    partial = run_dir.path / ".adapter.tmp"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        policy.save_adapter(partial)
        for path in partial.iterdir():
            sync(path)
        shutil.rmtree(run_dir.adapter, ignore_errors=True)
        os.rename(partial, run_dir.adapter)
    except OSError as error:
        raise CxrlError(
            f"cannot write {run_dir.adapter}: {error.strerror or error}; the checkpoint is intact: make room "
            "and use --resume"
        ) from error


def save_summary(run_dir: RunDir, summary: dict[str, Any]) -> None:
    """Write ``summary.json``."""
    run_dir.write_atomically(SUMMARY, json.dumps(summary, indent=2) + "\n")
