"""The method as calls: results and CxrlError, no exit status."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cxrl
from cxrl.rl.rollout import sample_images

SMALL = {
    **{
        "train.num_epochs": 1,
        "train.prompts_per_epoch": 2,
        "train.samples_per_prompt": 2,
        "run.trackers": (),
    },
    **{"data.num_prompts": 2, "data.eval_num_prompts": 2, "eval.num_images": 4, "eval.bootstrap": 10},
    **{"sampler.num_steps": 2, "optim.micro_batch_size": 8, "sampler.batch_size": 8},
}


class Told(cxrl.Progress):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def epoch(self, record: dict[str, Any]) -> None:
        self.names.append("epoch")

    def evaluation(self, epoch: int, record: dict[str, Any]) -> None:
        self.names.append(f"evaluation {epoch}")

    def checkpoint(self, path: Path) -> None:
        self.names.append(path.name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[cxrl.Run, Told]:
    told = Told()
    folder = tmp_path_factory.mktemp("api") / "run"
    return cxrl.train("smoke", folder, settings=SMALL, progress=told), told


def test_a_run_can_be_asked(made: tuple[cxrl.Run, Told]) -> None:
    run, told = made
    assert told.names[0] == "evaluation 0"
    assert told.names[1:3] == ["evaluation 1", "epoch"]
    assert told.names[3].startswith("step-")
    assert run.config.train.num_epochs == 1
    assert run.config.preset == "smoke"
    assert [record["epoch"] for record in run.metrics] == [0]
    assert run.summary == json.loads((run.path / "summary.json").read_text())
    again = cxrl.load_run(run.path)
    images = cxrl.generate(again, ["Small left pleural effusion.", "No acute disease."], seeds=range(3))
    assert images.shape == (2, 3, 1, 64, 64)
    assert images.dtype == torch.float32
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    one = run.generate("No acute disease.", seeds=[2])
    torch.testing.assert_close(one[0, 0], images[1, 2], atol=1e-4, rtol=0)
    assert not torch.equal(run.generate("No acute disease.", seeds=[2], anchor=True), one)
    assert run.policy() is run.policy(), "loaded once"
    scores = cxrl.evaluate(run.path)
    assert scores["policy"]["posture"] == pytest.approx((run.summary or {})["policy"]["posture"], rel=1e-5)


def test_a_configuration_a_preset_or_a_file(tmp_path: Path, made: tuple[cxrl.Run, Told]) -> None:
    run, _ = made
    (tmp_path / "c.yaml").write_text("preset: smoke\nseed: 3\n")
    from cxrl.api import _configuration

    assert _configuration(None, None, False).preset == "phantom"
    assert _configuration("smoke", None, False).train.num_epochs == 2
    assert _configuration(tmp_path / "c.yaml", None, False).seed == 3
    config = run.config
    assert _configuration(config, None, False) is config
    assert _configuration(None, run.path, True) == run.config
    more = cxrl.train(run_dir=run.path, resume=True, settings={"train.num_epochs": 2})
    assert [record["epoch"] for record in more.metrics] == [0, 1]


def test_what_is_wrong_is_raised(tmp_path: Path, made: tuple[cxrl.Run, Told]) -> None:
    run, _ = made
    for call, message in (
        (lambda: cxrl.train("smok", tmp_path / "x"), "did you mean smoke"),
        (
            lambda: cxrl.train("smoke", tmp_path / "x", settings={"train.num_epoch": 2}),
            "did you mean train.num_epochs",
        ),
        (lambda: cxrl.train("smoke", tmp_path / "x", settings={"train.num_epochs": 0}), "out of range"),
        (lambda: cxrl.train("smoke", tmp_path / "x", settings={"data.root": "x"}), "has no effect"),
        (lambda: cxrl.train("smoke", run.path, resume=True), "leave config out"),
        (lambda: cxrl.train("smoke", run.path), "already holds a run"),
        (lambda: cxrl.load_run(tmp_path), "is not a run of cxrl train"),
        (lambda: run.generate(" "), "the prompt is empty"),
        (lambda: run.generate([]), "there is no prompt"),
        (lambda: run.generate("x", seeds=[]), "seeds: there are none"),
        (lambda: cxrl.evaluate(run, num_images=1), "out of range"),
    ):
        with pytest.raises(cxrl.CxrlError, match=message):
            call()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "seeds", [3, "12", 1.5, [1.5], ["1"], [-1], [True], [10**12], [None], {0: 1}, int, b"12", None]
)
def test_what_is_no_seed_is_refused(made: tuple[cxrl.Run, Told], seeds: Any) -> None:
    with pytest.raises(cxrl.CxrlError, match=r"^seeds: .*expected whole numbers"):
        made[0].generate("No acute disease.", seeds=seeds)


def test_seeds_of_other_kinds_are_taken(made: tuple[cxrl.Run, Told]) -> None:
    run = made[0]
    one = run.generate("No acute disease.", seeds=[2, 0])
    for seeds in (torch.tensor([2, 0]), np.array([2, 0]), iter((2, 0))):
        assert torch.equal(run.generate("No acute disease.", seeds=seeds), one)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (5, "prompts: 5 is no list"),
        (None, "prompts: nothing is no list"),
        ([1], "the prompt: 1 is no report"),
        (["a", None], "prompt 2: nothing is no report"),
        ("a\0b", "holds NUL"),
        (b"a", "prompts: b'a' is no list"),
    ],
)
def test_what_is_no_report_is_refused(made: tuple[cxrl.Run, Told], prompts: Any, message: str) -> None:
    with pytest.raises(cxrl.CxrlError, match=message):
        cxrl.generate(made[0], prompts)


@pytest.mark.parametrize("thing", [5, None, "", " ", "a\0b", [1], b"a"])
def test_what_is_no_run_is_refused(thing: Any) -> None:
    for call in (
        lambda: cxrl.load_run(thing),
        lambda: cxrl.generate(thing, "a"),
        lambda: cxrl.evaluate(thing),
    ):
        with pytest.raises(cxrl.CxrlError, match=r"^run: .* is no path"):
            call()
    if thing is not None:
        with pytest.raises(cxrl.CxrlError, match=r"^run_dir: .* is no path"):
            cxrl.train("smoke", run_dir=thing)


class Mute(cxrl.Progress):
    """Has a slip in a method."""

    def epoch(self, record: dict[str, Any]) -> None:
        record["no such key"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"settings": [1]}, r"settings: \[1\] is no mapping"),
        ({"settings": {5: 1}}, "settings: 5 is no name"),
        ({"settings": 0}, "settings: 0 is no mapping"),
        ({"config": 5}, "config: 5; expected a preset"),
        ({"resume": "no"}, "resume: 'no' is none of True and False"),
        ({"overwrite": 1}, "overwrite: 1 is none of True and False"),
        ({"rewards": 5}, "rewards: 5 is no mapping"),
        ({"rewards": ["posture"]}, "rewards: .* is no mapping"),
        ({"rewards": {}}, "rewards: there is no model for posture, "),
        ({"rewards": {"posture": 5, "diagnosis": 5, "consistency": 5}}, "reward 'posture' is 5"),
        ({"judges": 5}, "judges: 5, which has no posture, "),
        ({"judges": 0}, "judges: 0, which has no"),
        ({"prompts": 5}, "prompts: 5; expected"),
        ({"prompts": ["a"]}, "prompts: .*; expected"),
        ({"prompts": ("a", "b")}, "prompts: training is 'a'"),
        ({"prompts": ([1], [])}, "prompts: training 0 is 1; expected a ReportPrompt"),
        ({"progress": 5}, "progress: 5 is no object of a cxrl.Progress"),
        ({"progress": cxrl.Progress}, r"progress: .*; write Progress\(\)"),
    ],
)
def test_what_a_call_is_given_is_looked_at_first(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(cxrl.CxrlError, match=message):
        cxrl.train(**({"config": "smoke", "run_dir": tmp_path / "x"} | arguments))
    assert not (tmp_path / "x").exists()


def test_the_other_calls_look_too(made: tuple[cxrl.Run, Told]) -> None:
    with pytest.raises(cxrl.CxrlError, match="anchor: 'no' is none of True and False"):
        cxrl.generate(made[0], "a", anchor="no")  # type: ignore[arg-type]
    for wrong in (5, cxrl.Progress):
        with pytest.raises(cxrl.CxrlError, match="progress: "):
            cxrl.evaluate(made[0], progress=wrong)  # type: ignore[arg-type]
    for number in ("x", 1.5, True):
        with pytest.raises(cxrl.CxrlError, match=r"eval\.num_images"):
            cxrl.evaluate(made[0], num_images=number)  # type: ignore[arg-type]


def test_a_progress_that_raises_is_named(tmp_path: Path) -> None:
    with pytest.raises(cxrl.CxrlError, match=r"progress: Mute.epoch raised KeyError: 'no such key'"):
        cxrl.train("smoke", tmp_path / "x", settings=SMALL, progress=Mute())


def test_functions_keep_their_names_beside_the_commands() -> None:
    for name in ("train", "generate", "evaluate"):
        module = importlib.import_module(f"cxrl.{name}")
        assert callable(module.main)
        assert callable(getattr(cxrl, name)), "importing the command does not hide the function"
        assert getattr(cxrl, name) is not module
    assert sample_images is not None
    program = "import sys, cxrl; assert 'torch' not in sys.modules; assert callable(cxrl.train)"
    subprocess.run([sys.executable, "-c", program], check=True)
