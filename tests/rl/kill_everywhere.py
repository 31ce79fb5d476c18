"""Run as a script: a run is killed before every change that it makes to the disk, and resumed each time.

    python tests/rl/kill_everywhere.py [--every N]

Writes tests/rl/kill_everywhere.json: how many kills were tried and how many runs came out bit-identical with
the run that was never killed, by the kind of change; the same for either rank of a run on two processes, and
for kills by the clock. Twenty minutes on two cores; the test suite kills at a few chosen moments only.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate.state import AcceleratorState

HERE = Path(__file__).parent
RESULT = Path(__file__).with_suffix(".json")
CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "os.chmod"}
SECTIONS = {"train": {"num_epochs": 3, "eval_every": 2}, "run": {"trackers": ["tensorboard"]}}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def module(name: str, path: Path) -> ModuleType:
    spec = util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def watch(folder: Path, see: Callable[[str], None]) -> None:
    """Call ``see`` with the kind of every change of the disk below a folder, before it happens."""
    root = str(folder)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in CHANGES or not any(isinstance(a, str | os.PathLike) and root in str(a) for a in args):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & WRITING):
            return
        see(event)

    sys.addaudithook(hook)


def die_at(nth: int) -> Callable[[str], None]:
    count = 0

    def see(event: str) -> None:
        nonlocal count
        count += 1
        if count > nth:
            os.kill(os.getpid(), signal.SIGKILL)

    return see


def child(work: Callable[[], None]) -> int:
    """Run in a fork. Returns the signal that ended it; raises where it failed by itself."""
    number = os.fork()
    if number == 0:
        with contextlib.suppress(BaseException), contextlib.redirect_stderr(io.StringIO()):
            work()
            os._exit(0)
        os._exit(1)
    status = os.waitpid(number, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="kill before every Nth change only")
    parser.add_argument("--pairs", type=int, default=24, help="kills of a run on two processes")
    parser.add_argument("--clock", type=int, default=30, help="kills at a random moment")
    args = parser.parse_args()
    forked, resume = module("forked", HERE / "forked_runs.py"), module("resume", HERE / "test_resume.py")
    fakes = module("fakes", HERE / "conftest.py")
    shared = module("shared", HERE.parents[0] / "conftest.py")
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork, and who waits for them hangs
    folder = Path(tempfile.mkdtemp())
    try:
        pipeline = str(shared.write_pipeline(folder / "pipeline"))

        def train(run: Path, *, again: bool) -> None:
            forked.train(fakes, pipeline, run, resume=again, **SECTIONS)

        forked.save_adapter(
            forked.Policy(forked.load_base(pipeline), forked.PolicyConfig()), folder / "warm-up"
        )
        train(folder / "warm-up-run", again=False)  # what is imported on first use is then in every fork
        assert child(lambda: train(folder / "never", again=False)) == 0
        expected = resume.outcome(folder / "never")
        total: list[str] = []
        events = folder / "events.json"

        def count() -> None:
            watch(folder / "counted", total.append)
            train(folder / "counted", again=False)
            events.write_text(json.dumps(total))

        assert child(count) == 0
        kinds = json.loads(events.read_text())
        tried: Counter[str] = Counter()
        survived: Counter[str] = Counter()
        bad: list[str] = []

        def judge(kind: str, run: Path, what: str) -> None:
            tried[kind] += 1
            same = child(lambda: train(run, again=True)) == 0 and resume.outcome(run) == expected
            survived[kind] += same
            if not same:
                bad.append(what)
            shutil.rmtree(run, ignore_errors=True)

        start = time.perf_counter()
        for nth in range(0, len(kinds), args.every):
            run = folder / "run"

            def first(nth: int = nth, run: Path = run) -> None:
                watch(run, die_at(nth))
                train(run, again=False)

            assert child(first) == signal.SIGKILL, nth
            judge(f"before {kinds[nth]}", run, f"{nth} {kinds[nth]}")
            print(f"{nth + 1}/{len(kinds)} {time.perf_counter() - start:.0f} s, bad: {bad}", flush=True)
        rng = random.Random(0)
        whole = [0.0]
        begin = time.perf_counter()
        assert child(lambda: train(folder / "timed", again=False)) == 0
        whole[0] = time.perf_counter() - begin
        for number in range(args.clock):
            run, moment = folder / "run", rng.uniform(0.05, 1.0) * whole[0]

            def timed(run: Path = run, moment: float = moment) -> None:
                threading.Timer(moment, os.kill, (os.getpid(), signal.SIGKILL)).start()
                train(run, again=False)
                time.sleep(whole[0])  # the clock ends it in any case

            assert child(timed) == signal.SIGKILL
            judge("by the clock", run, f"clock {number}")
        two = pairs(forked, fakes, pipeline, folder, args.pairs, len(kinds), resume.outcome)
        result = {
            "changes of the disk in a run": dict(Counter(kinds)),
            "tried": sum(tried.values()) + two["tried"],
            "survived": sum(survived.values()) + two["survived"],
            "by kind": {kind: [survived[kind], tried[kind]] for kind in sorted(tried)},
            "two processes": two,
            "lost": bad + two["lost"],
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1))
        return 0 if not result["lost"] else 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pairs(
    forked: ModuleType,
    fakes: ModuleType,
    pipeline: str,
    folder: Path,
    number: int,
    changes: int,
    outcome: Any,
) -> dict[str, Any]:
    """Kill either rank of a run on two processes: 0 before changes of the disk, 1 before optimizer steps."""
    sections = {"train": SECTIONS["train"], "run": {"trackers": []}}

    def both(run: Path, again: bool, arms: tuple[Any, Any]) -> list[dict[str, Any]]:
        def work(arm: Any) -> Callable[[Any], None]:
            def go(_: Any) -> None:
                AcceleratorState._reset_state(reset_partial_state=True)  # the parent's is of one process
                arm()
                forked.train(fakes, pipeline, run, resume=again, **sections)

            return go

        logs = [folder / f"log-{rank}" for rank in range(2)]
        return forked.pair([work(arm) for arm in arms], logs)

    nothing = (lambda: None, lambda: None)
    assert all(end["status"] == 0 for end in both(folder / "two", False, nothing))
    expected = outcome(folder / "two")
    tried = survived = 0
    lost, rng = [], random.Random(1)
    for k in range(number):
        run, rank = folder / "two-run", k % 2
        moment = rng.randrange(changes) if rank == 0 else rng.randrange(1, 6)
        arms: list[Any] = [lambda: None, lambda: None]
        if rank == 0:
            arms[0] = lambda run=run, moment=moment: watch(run, die_at(moment))
        else:
            arms[1] = lambda moment=moment: forked.die_before(forked.Updater, "_step", moment)
        ends = both(run, False, (arms[0], arms[1]))
        killed = any(end["signal"] == signal.SIGKILL for end in ends)
        if killed:
            tried += 1
            same = all(e["status"] == 0 for e in both(run, True, nothing)) and outcome(run) == expected
            survived += same
            if not same:
                lost.append(f"rank {rank}, {moment}")
        shutil.rmtree(run, ignore_errors=True)
        print(f"pair {k + 1}/{number}, lost {lost}", flush=True)
    return {"tried": tried, "survived": survived, "lost": lost}


if __name__ == "__main__":
    sys.exit(main())
