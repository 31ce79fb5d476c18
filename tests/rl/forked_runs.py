"""Run as a script: runs that die by SIGKILL at chosen moments and are resumed, and runs on two processes.

    python forked_runs.py CONFTEST PIPELINE FOLDER

The parent process imports and forks, so that one import serves all runs. Prints one JSON line:
{"<run>": <signal that ended it, 0 if it ran to its end>, ...}, and for a run on two processes
{"<run>": [{"signal", "status", "stderr", "seconds"} of each]}; every run's directory is FOLDER/<run>.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

import cxrl.rl.scoring as scoring_module
import cxrl.rl.trainer as trainer_module
import cxrl.storage.checkpoint as checkpoint
from cxrl.command import run_command
from cxrl.config import Config, PolicyConfig
from cxrl.data.prompts import ReportPrompt
from cxrl.errors import CxrlError
from cxrl.models.adapter import save_adapter
from cxrl.models.base import load_base
from cxrl.models.policy import Policy
from cxrl.rl.trainer import Trainer
from cxrl.rl.update import Updater
from cxrl.storage.run_dir import RunDir

TIMEOUT = 20.0
"""Seconds that a process waits for another; on a busy machine one may be late by a few."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fall_silent() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def refuse() -> None:
    raise CxrlError("a reward has no score for sample 3")


def fill_the_disk() -> None:
    raise OSError(28, "No space left on device")


def die_before(owner: Any, name: str, nth: int, end: Any = die) -> None:
    """SIGKILL, or another end, at the nth call of a function, before it does anything."""
    original, calls = getattr(owner, name), 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            end()
        return original(*args, **kwargs)

    setattr(owner, name, wrapper)


def die_in_the_middle_of_a_line() -> None:
    original = RunDir.append_metrics

    def append(self: RunDir, record: Any) -> None:
        if record["epoch"] == 2:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write('{"epoch": 2, "step": ')
            die()
        original(self, record)

    RunDir.append_metrics = append  # type: ignore[method-assign]


MOMENTS = {
    "never": lambda: None,
    "second_step_of_first_epoch": lambda: die_before(Updater, "_step", 2),
    "while_writing_the_first_checkpoint": lambda: die_before(checkpoint, "write_tensors", 3),
    "before_the_rename_of_the_second": lambda: die_before(os, "rename", 2),
    "while_deleting_an_old_one": lambda: die_before(checkpoint, "_delete", 5),
    "before_deleting_the_last_old_one": lambda: die_before(checkpoint, "delete_checkpoint", 3),
    "within_the_third_epoch": lambda: die_before(Updater, "_step", 6),
    "in_a_metrics_line": die_in_the_middle_of_a_line,
    "while_saving_the_adapter": lambda: die_before(trainer_module, "save_adapter", 1),
    "before_the_summary": lambda: die_before(trainer_module, "write_json", 2),
}


def train(conftest: Any, pipeline: str, folder: Path, *, resume: bool, **sections: dict[str, Any]) -> None:
    config = Config.from_dict(
        {
            "model": {"path": pipeline},
            "sampler": {"num_steps": 3, "guidance_scale": 1.0},
            "policy": {"lora_rank": 2, "num_ace_tokens": 2},
            "rewards": {"names": ["posture", "diagnosis"], "weights": [1, 1]},
            "comparison": {"bank_size": 2},
            "optim": {"minibatches": 2},
            "train": {"num_epochs": 4, "prompts_per_epoch": 2, "samples_per_prompt": 2, "eval_every": 2}
            | {"checkpoint_every": 1, "keep_checkpoints": 1, "early_stop_fid": 0},
            "eval": {"num_images": 4, "samples_per_prompt": 2, "bootstrap": 0, "grid_prompts": 1},
            "run": {"trackers": [], "process_timeout": TIMEOUT},
        }
    )
    config = Config.from_dict(sections, config)
    prompts, held_out = (
        [ReportPrompt(i, text, (float(i % 2), 1.0)) for i, text in enumerate(texts)]
        for texts in (conftest.TEXTS, conftest.HELD_OUT[:3])
    )
    rewards = {"posture": conftest.Brightness(), "diagnosis": conftest.LeftSide()}
    Trainer(
        config,
        folder,
        resume=resume,
        rewards=rewards,
        judges=conftest.FakeJudges(),
        prompts=(prompts, held_out),
    ).run()


def fork(*works: Any) -> int:
    """Run each in a child, at once. Returns a signal that ended one; raises when one failed otherwise."""
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            try:
                work()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    if any(os.WIFEXITED(s) and os.WEXITSTATUS(s) for s in statuses):
        raise SystemExit("a run failed")
    return max(os.WTERMSIG(s) if os.WIFSIGNALED(s) else 0 for s in statuses)


def as_process(rank: int, world: int, port: int) -> None:
    """The environment that ``accelerate launch --cpu`` gives a process."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")


def disagree() -> None:
    """This process's weights move by themselves after the third step."""
    original = Updater._step

    def step(self: Updater, *args: Any) -> float:
        result = original(self, *args)
        if self.num_steps == 3:
            with torch.no_grad():
                self.policy.trainable["ace"][0, 0] += 1e-6
        return result

    Updater._step = step  # type: ignore[method-assign]


NOTHING = (lambda: None, lambda: None)
# The run, what befalls process 0 and process 1, and sections of its configuration.
PAIRS: list[tuple[str, tuple[Any, Any], dict[str, Any]]] = [
    ("two_processes", NOTHING, {}),
    ("two_accumulating", NOTHING, {"optim": {"gradient_accumulation": 2, "micro_batch_size": 1}}),
    ("two_in_bfloat16", NOTHING, {"model": {"dtype": "bfloat16"}, "optim": {"on_ratio_mismatch": "warn"}}),
    ("one_killed", (NOTHING[0], lambda: die_before(Updater, "_step", 5)), {}),
    ("one_refuses", (NOTHING[0], lambda: die_before(scoring_module, "score_all", 7, refuse)), {}),
    ("main_refuses", (lambda: die_before(checkpoint, "write_tensors", 8, fill_the_disk), NOTHING[1]), {}),
    ("one_disagrees", (NOTHING[0], disagree), {}),
    (
        "one_silent",
        (NOTHING[0], lambda: die_before(Updater, "_step", 5, fall_silent)),
        {"run": {"process_timeout": 5.0}},
    ),
]


def pair(works: list[Any], logs: list[Path]) -> list[dict[str, Any]]:
    """Run two processes of one run as commands. One that has stopped is killed when the other has ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started, children = time.perf_counter(), []
    for rank, work in enumerate(works):
        child = os.fork()
        if child == 0:
            as_process(rank, 2, port)
            sys.stderr = logs[rank].open("w")
            os._exit(run_command(work, []))
        children.append(child)
    ends: dict[int, dict[str, Any]] = {}
    while len(ends) < 2:
        child, status = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            continue
        ends[child] = {
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            "status": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "seconds": time.perf_counter() - started,
        }
        for other in set(children) - ends.keys():
            state = Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "T":
                os.kill(other, signal.SIGKILL)
    return [ends[c] | {"stderr": log.read_text()} for c, log in zip(children, logs, strict=True)]


def main() -> None:
    spec = importlib.util.spec_from_file_location("fakes", sys.argv[1])
    assert spec is not None
    assert spec.loader is not None
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    pipeline, folder = sys.argv[2], Path(sys.argv[3])
    # The libraries load their parts on first use: here, once, and not in every child.
    save_adapter(Policy(load_base(pipeline), PolicyConfig()), folder / "warm-up")
    signals: dict[str, Any] = {}
    for moment, arm in MOMENTS.items():

        def first(arm: Any = arm, moment: str = moment) -> None:
            arm()
            train(conftest, pipeline, folder / moment, resume=False)

        signals[moment] = fork(first)
        if signals[moment]:
            fork(lambda moment=moment: train(conftest, pipeline, folder / moment, resume=True))

    def on_two(
        run: str, arms: tuple[Any, Any], resume: bool, sections: dict[str, Any]
    ) -> list[dict[str, Any]]:
        def process(arm: Any) -> Any:
            def work(_: Any) -> None:
                arm()
                train(conftest, pipeline, folder / run, resume=resume, **sections)

            return work

        return pair([process(arm) for arm in arms], [folder / f"{run}-{rank}.err" for rank in (0, 1)])

    for run, arms, sections in PAIRS:
        signals[run] = on_two(run, arms, False, sections)
    shutil.copytree(folder / "one_killed", folder / "one_killed_resumed")
    signals["one_killed_resumed"] = on_two("one_killed_resumed", NOTHING, True, {})

    def alone() -> None:
        bfloat16 = next(sections for run, _, sections in PAIRS if run == "two_in_bfloat16")
        train(conftest, pipeline, folder / "one_in_bfloat16", resume=False, **bfloat16)

    signals["one_in_bfloat16"] = fork(alone)
    print(json.dumps(signals))


if __name__ == "__main__":
    main()
