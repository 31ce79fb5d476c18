"""Trains the runs of a sweep, several at once, each in a process of its own; resumable."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
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
RESULTS = ("ablation.json", "ablation.md", "ablation.html")
"""What a sweep writes beside its runs."""
_POLL = 0.5
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_LAST_LINES = 5


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
        CxrlError: The folder holds a run with other settings, or a finished one of another list, whose tables
            this one's would replace.
    """
    shared = same_runs(variants)
    _check_list(folder, variants)
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


def _check_list(folder: Path, variants: Sequence[Variant]) -> None:
    """Raise CxrlError where tables are those of another list. A variant that finished nothing may go."""
    if not (folder / RUNS).is_dir():
        foreign = [name for name in RESULTS if os.path.lexists(folder / name)]
        if foreign:
            raise CxrlError(f"{folder} holds {', '.join(foreign)} of no sweep; choose another --out")
        return
    known = {variant.folder for variant in variants}
    for path in sorted((folder / RUNS).glob(f"*/seed-*/{SUMMARY}")):
        if path.parent.parent.name not in known:
            raise CxrlError(
                f"{path.parent} is a finished run of another list, whose tables would be replaced: choose "
                "another --out, or add its variant"
            )


def _check_same(folder: Path, config: Config) -> None:
    """Raise CxrlError where a run with other settings is there."""
    if not (folder / CONFIG).is_file():
        return
    from cxrl.rl.batch_sizes import keep_batch_sizes

    config = keep_batch_sizes(config, folder / CONFIG)
    before, now = flat(load_yaml(folder / CONFIG).to_dict()), flat(config.to_dict())
    for name, value in now.items():
        if before.get(name) != value and not name.startswith("run."):
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
        settings = job.folder.with_suffix(".yaml")
        write_text(settings, job.config.to_yaml(), private=job.config.data.is_restricted)
        with self._turn(job) as lock:
            if self._stopping:
                return
            if job.is_done():
                self.told(f"{job}: done by a process that was still at work", 1)
                return
            self._begin(job, settings, lock, outcome)

    def _begin(self, job: Job, settings: Path, lock: int, outcome: Outcome) -> None:
        started = time.perf_counter()
        command = [sys.executable, "-m", "cxrl.train", "--run-dir", str(job.folder)]
        is_begun = (job.folder / CONFIG).is_file()
        command += ["--resume"] if is_begun else ["--config", str(settings)]
        self.told(f"{job}: {'resumed' if is_begun else 'started'}", 0)
        log = job.folder.with_suffix(".log")
        before = log.stat().st_size if log.exists() else 0
        status = self._train(command, log, lock)
        if self._stopping:
            return
        seconds = time.perf_counter() - started
        if status or not job.is_done():
            how = _ending(status)
            lines = _lines(log, before)
            last = f": {lines[-1][:200]}" if lines else " without a word"
            outcome.failed[str(job)] = f"{how}{last} (see {log})"
            tail = "".join(f"\n  {line}" for line in lines[-_LAST_LINES:])
            self.told(f"warning: {job} {how}; the last lines of {log}:{tail or ' none'}", 1)
            return
        outcome.seconds[str(job)] = seconds
        self.told(f"{job}: {seconds:.0f} s", 1)

    @contextlib.contextmanager
    def _turn(self, job: Job) -> Iterator[int]:
        """Inside, the job is nobody else's. Its process inherits the lock, so that one which outlives a
        killed sweep, as after ``kill -9``, is waited for and not begun a second time.
        """
        lock = os.open(job.folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            has_waited = False
            while not self._stopping:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno in _NO_LOCKS:
                        break
                    if not isinstance(error, BlockingIOError):
                        raise
                if not has_waited:
                    self.told(f"{job}: its process outlived an earlier sweep; waiting for it", 0)
                has_waited = True
                time.sleep(_POLL)
            yield lock
        finally:
            os.close(lock)

    def _train(self, command: Sequence[str], log: Path, lock: int) -> int:
        threads = max(1, (os.cpu_count() or 1) // self.num_jobs)
        given = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        private = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(private, "ab") as file:
            with self._guard:
                if self._stopping:
                    return 1
                child = subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=file,
                    stdin=subprocess.DEVNULL,
                    env={**given, **os.environ},
                    pass_fds=(lock,),
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


def _ending(status: int) -> str:
    """How a process ended that did not finish its run."""
    if status < 0:
        return f"was ended by signal {signal.Signals(-status).name}"
    return f"failed with status {status}" if status else "ended without a result"


def _lines(log: Path, start: int) -> list[str]:
    """What a process wrote to its log from byte ``start`` on, without blank lines."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode("utf-8", errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()]


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
