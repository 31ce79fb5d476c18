"""Whose a run directory is: who may read it, who may write to it, and what is never touched."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.presets import load_yaml
from cxrl.storage import layout
from cxrl.storage.checkpoint import Checkpoint, checkpoints, save_checkpoint
from cxrl.storage.run_dir import RunDir, check_settings, settings


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("data", "private"),
    [
        ({"source": "mimic_cxr", "root": "x"}, True),
        ({"source": "mimic_cxr", "root": "x", "restricted": "no"}, False),
        ({"source": "openi"}, False),
        ({"source": "openi", "restricted": "yes"}, True),
        ({}, False),
    ],
)
def test_restricted_data_makes_private_run_directories(
    tmp_path: Path, data: dict[str, str], private: bool
) -> None:
    config = Config.from_dict({"data": data})
    old = tmp_path / "old"
    old.mkdir(mode=0o755)
    above = mode(tmp_path)
    for path in (tmp_path / "deep" / "deeper" / "new", old):
        RunDir(path).claim(config, resume=False, overwrite=False)
        for folder in (path, *(p for p in path.parents if p.is_relative_to(tmp_path) and p != tmp_path)):
            assert (mode(folder) == 0o700) == private, folder
        for inside in path.rglob("*"):
            assert (mode(inside) & 0o077 == 0) == private, inside
    assert mode(tmp_path) == above, "a folder that was there keeps its mode"


CONFIG = Config()
FLAGS = ({}, {"overwrite": True}, {"resume": True})
NAMES = (*layout.FILES, *layout.FOLDERS)


def claim(path: Path, config: Config = CONFIG, **flags: bool) -> RunDir:
    """Claim a directory and let go of it."""
    run = RunDir(path)
    run.claim(config, **{"resume": False, "overwrite": False, **flags})
    run.release()
    return run


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def finished(path: Path) -> RunDir:
    """A directory with one of everything that a run writes."""
    run = claim(path)
    (path / layout.METRICS).write_text('{"epoch": 0}\n{"epoch": 1}\n')
    results = (layout.SUMMARY, layout.SCORES, layout.GALLERY, layout.HEADROOM)
    for name in (layout.BOUNDS, layout.PROVENANCE, *results):
        (path / name).write_text('{"epochs": 2}')
    (run.samples / layout.grid_name(2)).write_bytes(b"x")
    for name in (layout.RESULT_GRID, "epoch-000001-kept.png"):  # the latter is an earlier version's
        (run.samples / name).write_bytes(b"x")
    tensors = {name: {} for name in layout.CHECKPOINT_FILES if name.endswith(".safetensors")}
    for step in (4, 8):
        save_checkpoint(run.checkpoints, Checkpoint(tensors, {}, {}), step=step, keep=2)
    run.adapter.mkdir()
    for name in layout.ADAPTER_FILES:
        (run.adapter / name).write_text('{"epochs": 2}')
    (path / layout.LOGS / "train").mkdir()
    (path / layout.LOGS / "train" / "events.out.tfevents.1.host.2.3").write_bytes(b"x")
    return run


def test_a_folder_of_others_is_refused_whatever_it_holds(tmp_path: Path) -> None:
    """Every subset of our names, filled with foreign bytes, with every flag: nothing changes."""
    for number in range(1, 2 ** len(NAMES)):
        folder = tmp_path / str(number)
        folder.mkdir()
        names = [name for k, name in enumerate(NAMES) if number >> k & 1]
        for name in names:
            if name in layout.FOLDERS:
                (folder / name).mkdir()
                (folder / name / "step-000002").mkdir()
                (folder / name / "step-000002" / "weights.safetensors").write_bytes(b"mine")
                (folder / name / "epoch-000001.png").write_bytes(b"mine")
            else:
                (folder / name).write_bytes(b"mine: 1")
        before = content(folder)
        for flags in FLAGS:
            with pytest.raises(CxrlError, match=r"nothing .*was touched") as error:
                claim(folder, **flags)
            assert "--run-dir" in str(error.value)
            assert layout.MARKER in names or names[0] in str(error.value)
        assert content(folder) == before


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("name", NAMES)
def test_a_run_whose_file_became_something_else_is_refused(
    tmp_path: Path, name: str, flags: dict[str, bool]
) -> None:
    finished(tmp_path)
    if name in layout.FOLDERS:
        shutil.rmtree(tmp_path / name)
        (tmp_path / name).write_text("a file in a folder's place")
    else:
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
    before = content(tmp_path)
    with pytest.raises(CxrlError, match=r"nothing .*was touched"):
        claim(tmp_path, **flags)
    assert content(tmp_path) == before


@pytest.mark.parametrize("text", ["not: [yaml", "name: a stranger's\n", "train: {num_epochs: 0}", "- a\n"])
def test_a_run_with_a_strangers_configuration_is_refused(tmp_path: Path, text: str) -> None:
    finished(tmp_path)
    (tmp_path / layout.CONFIG).write_text(text)
    before = content(tmp_path)
    for flags in FLAGS:
        with pytest.raises(CxrlError, match=r"config.yaml does not load, so nothing was touched"):
            claim(tmp_path, **flags)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "marker",
    [
        "",
        "{}",
        "[]",
        '{"format": 1}',
        '{"format": 1, "run": "x"}',
        '{"format": 2, "run": "' + "0" * 32 + '"}',
    ],
)
def test_a_marker_that_we_did_not_write_is_none(tmp_path: Path, marker: str) -> None:
    finished(tmp_path)
    (tmp_path / layout.MARKER).write_text(marker)
    before = content(tmp_path)
    for flags in FLAGS:
        with pytest.raises(CxrlError, match="not written by this version of cxrl"):
            claim(tmp_path, **flags)
    assert content(tmp_path) == before


def test_overwriting_deletes_what_runs_write_and_nothing_else(tmp_path: Path) -> None:
    run = finished(tmp_path)
    clean = set(content(tmp_path))
    mine = {
        "notes.txt",
        "checkpoints/step-000002-keep/weights.safetensors",
        "checkpoints/notes.txt",
        "samples/epoch-1.png",
        "samples/epoch-000001.png.bak",
        "adapter/README.md",  # not a card of ours
        "logs/train/hparams.yml",
        "logs/wandb/run.log",
    }
    for name in mine:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    assert claim(tmp_path, overwrite=True).run_id == run.run_id
    left = {name for name, data in content(tmp_path).items() if (tmp_path / name).is_file()}
    assert left == mine | {layout.MARKER, layout.CONFIG}
    assert all((tmp_path / name).read_text() == "mine" for name in mine)
    assert {layout.CHECKPOINTS, layout.SAMPLES, layout.LOGS} <= clean


def test_a_kill_while_overwriting_leaves_a_run_that_can_be_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path / "whole")
    for nth in range(60):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / str(nth))
        calls = 0

        def die(*args: Any, name: str, original: Any, nth: int = nth, **kwargs: Any) -> Any:
            nonlocal calls
            if calls == nth:
                raise KeyboardInterrupt
            calls += 1
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: None)
            for name in ("unlink", "rmdir", "rename", "replace"):
                patch.setattr(os, name, functools.partial(die, name=name, original=getattr(os, name)))
            try:
                claim(folder, overwrite=True)
                died = False
            except KeyboardInterrupt:
                died = True
        claim(folder, overwrite=True)
        assert not checkpoints(folder / layout.CHECKPOINTS)
        assert not list(folder.rglob(f"{layout.PARTIAL}*"))
    assert not died, "every event was met"


def test_a_run_that_completed_nothing_is_replaced_without_a_flag(tmp_path: Path) -> None:
    claim(tmp_path)
    other = Config.from_dict({"seed": 7})
    claim(tmp_path, other)
    assert load_yaml(tmp_path / layout.CONFIG) == other
    (tmp_path / layout.METRICS).write_text('{"epoch": 0}\n')
    with pytest.raises(CxrlError, match="already holds a run; go on with --resume"):
        claim(tmp_path)


def test_only_one_process_works_on_a_run(tmp_path: Path) -> None:
    first = RunDir(tmp_path)
    first.claim(CONFIG, resume=False, overwrite=False)
    before = content(tmp_path)
    for flags in FLAGS:
        for way in (RunDir(tmp_path).check, RunDir(tmp_path).claim):
            with pytest.raises(CxrlError, match=f"another process is working on the run in {tmp_path}"):
                way(CONFIG, **{"resume": False, "overwrite": False, **flags})
    assert content(tmp_path) == before
    first.release()
    claim(tmp_path, resume=True)


def test_the_system_lets_go_of_the_run_of_a_killed_process(tmp_path: Path) -> None:
    program = (
        "import os, sys, signal; from cxrl.config import Config; from cxrl.storage.run_dir import RunDir\n"
        "RunDir(sys.argv[1]).claim(Config(), resume=False, overwrite=False)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    claim(tmp_path, resume=True)


def test_two_processes_that_start_at_once_make_one_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def another_is_quicker(source: Any, target: Any) -> None:
        other = RunDir(tmp_path)
        monkeypatch.setattr(os, "link", link)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            other.claim(CONFIG, resume=False, overwrite=False)
        others.append(other)
        link(source, target)

    others: list[RunDir] = []
    monkeypatch.setattr(os, "link", another_is_quicker)
    with pytest.raises(CxrlError, match="another process is working"):
        claim(tmp_path)
    (other,) = others
    assert json.loads((tmp_path / layout.MARKER).read_text())["run"] == other.run_id
    other.release()


def test_roll_back_makes_files_of_later_epochs_disappear(tmp_path: Path) -> None:
    run = finished(tmp_path)
    (run.checkpoints / "step-000004-keep").mkdir()
    assert run.roll_back(2) == [f"{run.checkpoints}: no checkpoints, passed over: step-000004-keep"]
    assert (tmp_path / layout.SUMMARY).exists()
    run.roll_back(1)
    assert (tmp_path / layout.METRICS).read_text() == '{"epoch": 0}\n'
    assert not (tmp_path / layout.SUMMARY).exists()
    assert not (run.adapter / layout.ADAPTER_FILE).exists()


def test_a_line_that_cannot_be_added_names_the_file(tmp_path: Path, full_device: Path) -> None:
    run = claim(tmp_path)
    (tmp_path / layout.METRICS).symlink_to(full_device)
    with pytest.raises(CxrlError, match=r"cannot write .*metrics.jsonl: No space left on device; make room"):
        run.append_metrics({"epoch": 0})


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 3), ("optim.clip_range", 0.5), ("comparison.center", "batch")]
)
def test_a_setting_that_decides_what_is_learned_stays(tmp_path: Path, name: str, value: Any) -> None:
    finished(tmp_path)
    section, _, field = name.rpartition(".")
    other = Config.from_dict({section: {field: value}} if section else {field: value})
    with pytest.raises(CxrlError, match=rf"{name}: .*{value}.*was started with"):
        claim(tmp_path, other, resume=True)
    claim(tmp_path, Config.from_dict({"train": {"num_epochs": 7}, "eval": {"num_images": 9}}), resume=True)


def test_more_epochs_are_another_schedule(tmp_path: Path) -> None:
    """A run whose rates fall to the end of its epochs has another past with more of them."""
    falling = {"optim": {"schedule": "cosine"}}
    claim(tmp_path, Config.from_dict(falling | {"train": {"num_epochs": 6}})).write_config(
        Config.from_dict(falling | {"train": {"num_epochs": 6}})
    )
    (tmp_path / layout.METRICS).write_text("{}\n")
    longer = Config.from_dict(falling | {"train": {"num_epochs": 7}})
    with pytest.raises(CxrlError, match=r"train.num_epochs: 7, .*was started with 6"):
        claim(tmp_path, longer, resume=True)


def test_an_option_that_was_not_there_yet_had_its_default(tmp_path: Path) -> None:
    """A checkpoint of an earlier version goes on, unless the new option is given another value."""
    saved = settings(CONFIG)
    for name in ("optim.schedule", "optim.step_weight"):
        del saved[name]
    check_settings(saved, CONFIG, tmp_path)
    for name, value in (("schedule", "linear"), ("step_weight", 0.5)):
        other = Config.from_dict({"optim": {name: value}})
        with pytest.raises(CxrlError, match=rf"optim.{name}: .*{value}.*was started with"):
            check_settings(saved, other, tmp_path)
    with pytest.raises(CxrlError, match=r"optim.gone: None, but .*was started with 3"):
        check_settings(saved | {"optim.gone": 3}, CONFIG, tmp_path)


def test_a_folder_of_others_is_not_closed_to_them(tmp_path: Path) -> None:
    config = Config.from_dict({"data": {"source": "mimic_cxr", "root": "x"}})
    (tmp_path / "theirs.txt").write_text("x")
    tmp_path.chmod(0o755)
    with pytest.raises(CxrlError, match="holds other files and others can read it"):
        claim(tmp_path, config)
    assert mode(tmp_path) == 0o755
    assert [p.name for p in tmp_path.iterdir()] == ["theirs.txt"]
    tmp_path.chmod(0o700)
    claim(tmp_path, config)


def test_event_files_of_others_stay(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    other = tmp_path / "run" / layout.LOGS / "other" / "events.out.tfevents.9.host.2.3"
    other.parent.mkdir()
    other.write_bytes(b"mine")
    claim(run.path, overwrite=True)
    assert other.read_bytes() == b"mine"
    shutil.rmtree(run.path / layout.LOGS)
    (tmp_path / "shared" / "train").mkdir(parents=True)
    (tmp_path / "shared" / "train" / other.name).write_bytes(b"mine")
    (run.path / layout.LOGS).symlink_to(tmp_path / "shared")
    claim(run.path, overwrite=True)
    assert (tmp_path / "shared" / "train" / other.name).read_bytes() == b"mine"


@pytest.mark.parametrize("line", ['{"epoch": Infinity}', '{"epoch": 1e999}', "[" * 5000, '{"epoch": []}'])
def test_a_damaged_line_counts_as_the_latest(tmp_path: Path, line: str) -> None:
    run = claim(tmp_path)
    (tmp_path / layout.METRICS).write_text(f'{{"epoch": 0}}\n{line}\n')
    run.roll_back(5)
    assert (tmp_path / layout.METRICS).read_text() == '{"epoch": 0}\n'


def test_what_a_live_process_writes_beside_a_run_stays(tmp_path: Path) -> None:
    finished(tmp_path)
    names = {pid: layout.temporary_name("report.html", pid) for pid in (os.getpid(), os.getppid(), 2**30)}
    for name in names.values():
        (tmp_path / name).write_text("half")
    claim(tmp_path, resume=True)
    assert {pid for pid, name in names.items() if (tmp_path / name).exists()} == {os.getppid()}
