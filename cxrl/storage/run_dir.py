"""The run directory: who may use it, what is in it, and the metrics of every epoch.

config.yaml  metrics.jsonl  summary.json  checkpoints/  adapter/  samples/  logs/
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.presets import load_yaml
from cxrl.storage.checkpoint import checkpoints, remove_partial, sync
from cxrl.storage.privacy import owner_only

CONFIG, METRICS, SUMMARY = "config.yaml", "metrics.jsonl", "summary.json"
CHECKPOINTS, ADAPTER, SAMPLES, LOGS = "checkpoints", "adapter", "samples", "logs"
_CONTENT = (CONFIG, METRICS, SUMMARY, CHECKPOINTS, ADAPTER, SAMPLES, LOGS)

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
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def adapter(self) -> Path:
        return self.path / ADAPTER

    @property
    def samples(self) -> Path:
        return self.path / SAMPLES

    def holds_run(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / CONFIG).exists() or bool(checkpoints(self.checkpoints))

    def claim(self, config: Config, *, resume: bool, overwrite: bool) -> None:
        """Make the directory ready and write the configuration. Restricted data: for the owner alone, as are
        the folders above that did not exist.

        Raises:
            CxrlError: It cannot be written, it holds a run and neither flag is given, or a resumed run's
                configuration differs in what it learns.
        """
        if resume and overwrite:
            raise CxrlError("--resume and --overwrite contradict each other; give one")
        try:
            with owner_only(config.data.is_restricted):
                self.path.mkdir(parents=True, exist_ok=True)
            if config.data.is_restricted:
                self.path.chmod(0o700)  # reports and images of a run quote the data set
            probe = self.path / ".write-test"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise CxrlError(
                f"run directory {self.path} cannot be written: {error.strerror or error}; choose another "
                "with --run-dir"
            ) from error
        if self.holds_run():
            if overwrite:
                self._clear()
            elif not resume:
                raise CxrlError(
                    f"{self.path} already holds a run; go on with --resume, replace it with --overwrite, or "
                    "choose another --run-dir"
                )
        with owner_only(config.data.is_restricted):
            self._prepare(config, resume)

    def _prepare(self, config: Config, resume: bool) -> None:
        remove_partial(self.checkpoints)
        if resume and (self.path / CONFIG).exists():
            check_same(load_yaml(self.path / CONFIG), config, self.path / CONFIG)
        for folder in (self.checkpoints, self.samples, self.path / LOGS):
            folder.mkdir(exist_ok=True)
        partial = self.path / f".{CONFIG}.tmp"
        config.save(partial)
        os.replace(partial, self.path / CONFIG)

    def _clear(self) -> None:
        """Delete the run and nothing else; the configuration last, so that a kill leaves a recognisable
        run."""
        for name in reversed(_CONTENT):
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def truncate_metrics(self, epochs: int) -> None:
        """Keep the lines of the first ``epochs`` epochs: later ones will be written again."""
        path = self.path / METRICS
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _epoch_of(line) < epochs]
        self.write_atomically(METRICS, "".join(f"{line}\n" for line in kept))

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add the line of an epoch."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def write_atomically(self, name: str, text: str) -> None:
        """Write a file of the directory so that it is the old or the new one, never half of it."""
        partial = self.path / f".{name}.tmp"
        partial.write_text(text, encoding="utf-8")
        sync(partial)
        os.replace(partial, self.path / name)


def check_same(saved: Config, config: Config, source: Path) -> None:
    """Raise CxrlError naming the first setting that a resumed run must not change."""
    old, new = _flat(saved.to_dict()), _flat(config.to_dict())
    for name in sorted(old.keys() | new.keys()):
        allowed = name == "preset" or any(name == p or name.startswith(f"{p}.") for p in MAY_CHANGE)
        if old.get(name) != new.get(name) and not allowed:
            raise CxrlError(
                f"{name}: {new.get(name)!r}, but the run in {source} was started with {old.get(name)!r}; "
                "resume with the same settings, or start another --run-dir"
            )


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _epoch_of(line: str) -> float:
    """The epoch of a metrics line; a line that was cut by a kill counts as the latest."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
