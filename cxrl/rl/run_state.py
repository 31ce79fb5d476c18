"""What the next epoch depends on, and its way to the disk and back.

The parts know their own state (``state`` and ``load_state`` of Policy, Updater, AnchorBank, Limits and
RewardUnits); this collects them, and notes what they belong to: the run, the settings that decide what is
learned, the base, the rewards and the reports. A checkpoint of anything else is refused with the first that
differs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.models.fingerprint import check_fingerprint
from cxrl.rl.build import Parts, prompts_digest
from cxrl.rl.comparison import RewardUnits
from cxrl.rl.engine import Engine
from cxrl.scorers.digests import changed
from cxrl.storage.checkpoint import (
    Checkpoint,
    State,
    checkpoints,
    damaged,
    load_checkpoint,
    prune,
    save_checkpoint,
)
from cxrl.storage.layout import step_name
from cxrl.storage.reading import field
from cxrl.storage.run_dir import RunDir, check_settings, settings

FORMAT = 2


class RunState:
    """Where a run is.

    Attributes:
        epoch: Epochs completed.
        kept_epoch: Whose averaged weights are the run's result; earlier than ``epoch`` once the limits were
            passed.
        units: Fixed scale of the rewards, from the first rollout on.
        notes: What the user should know of the checkpoint that was loaded.
    """

    def __init__(self, config: Config, parts: Parts, engine: Engine) -> None:
        self.config, self.parts, self.engine = config, parts, engine
        self.epoch = self.kept_epoch = 0
        self.units: RewardUnits | None = None
        self.notes: tuple[str, ...] = ()
        self._seconds_before, self._started = 0.0, time.perf_counter()
        self._prompts = prompts_digest(parts.prompts)

    def wall_seconds(self) -> float:
        """Time spent on the run, with what came before a resume."""
        return self._seconds_before + time.perf_counter() - self._started

    def describe(self) -> dict[str, Any]:
        """What summary and adapter say of where the run ended; JSON."""
        return {
            "epochs": self.epoch,
            "kept_epoch": self.kept_epoch,
            "stopped_early": self.parts.limits.reason,
        }

    def save(self, run_dir: RunDir) -> Path:
        """Write a checkpoint. The main process writes; all must hold the same weights, for a resumed run
        starts all from these.

        Returns:
            Its folder.

        Raises:
            CxrlError: It cannot be written, or the processes' weights differ.
        """
        policy, updater = self.parts.policy, self.parts.updater
        self.engine.check_same({**policy.weights(), **{f"ema/{name}": t for name, t in policy.ema.items()}})
        if self.engine.is_main:
            save_checkpoint(
                run_dir.checkpoints,
                self._checkpoint(run_dir.run_id),
                step=updater.num_steps,
                keep=self.config.train.keep_checkpoints,
            )
        self.engine.wait()
        return run_dir.checkpoints / step_name(updater.num_steps)

    def load(self, run_dir: RunDir) -> Path | None:
        """Go to the newest checkpoint.

        Returns:
            Which; None where there is none, and nothing has changed.

        Raises:
            CxrlError: It is damaged or belongs to something else; the message says what to do.
        """
        saved = checkpoints(run_dir.checkpoints)
        if not saved:
            return None
        path = saved[-1]
        checkpoint = load_checkpoint(path)
        self._check_identity(checkpoint, run_dir, path)
        state, device, parts = State(checkpoint.tensors, checkpoint.state), self.engine.device, self.parts
        try:
            self.epoch = field(state.numbers, "epoch", int, str(path))
            self.kept_epoch = field(state.numbers, "kept_epoch", int, str(path))
            self._seconds_before = field(state.numbers, "wall_seconds", float, str(path))
            parts.policy.load_state(state, str(path))
            parts.updater.load_state(state, str(path))
            parts.limits.load_state(state, str(path))
            parts.anchors.bank.load_state(state, device, str(path))
            self.units = RewardUnits.load_state(state, device)
        except KeyError as error:
            raise damaged(path, CxrlError(f"cannot read {path}: {error} is missing")) from error
        if not parts.limits.reason and (parts.limits.changed or self.epoch < self.config.train.num_epochs):
            self.kept_epoch = self.epoch  # it goes on, or is judged anew
        if self.engine.is_main:  # a kill before an older one was deleted leaves one too many
            prune(run_dir.checkpoints, self.config.train.keep_checkpoints)
        return path

    def _checkpoint(self, run_id: str) -> Checkpoint:
        p = self.parts
        states = [p.policy.state(), p.updater.state(), p.limits.state(), p.anchors.bank.state()]
        if self.units is not None:
            states.append(self.units.state())
        tensors: dict[str, dict[str, Tensor]] = {}
        numbers: dict[str, Any] = {
            "format": FORMAT,
            "run": run_id,
            "epoch": self.epoch,
            "kept_epoch": self.kept_epoch,
            "wall_seconds": self.wall_seconds(),
        }
        for state in states:
            for file, named in state.tensors.items():
                tensors.setdefault(file, {}).update(named)
            numbers |= state.numbers
        numbers |= {"prompts": self._prompts, "settings": settings(self.config), "models": dict(p.digests)}
        return Checkpoint(tensors, numbers, p.policy.describe())

    def _check_identity(self, checkpoint: Checkpoint, run_dir: RunDir, path: Path) -> None:
        state, policy = checkpoint.state, self.parts.policy
        if state.get("format") != FORMAT:
            raise damaged(path, CxrlError(f"{path} was written by another version of cxrl"))
        if run_dir.run_id and state.get("run") != run_dir.run_id:
            raise CxrlError(
                f"{path} belongs to another run than {run_dir.path}; take it away, or start again"
            )
        check_settings(field(state, "settings", dict, str(path)), self.config, path)
        check_fingerprint(
            checkpoint.policy.get("base_fingerprint"), policy.fingerprint, str(path), policy.base.path
        )
        others = changed(field(state, "models", dict, str(path)), self.parts.digests)
        rewards = [name for name in others if name.startswith("rewards.")]
        if rewards:
            raise CxrlError(
                f"{rewards[0]}: its files are others than when the run in {path} was started; put them back, "
                "or start another --run-dir"
            )
        if others:
            self.notes += (f"warning: other judges than before: {', '.join(others)}",)
        if state.get("prompts") != self._prompts:
            raise CxrlError(
                f"{path}: the training reports or their labels are others than when the run was started; put "
                "data.root back as it was, or start another --run-dir"
            )
