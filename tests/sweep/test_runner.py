"""Runs of a sweep: several at once, again after a kill, one that fails, and a folder that is another's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import cxrl.sweep.runner as module
from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.presets import load_preset, load_yaml
from cxrl.sweep.runner import Job, Runner, jobs_of, locked
from cxrl.sweep.variants import Variant, read_variants

TRAIN = """
import json, os, pathlib, sys
args = sys.argv[1:]
folder = pathlib.Path(args[args.index("--run-dir") + 1])
folder.mkdir(parents=True, exist_ok=True)
if "--config" in args:
    (folder / "config.yaml").write_text(pathlib.Path(args[args.index("--config") + 1]).read_text())
print("threads", os.environ["OMP_NUM_THREADS"], "resumed", "--resume" in args, flush=True)
BODY
(folder / "summary.json").write_text(json.dumps({"epochs": 2}))
"""

SWEEP = """
import sys
from pathlib import Path
import cxrl.sweep.runner as module
from cxrl.presets import load_preset
popen = module.subprocess.Popen
module.subprocess.Popen = lambda command, **how: popen([sys.executable, {train!r}, *command[3:]], **how)
job = module.Job("full", 0, Path({folder!r}), load_preset("smoke"))
module.Runner(1, lambda line, done: None).run([job])
"""
POPEN = subprocess.Popen
ROOT = Path(module.__file__).parents[2]


@pytest.fixture
def variants(tmp_path: Path) -> list[Variant]:
    path = tmp_path / "s.yaml"
    path.write_text("- {name: full}\n- {name: no ace, policy: {num_ace_tokens: 0}}\n- {name: same}\n")
    return read_variants(path, load_preset("smoke"))


@pytest.fixture
def trained_by(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Puts a script in the place of ``python -m cxrl.train``."""
    popen = module.subprocess.Popen

    def use(body: str = "") -> None:
        script = tmp_path / "train.py"
        script.write_text(TRAIN.replace("BODY", body))

        def start(command: list[str], **how: object) -> object:
            assert command[1:3] == ["-m", "cxrl.train"]
            return popen([sys.executable, str(script), *command[3:]], **how)

        monkeypatch.setattr(module.subprocess, "Popen", start)

    return use


def quiet(line: str, done: int) -> None:
    pass


def test_every_variant_is_seen_before_the_next_seed(variants: list[Variant], tmp_path: Path) -> None:
    jobs = jobs_of(variants, [3, 4], tmp_path)
    assert [str(job) for job in jobs] == ["full, seed 3", "no ace, seed 3", "full, seed 4", "no ace, seed 4"]
    assert jobs[1].folder == tmp_path / "runs" / "no-ace" / "seed-3"
    assert (jobs[1].config.seed, jobs[1].config.policy.num_ace_tokens) == (3, 0)


def test_all_are_trained_once_and_done_ones_never_again(
    variants: list[Variant], tmp_path: Path, trained_by
) -> None:
    trained_by()
    lines: list[str] = []
    jobs = jobs_of(variants, [0, 1], tmp_path)
    outcome = Runner(2, lambda line, done: lines.append(line)).run(jobs)
    assert set(outcome.seconds) == {str(job) for job in jobs}
    assert all(job.is_done() for job in jobs)
    logs = [job.folder.with_suffix(".log").read_text() for job in jobs]
    assert all(log.count("resumed False") == 1 for log in logs)
    trained_by("raise SystemExit('trained again')")
    again = Runner(1, lambda line, done: lines.append(line)).run(jobs_of(variants, [0, 1], tmp_path))
    assert (again.seconds, again.failed) == ({}, {})
    assert sum("done before" in line for line in lines) == 4


def test_a_run_that_was_begun_is_resumed(variants: list[Variant], tmp_path: Path, trained_by) -> None:
    trained_by("sys.exit(3)")
    jobs = jobs_of(variants, [0], tmp_path)
    outcome = Runner(1, quiet).run(jobs)
    assert set(outcome.failed) == {"full, seed 0", "no ace, seed 0"}, "one that fails stops no other"
    assert "failed with status 3: threads" in outcome.failed["full, seed 0"]
    assert "resumed False (see" in outcome.failed["full, seed 0"]
    trained_by()
    assert Runner(1, quiet).run(jobs_of(variants, [0], tmp_path)).failed == {}
    assert "resumed True" in jobs[0].folder.with_suffix(".log").read_text()


def test_a_folder_of_other_settings_is_refused(variants: list[Variant], tmp_path: Path, trained_by) -> None:
    trained_by()
    Runner(1, quiet).run(jobs_of(variants, [0], tmp_path))
    other = [
        Variant(v.name, v.folder, Config.from_dict({"optim": {"minibatches": 3}}, v.config), {})
        for v in variants
    ]
    with pytest.raises(
        CxrlError, match=r"full/seed-0 has optim\.minibatches 2, this sweep 3: choose another"
    ):
        jobs_of(other, [0], tmp_path)


@pytest.mark.parametrize(("before", "now"), [({"num_ace_tokens": 4}, {"num_ace_tokens": 0})])
def test_a_setting_of_nothing_is_a_setting(before: dict, now: dict, tmp_path: Path, trained_by) -> None:
    """0 and no are values as others are; only batch sizes that were left open follow the run."""

    def of(policy: dict) -> list[Variant]:
        config = Config.from_dict({"policy": policy}, load_preset("smoke"))
        return [Variant("full", "full", config, {})]

    trained_by()
    Runner(1, quiet).run(jobs_of(of(before), [0], tmp_path))
    with pytest.raises(CxrlError, match=r"policy\.num_ace_tokens 4, this sweep 0"):
        jobs_of(of(now), [0], tmp_path)


def test_batch_sizes_that_were_left_open_are_the_runs(tmp_path: Path, trained_by) -> None:
    sizes = {"sampler": {"batch_size": 0}, "optim": {"micro_batch_size": 0}}
    variant = Variant("full", "full", Config.from_dict(sizes, load_preset("smoke")), {})
    trained_by()
    Runner(1, quiet).run(jobs_of([variant], [0], tmp_path))
    config = tmp_path / "runs/full/seed-0/config.yaml"
    found = {"sampler": {"batch_size": 4}, "optim": {"micro_batch_size": 2}}
    config.write_text(Config.from_dict(found, load_yaml(config)).to_yaml())
    assert jobs_of([variant], [0], tmp_path)[0].is_done()


def test_another_list_does_not_take_the_tables(variants: list[Variant], tmp_path: Path, trained_by) -> None:
    trained_by()
    Runner(1, quiet).run(jobs_of(variants, [0], tmp_path))
    with pytest.raises(CxrlError, match=r"runs/no-ace/seed-0 is a finished run of another list"):
        jobs_of(variants[:1], [0], tmp_path)
    (tmp_path / "runs/no-ace/seed-0/summary.json").unlink()
    assert len(jobs_of(variants[:1], [0], tmp_path)) == 1, "a variant that finished nothing may go"


def test_results_of_something_else_stay(variants: list[Variant], tmp_path: Path) -> None:
    (tmp_path / "ablation.md").write_text("mine")
    with pytest.raises(CxrlError, match=r"holds ablation\.md of no sweep"):
        jobs_of(variants, [0], tmp_path)


def test_a_process_that_outlived_its_sweep_is_waited_for(
    variants: list[Variant], tmp_path: Path, trained_by
) -> None:
    """After ``kill -9`` of the sweep its children go on; the same command takes over what they finish."""
    trained_by("import time; time.sleep(1.5)")
    (job,) = jobs_of(variants[:1], [0], tmp_path)
    script = tmp_path / "sweep.py"
    script.write_text(SWEEP.format(train=str(tmp_path / "train.py"), folder=str(job.folder)))
    parent = POPEN([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    log = job.folder.with_suffix(".log")
    while not (log.exists() and b"threads" in log.read_bytes()):
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    lines: list[str] = []
    trained_by("raise SystemExit('begun twice')")
    outcome = Runner(1, lambda line, done: lines.append(line)).run([job])
    assert (outcome.seconds, outcome.failed) == ({}, {})
    assert [line.partition(": ")[2] for line in lines] == [
        "its process outlived an earlier sweep; waiting for it",
        "done by a process that was still at work",
    ]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("os.kill(os.getpid(), 9)", "was ended by signal SIGKILL: threads"),
        ("os._exit(0)", "ended without a result: threads"),
        ("sys.exit('error: first\\nerror: the reason')", "failed with status 1: error: the reason"),
    ],
)
def test_how_a_run_ended_is_told(
    body: str, told: str, variants: list[Variant], tmp_path: Path, trained_by
) -> None:
    trained_by(body)
    lines: list[str] = []
    (job,) = jobs_of(variants[:1], [0], tmp_path)
    job.folder.parent.mkdir(parents=True)
    job.folder.with_suffix(".log").write_text("error: of an earlier process\n")
    outcome = Runner(1, lambda line, done: lines.append(line)).run([job])
    assert told in outcome.failed["full, seed 0"]
    assert "earlier process" not in "".join(lines), "only this process's lines"
    assert lines[-1].startswith("warning: full, seed 0 ")


def test_a_stop_ends_the_children(variants: list[Variant], tmp_path: Path, trained_by) -> None:
    trained_by("import time; time.sleep(60)")
    jobs = jobs_of(variants, [0], tmp_path)
    runner, started = Runner(2, quiet), time.monotonic()

    def stop() -> None:
        while len(runner._children) < 2:
            time.sleep(0.01)
        runner._stop()

    threading.Thread(target=stop).start()
    outcome = runner.run(jobs)
    assert time.monotonic() - started < 30
    assert (outcome.seconds, outcome.failed) == ({}, {})
    assert not any(job.is_done() for job in jobs)


def test_two_cannot_work_on_one_sweep(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "sweep"),
        pytest.raises(CxrlError, match="another process works on this sweep"),
        locked(tmp_path / "sweep"),
    ):
        pass
    with locked(tmp_path / "sweep"):
        pass


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    job = Job("full", 0, tmp_path, Config())
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert not job.is_done()
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(CxrlError, match=r"summary\.json"):
        job.is_done()
    (tmp_path / "summary.json").write_text(json.dumps({"epochs": 2}))
    assert job.is_done()
