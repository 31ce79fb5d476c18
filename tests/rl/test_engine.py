"""The engine: shares, buckets of gradients, what a launcher may not ask for; and real launchers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import cxrl.rl.engine as module
from cxrl.errors import CxrlError
from cxrl.rl.engine import Engine
from cxrl.storage.checkpoint import checkpoints, load_checkpoint

OPTIONS = ["--preset", "smoke", "--sampler.guidance-scale", "1", "--train.samples-per-prompt", "2"]
OPTIONS += ["--optim.minibatches", "1", "--eval.num-images", "2", "--eval.bootstrap", "0"]
OPTIONS += ["--eval.grid-prompts", "1", "--train.eval-every", "0", "--run.trackers", "none"]
BIN = Path(sys.executable).parent
ACCELERATE = [str(BIN / "accelerate"), "launch", "--cpu", "--num_machines", "1", "--mixed_precision", "no"]
ACCELERATE += ["--num_processes", "2", "--num_cpu_threads_per_process", "1", "--dynamo_backend", "no"]
TORCHRUN = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2"]


def test_shares_cover_everything_once(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    for world in (1, 2, 3, 7):
        for total in (7, 8, 12):
            engine.world = world
            covered: list[int] = []
            for engine.rank in range(world):
                covered += range(total)[engine.share(total)]
            assert covered == list(range(total))


@pytest.mark.parametrize(
    ("sizes", "buckets"),
    [([3, 4, 5, 20, 1], [[3, 4], [5], [20], [1]]), ([10], [[10]]), ([], []), ([5, 5, 5], [[5, 5], [5]])],
)
def test_buckets_are_neighbours(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], buckets: list[list[int]]
) -> None:
    monkeypatch.setattr(module, "BUCKET", 10)
    found = [[t.numel() for t in bucket] for bucket in module._buckets([torch.zeros(n) for n in sizes])]
    assert found == buckets


@pytest.mark.parametrize("name", module._SHARDED)
def test_sharded_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "true")
    with pytest.raises(CxrlError, match=f"{name} is set, but every process holds all weights.*MULTI_GPU"):
        Engine(tmp_path)


def test_what_has_no_effect_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.warns(UserWarning, match="ACCELERATE_MIXED_PRECISION=bf16 has no effect.*--model.dtype"):
        Engine(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    Engine(tmp_path)


def test_processes_that_did_not_come_together_are_refused() -> None:
    module._check_joined(1, 1)
    module._check_joined(3, 3)
    with pytest.raises(CxrlError, match=r"started 2 processes \(WORLD_SIZE\), but 1 came together"):
        module._check_joined(2, 1)


def environment() -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **threads, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_accelerate_launch_takes_the_step_of_one_process(tmp_path: Path) -> None:
    common = ["-m", "cxrl.train", *OPTIONS, "--train.num-epochs", "1", "--run-dir"]
    states = []
    for name, launcher in (("one", [sys.executable]), ("two", [*ACCELERATE, "--main_process_port", "0"])):
        command = [*launcher, *common, str(tmp_path / name)]
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=290, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (path,) = checkpoints(tmp_path / name / "checkpoints")
        states.append(load_checkpoint(path).tensors)
    one, two = states
    moments = [n for n in one["optimizer.safetensors"] if n.endswith("/exp_avg")]
    gradient, other = (torch.cat([t["optimizer.safetensors"][n].flatten() for n in moments]) for t in states)
    assert float((gradient - other).norm() / gradient.norm()) < 1e-6
    for name, value in one["weights.safetensors"].items():
        torch.testing.assert_close(two["weights.safetensors"][name], value, rtol=0, atol=1e-6)


def process_of(rank: int, run: Path) -> int:
    """The number of the process with that rank in a run that a launcher started."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words, variables = ((entry / n).read_bytes().split(b"\0") for n in ("cmdline", "environ"))
        except OSError:
            continue
        if str(run).encode() in words and f"RANK={rank}".encode() in variables:
            return int(entry.name)
    raise AssertionError("there is no such process")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_torchrun_ends_when_a_process_is_killed_in_an_epoch(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [*TORCHRUN, "-m", "cxrl.train", *OPTIONS, "--train.num-epochs", "5000", "--run-dir", str(run)]
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 400
            while not (run / "checkpoints" / "step-000002").is_dir():
                assert launcher.poll() is None, (tmp_path / "log").read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.kill(process_of(1, run), signal.SIGKILL)
            status = launcher.wait(timeout=120)
        finally:
            launcher.kill()
    assert status != 0
    saved = checkpoints(run / "checkpoints")
    load_checkpoint(saved[-1])
    assert not [p for p in saved if not (p / "manifest.json").is_file()]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(len(lines)))
    assert len(lines) >= 2, "and one process wrote them: each epoch is there once"
