"""What a run knows goes to the disk and comes back, and is refused where it belongs to something else."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import cxrl.rl.trainer as trainer_module
from cxrl.config import Config
from cxrl.data.prompts import ReportPrompt
from cxrl.errors import CxrlError
from cxrl.rl.anchor import AnchorBank
from cxrl.rl.engine import Engine
from cxrl.rl.limits import Limits
from cxrl.rl.progress import Progress
from cxrl.rl.reopen import load_policy, open_run
from cxrl.rl.trainer import Trainer
from cxrl.rl.update import Updater
from cxrl.storage.checkpoint import checkpoints, load_checkpoint
from cxrl.storage.reading import describe_file

Make = Callable[..., Config]


class Messages(Progress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


class Killed(BaseException):
    pass


def kill(*_: Any, **__: Any) -> None:
    raise Killed


def start(config: Config, run: Path, fakes: dict[str, Any], **flags: Any) -> dict[str, Any]:
    return Trainer(config, run, **flags, **fakes).run()


@pytest.fixture
def config(make_config: Make) -> Config:
    return make_config(train={"num_epochs": 2, "eval_every": 1}, policy={"ema_decay": 0.0})


FINISHED: dict[str, Path] = {}


@pytest.fixture
def run(
    config: Config, fakes: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run of two epochs, trained once: a test gets a copy."""
    if "run" not in FINISHED:
        FINISHED["run"] = tmp_path_factory.mktemp("finished") / "run"
        start(config, FINISHED["run"], fakes)
    return shutil.copytree(FINISHED["run"], tmp_path / "run")


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the state of a checkpoint by hand, with a manifest that agrees."""
    state = json.loads((path / "state.json").read_text())
    edit(state)
    (path / "state.json").write_text(json.dumps(state))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["state.json"] = describe_file(path / "state.json")
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("", "seed", 5),
        ("optim", "lora_learning_rate", 0.5),
        ("comparison", "center", "batch"),
        ("rewards", "weights", [1.0, 2.0]),
        ("sampler", "eta", 0.5),
        ("data", "num_prompts", 7),
    ],
)
def test_a_configuration_edited_in_the_folder_is_refused(
    config: Config, run: Path, fakes: dict[str, Any], section: str, name: str, value: Any
) -> None:
    path = run / "config.yaml"
    data = yaml.safe_load(path.read_text())
    (data[section] if section else data)[name] = value
    path.write_text(yaml.safe_dump(data))
    edited = Config.from_dict(data)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    full = f"{section}.{name}".lstrip(".")
    with pytest.raises(CxrlError, match=rf"{full}: .*step-000004 was started with"):
        start(edited, run, fakes, resume=True)
    with pytest.raises(CxrlError, match=rf"{full}: .*config.yaml was started with"):
        start(config, run, fakes, resume=True)
    (run / "config.yaml").write_text(config.to_yaml())
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}.keys() == before.keys()
    start(config, run, fakes, resume=True)


def test_the_checkpoints_of_another_run_are_refused(
    config: Config, run: Path, fakes: dict[str, Any], tmp_path: Path
) -> None:
    start(config, tmp_path / "other", fakes)
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", run / "checkpoints")
    with pytest.raises(CxrlError, match=f"step-000004 belongs to another run than {run}"):
        start(config, run, fakes, resume=True)
    shutil.copytree(tmp_path / "other", tmp_path / "copy")  # a whole folder is the same run elsewhere
    start(config, tmp_path / "copy", fakes, resume=True)


@pytest.mark.parametrize("change_of", ["text", "labels"])
def test_other_reports_are_refused(config: Config, run: Path, fakes: dict[str, Any], change_of: str) -> None:
    training, held_out = fakes["prompts"]
    value = {"text": "lung lung", "labels": (0.0, 0.0)}[change_of]
    fakes["prompts"] = ([*training[:-1], dataclasses.replace(training[-1], **{change_of: value})], held_out)
    with pytest.raises(CxrlError, match="the training reports or their labels are others"):
        start(config, run, fakes, resume=True)


def test_other_reward_files_are_refused_and_other_judges_told(
    config: Config, run: Path, fakes: dict[str, Any]
) -> None:
    path = checkpoints(run / "checkpoints")[-1]
    change(path, lambda state: state["models"].update({"eval.posture": "0" * 64}))
    progress = Messages()
    start(config, run, fakes, resume=True, progress=progress)
    assert "warning: other judges than before: eval.posture" in progress.texts
    change(path, lambda state: state["models"].update({"rewards.posture": "0" * 64}))
    with pytest.raises(CxrlError, match=r"rewards.posture: its files are others than when the run"):
        start(config, run, fakes, resume=True)


def test_a_base_that_has_changed_is_refused_and_the_part_is_named(
    make_config: Make, fakes: dict[str, Any], tiny_pipeline: Path, tmp_path: Path
) -> None:
    """Also by what has no weights: neither a resumed run nor its policy may draw other pixels."""
    base = shutil.copytree(tiny_pipeline, tmp_path / "base")
    run = tmp_path / "run"
    config = make_config(model={"path": str(base)}, train={"num_epochs": 1})
    start(config, run, fakes)
    scheduler, vae = (base / part for part in ("scheduler/scheduler_config.json", "vae/config.json"))
    for path, name, part in ((scheduler, "beta_end", "scheduler"), (vae, "scaling_factor", "vae")):
        before = path.read_text()
        settings = json.loads(before)
        path.write_text(json.dumps({**settings, name: settings.get(name, 0.02) * 1.5}))
        words = f"was trained from another base than {base}: its {part} differs; "
        with pytest.raises(CxrlError, match=f"step-000002: {words}"):
            start(make_config(model={"path": str(base)}, train={"num_epochs": 2}), run, fakes, resume=True)
        with pytest.raises(CxrlError, match=f"adapter: {words}"):
            load_policy(run)
        path.write_text(before)
    load_policy(run)
    checkpoint = checkpoints(run / "checkpoints")[-1]
    about = json.loads((checkpoint / "policy.json").read_text())
    (checkpoint / "policy.json").write_text(json.dumps({**about, "base_fingerprint": "0" * 64}))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["policy.json"] = describe_file(checkpoint / "policy.json")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CxrlError, match="step-000002: was written by an earlier version of cxrl"):
        start(config, run, fakes, resume=True)


NAMES = (
    "format", "run", "epoch", "kept_epoch", "wall_seconds", "step", "ema_updates", "good_epoch", "strikes",
    "stopped_early", "limits", "settings", "prompts", "models",
)  # fmt: skip


def test_a_damaged_state_is_named(config: Config, run: Path, fakes: dict[str, Any]) -> None:
    path = checkpoints(run / "checkpoints")[-1]
    sound = (path / "state.json").read_text()
    trainer = Trainer(config, run, resume=True, **fakes)
    for name, value in itertools.product(NAMES, (None, [], "x" * 9)):
        if (name, value) == ("stopped_early", "x" * 9):
            continue  # a reason like any other
        change(path, lambda state, n=name, v=value: state.pop(n) if v is None else state.update({n: v}))
        # Whose a checkpoint is can be told once the folder is claimed.
        load = trainer.run if name == "run" else functools.partial(trainer.state.load, trainer.run_dir)
        with pytest.raises(CxrlError, match=rf"{path}"):
            load()
        (path / "state.json").write_text(sound)


def test_a_start_that_fails_leaves_the_folder_to_the_next(
    config: Config, make_config: Make, fakes: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "deep" / "run"
    wrong = [
        (make_config(model={"path": str(tmp_path / "nowhere")}), {}),
        (
            make_config(train={"prompts_per_epoch": 8, "num_epochs": 1}),
            {"prompts": (fakes["prompts"][0][:3],) * 2},
        ),
        (config, {"prompts": ([], [])}),
    ]
    for bad, changes in wrong:
        with pytest.raises(CxrlError):
            start(bad, run, {**fakes, **changes})
        assert not run.parent.exists()
    fakes_that_fail = {**fakes, "rewards": {**fakes["rewards"], "posture": type("R", (), {"score": kill})()}}
    with pytest.raises(Killed):  # within the first epoch: nothing is lost yet
        start(config, run, fakes_that_fail)
    start(config, run, fakes)


def test_a_run_that_was_stopped_goes_on_when_the_limit_is_lifted(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path
) -> None:
    train = {"num_epochs": 4, "eval_every": 1, "patience": 1, "early_stop_fid": 1e-9}
    run = tmp_path / "run"
    stopped = start(make_config(train=train), run, fakes)
    assert (stopped["epochs"], stopped["kept_epoch"]) == (1, 0)
    again = start(make_config(train=train), run, fakes, resume=True)
    assert (again["epochs"], again["kept_epoch"], again["policy"]) == (1, 0, stopped["policy"])
    lifted = make_config(train=train | {"early_stop_fid": 0.0})
    done = start(lifted, run, fakes, resume=True)
    assert (done["epochs"], done["kept_epoch"], done["stopped_early"]) == (4, 4, "")
    whole = start(lifted, tmp_path / "whole", fakes)
    assert done["policy"] == whole["policy"], "the stop left no trace in what was learned"


def test_weights_that_were_put_back_are_in_the_checkpoint_too(
    config: Config, fakes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = iter(["", "diversity is low"])
    monkeypatch.setattr(Limits, "problems", lambda *_: next(problems))
    monkeypatch.setattr(trainer_module, "save_adapter", kill)
    with pytest.raises(Killed):
        start(config, tmp_path / "run", fakes)
    saved = load_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert (saved.state["epoch"], saved.state["kept_epoch"]) == (2, 1)
    policy = load_policy(tmp_path / "run")
    for name, p in policy.trainable.items():
        assert torch.equal(p, saved.tensors["good.safetensors"][name])
        assert not torch.equal(p, saved.tensors["ema.safetensors"][name])


@pytest.mark.parametrize("train", ["lora", "full", "none"])
def test_a_resumed_run_is_the_whole_one_whatever_learns(
    make_config: Make, tmp_path: Path, fakes: dict[str, Any], train: str
) -> None:
    """The UNet's weights are channels last, which a file does not keep, and AdamW must see its moments so."""

    def made(epochs: int) -> Config:
        return make_config(
            policy={"train": train},
            train={"num_epochs": epochs, "eval_every": 1},
            optim={"lora_learning_rate": 5e-3, "ace_learning_rate": 2e-2},
        )

    start(made(4), tmp_path / "whole", fakes)
    start(made(2), tmp_path / "run", fakes)
    start(made(4), tmp_path / "run", fakes, resume=True)
    wall = re.compile(r'"(seconds|wall_seconds|eta_seconds)": (\{[^}]*\}|[^,}]*)')
    whole, resumed = (
        [wall.sub("", line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "run")
    )
    assert whole == resumed
    last = [load_checkpoint(checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("whole", "run")]
    for file, tensors in last[0].tensors.items():
        assert tensors.keys() == last[1].tensors[file].keys()
        assert all(torch.equal(tensor, last[1].tensors[file][name]) for name, tensor in tensors.items()), file


def test_the_result_is_drawn_with_the_weights_that_are_kept(
    config: Config, fakes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = iter(["", "diversity is low"])
    monkeypatch.setattr(Limits, "problems", lambda *_: next(problems))
    start(config, tmp_path / "run", fakes)
    pictures = {p.name: p.read_bytes() for p in (tmp_path / "run" / "samples").iterdir()}
    assert set(pictures) == {"epoch-000001.png", "epoch-000002.png", "result.png"}
    pixels = {name: Image.open(tmp_path / "run" / "samples" / name).tobytes() for name in pictures}
    assert pixels["epoch-000001.png"] != pixels["epoch-000002.png"]
    monkeypatch.undo()
    short = Config.from_dict({"train": {"num_epochs": 1}}, config)
    start(short, tmp_path / "short", fakes)
    assert Image.open(tmp_path / "short" / "samples" / "result.png").tobytes() == pixels["result.png"]


def test_a_finished_run_that_is_extended_and_killed_does_not_contradict_itself(
    config: Config, make_config: Make, run: Path, fakes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = {n: p.clone() for n, p in load_policy(run).trainable.items()}
    longer = make_config(train={"num_epochs": 4, "eval_every": 1}, policy={"ema_decay": 0.0})
    monkeypatch.setattr(Trainer, "_finish", kill)
    with pytest.raises(Killed):
        start(longer, run, fakes, resume=True)
    about = json.loads((run / "adapter" / "adapter.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert about["epochs"] == summary["epochs"] == 2
    assert about["sampler"] == {
        "num_steps": 3,
        "eta": 1.0,
        "guidance_scale": 1.0,
        "timestep_spacing": "trailing",
    }
    newest = load_policy(run)
    saved = load_checkpoint(checkpoints(run / "checkpoints")[-1])
    assert saved.state["epoch"] == 4
    assert all(torch.equal(p, saved.tensors["ema.safetensors"][n]) for n, p in newest.trainable.items())
    assert not all(torch.equal(p, finished[n]) for n, p in newest.trainable.items())
    monkeypatch.undo()
    done = start(longer, run, fakes, resume=True)
    assert done["epochs"] == json.loads((run / "adapter" / "adapter.json").read_text())["epochs"] == 4
    # And back: without the later checkpoints, neither summary nor adapter speaks of epochs yet to come.
    for path in checkpoints(run / "checkpoints")[1:]:
        shutil.rmtree(path)
    monkeypatch.setattr(Updater, "update", kill)
    with pytest.raises(Killed):
        start(longer, run, fakes, resume=True)
    assert not (run / "summary.json").exists()
    assert not (run / "adapter" / "adapter.json").exists()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == checkpoints_epoch(run)
    load_policy(run)


def checkpoints_epoch(run: Path) -> int:
    return load_checkpoint(checkpoints(run / "checkpoints")[-1]).state["epoch"]


def test_tensorboard_shows_every_epoch_once(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(
        run={"trackers": ["tensorboard"]}, train={"num_epochs": 4, "checkpoint_every": 2, "eval_every": 0}
    )
    update, calls = Updater.update, 0

    def dies_in_the_fourth(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return kill() if calls == 4 else update(*args, **kwargs)

    monkeypatch.setattr(Updater, "update", dies_in_the_fourth)
    with pytest.raises(Killed):
        start(config, tmp_path / "run", fakes)
    monkeypatch.undo()
    start(config, tmp_path / "run", fakes, resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "logs" / "train"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_follow_the_umask(
    config: Config, fakes: dict[str, Any], tmp_path: Path, mask: int, mode: int
) -> None:
    before = os.umask(mask)
    try:
        start(config, tmp_path / "run", fakes)
    finally:
        os.umask(before)
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert len(files) > 15
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {mode}


def test_a_stray_folder_among_the_checkpoints_is_named_once(
    config: Config, make_config: Make, run: Path, fakes: dict[str, Any]
) -> None:
    shutil.copytree(run / "checkpoints" / "step-000004", run / "checkpoints" / "step-000004-keep")
    progress = Messages()
    longer = make_config(train={"num_epochs": 3, "eval_every": 1}, policy={"ema_decay": 0.0})
    start(longer, run, fakes, resume=True, progress=progress)
    assert [t for t in progress.texts if "step-000004-keep" in t] == [
        f"{run / 'checkpoints'}: no checkpoints, passed over: step-000004-keep"
    ]
    load_checkpoint(run / "checkpoints" / "step-000004-keep")
    start(longer, run, fakes, resume=True)


def test_the_units_are_those_of_the_first_rollout(
    config: Config, make_config: Make, fakes: dict[str, Any], tmp_path: Path
) -> None:
    one = Trainer(make_config(train={"num_epochs": 1}), tmp_path / "one", **fakes)
    one.run()
    resumed = Trainer(make_config(train={"num_epochs": 2}), tmp_path / "one", resume=True, **fakes)
    resumed.run()
    whole = Trainer(make_config(train={"num_epochs": 2}), tmp_path / "two", **fakes)
    whole.run()
    for trainer in (resumed, whole):
        for name in ("mean", "std"):
            assert torch.equal(getattr(trainer.state.units, name), getattr(one.state.units, name))


def test_a_finished_run_without_checkpoints_is_not_started_again(
    config: Config, run: Path, fakes: dict[str, Any]
) -> None:
    shutil.rmtree(run / "checkpoints")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(CxrlError, match="holds a finished run without checkpoints"):
        start(config, run, fakes, resume=True)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_sampler_edited_in_the_folder_draws_nothing(config: Config, run: Path) -> None:
    edited = Config.from_dict({"sampler": {"num_steps": 2}}, config)
    (run / "config.yaml").write_text(edited.to_yaml())
    with pytest.raises(
        CxrlError, match=r"sampler.num_steps: 2 in config.yaml, but .*adapter was trained with 3"
    ):
        open_run(run, Engine(run))
    shutil.rmtree(run / "adapter")
    with pytest.raises(
        CxrlError, match=r"sampler.num_steps: 2 in config.yaml, but .*step-000004 was trained"
    ):
        open_run(run, Engine(run))


def test_a_refused_resume_leaves_the_configuration(
    config: Config, make_config: Make, run: Path, fakes: dict[str, Any]
) -> None:
    path, before = checkpoints(run / "checkpoints")[-1], (run / "config.yaml").read_text()
    change(path, lambda state: state.update({"run": "0" * 32}))
    longer = make_config(train={"num_epochs": 9, "eval_every": 1}, policy={"ema_decay": 0.0})
    with pytest.raises(CxrlError, match="belongs to another run"):
        start(longer, run, fakes, resume=True)
    assert (run / "config.yaml").read_text() == before


def test_weights_of_the_last_epoch_are_the_last_within_limits(
    config: Config, make_config: Make, fakes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run in two goes keeps what a run in one would."""
    start(config, tmp_path / "run", fakes)
    saved = load_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert saved.state["good_epoch"] == 2
    monkeypatch.setattr(Limits, "problems", lambda *_: "diversity is low")
    longer = make_config(train={"num_epochs": 3, "eval_every": 0}, policy={"ema_decay": 0.0})
    assert start(longer, tmp_path / "run", fakes, resume=True)["kept_epoch"] == 2


def test_anchors_that_were_drawn_are_not_drawn_again(
    config: Config, run: Path, fakes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_checkpoint(checkpoints(run / "checkpoints")[-1])
    before = set(state.tensors["bank.safetensors"]["prompt_ids"].tolist())
    drawn: list[int] = []
    add = AnchorBank.add

    def spy(bank: AnchorBank, prompts: Sequence[ReportPrompt], rewards: torch.Tensor) -> None:
        drawn.extend(p.prompt_id for p in prompts)
        add(bank, prompts, rewards)

    monkeypatch.setattr(AnchorBank, "add", spy)
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, num_epochs=6))
    trainer = Trainer(longer, run, resume=True, **fakes)
    trainer.run()
    assert not before & set(drawn)
    assert len(trainer.parts.anchors.bank) == len(before) + len(drawn)
    assert len(drawn) < 4 * longer.train.prompts_per_epoch, "no prompt came twice"
