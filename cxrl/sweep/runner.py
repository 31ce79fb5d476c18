"""Trains the runs of a sweep, several at once, each in a process of its own; resumable."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.presets import load_yaml
from cxrl.storage.layout import CONFIG, SUMMARY
from cxrl.storage.reading import read_json
from cxrl.storage.run_dir import flat
from cxrl.storage.writing import write_text
from cxrl.sweep.variants import Variant, same_runs

LOCK = ".cxrl-sweep.lock"
RUNS = "runs"


@dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Attributes:
        variant: Whose; of several with the same configuration the first.
        seed: Its seed.
        folder: Its run directory.
        config: All settings.
    """

    variant: str
    seed: int
    folder: Path
    config: Config

    def is_done(self) -> bool:
        """Whether it has been trained to the end."""
        path = self.folder / SUMMARY
        return (
            path.is_file() and (self.folder / CONFIG).is_file() and read_json(path).get("epochs") is not None
        )

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"


def jobs_of(variants: Sequence[Variant], seeds: Sequence[int], folder: Path) -> list[Job]:
    """The runs: seed by seed, so that after a part of them every variant has been seen.

    Raises:
        CxrlError: A folder holds a run with other settings.
    """
    shared = same_runs(variants)
    found = []
    for seed in seeds:
        for variant in variants:
            if shared[variant.name] != variant.name:
                continue
            where = folder / RUNS / variant.folder / f"seed-{seed}"
            config = Config.from_dict({"seed": seed, "run": {"dir": str(where)}}, variant.config)
            _check_same(where, config)
            found.append(Job(variant.name, seed, where, config))
    return found


def _check_same(folder: Path, config: Config) -> None:
    """Raise CxrlError where a run with other settings is there. Batch sizes of 0 were filled in."""
    if not (folder / CONFIG).is_file():
        return
    before, now = flat(load_yaml(folder / CONFIG).to_dict()), flat(config.to_dict())
    for name, value in now.items():
        if before.get(name) != value and not name.startswith("run.") and value != 0:
            raise CxrlError(
                f"{folder} has {name} {before.get(name)!r}, this sweep {value!r}: choose another --out, or "
                "delete it"
            )


@dataclass
class Outcome:
    """What became of the jobs: seconds of those that were trained, and why others failed."""

    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class Runner:
    """Trains jobs.

    Attributes:
        num_jobs: How many at once.
        told: Is given a line for every job that begins or ends.
    """

    def __init__(self, num_jobs: int, told: Callable[[str, int], None]) -> None:
        self.num_jobs, self.told = num_jobs, told
        self._children: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()
        self._stopping = False

    def run(self, jobs: Sequence[Job]) -> Outcome:
        """Train all that are not done. One that fails does not keep the others from running."""
        outcome = Outcome()
        pool = ThreadPoolExecutor(self.num_jobs)
        try:
            waiting = [pool.submit(self._one, job, outcome) for job in jobs]
            for future in waiting:
                future.result()
        except BaseException:
            self._stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return outcome

    def _one(self, job: Job, outcome: Outcome) -> None:
        if self._stopping:
            return
        if job.is_done():
            self.told(f"{job}: done before", 1)
            return
        started = time.perf_counter()
        settings = job.folder.with_suffix(".yaml")
        write_text(settings, job.config.to_yaml(), private=job.config.data.is_restricted)
        command = [sys.executable, "-m", "cxrl.train", "--run-dir", str(job.folder)]
        is_begun = (job.folder / CONFIG).is_file()
        command += ["--resume"] if is_begun else ["--config", str(settings)]
        self.told(f"{job}: {'resumed' if is_begun else 'started'}", 0)
        log = job.folder.with_suffix(".log")
        status = self._train(command, log)
        if self._stopping:
            return
        seconds = time.perf_counter() - started
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            outcome.failed[str(job)] = f"{lines[-1][:200] if lines else 'no output'} (see {log})"
            self.told(f"warning: {job} failed with status {status}: {outcome.failed[str(job)]}", 1)
            return
        outcome.seconds[str(job)] = seconds
        self.told(f"{job}: {seconds:.0f} s", 1)

    def _train(self, command: Sequence[str], log: Path) -> int:
        threads = max(1, (os.cpu_count() or 1) // self.num_jobs)
        given = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        private = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(private, "ab") as file:
            with self._guard:
                if self._stopping:
                    return 1
                child = subprocess.Popen(
                    command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env={**given, **os.environ}
                )
                self._children.add(child)
            try:
                return child.wait()
            finally:
                with self._guard:
                    self._children.discard(child)

    def _stop(self) -> None:
        """End what is running: a run that is told to end keeps its last checkpoint."""
        with self._guard:
            self._stopping = True
            for child in self._children:
                with contextlib.suppress(OSError):
                    child.terminate()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process works on the sweep in a folder. Raises CxrlError where one does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CxrlError(
                f"{folder}: another process works on this sweep; wait for it, or choose another --out"
            ) from None
        yield
