"""Batch sizes that a configuration leaves open follow the memory, and stay."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.presets import load_preset, load_yaml
from cxrl.rl.batch_sizes import SHARE, fit_to_memory, is_open
from cxrl.rl.cost import estimate, footprint
from cxrl.train import main as train

CPU = torch.device("cpu")
OPEN = {"optim": {"micro_batch_size": 0}, "sampler": {"batch_size": 0}}


def config(folder: Path, **sections: Any) -> Config:
    return Config.from_dict({**OPEN, "model": {"path": str(folder)}, **sections}, load_preset("smoke"))


def need(made: Config, rows: int, *, checkpointing: bool) -> int:
    sections = {
        "optim": {"micro_batch_size": rows},
        "sampler": {"batch_size": rows},
        "model": {"gradient_checkpointing": checkpointing},
    }
    known = Config.from_dict(sections, made)
    size = footprint(known, CPU)
    assert size is not None
    cost = estimate(known, size, 1.0)
    return cost.bytes_weights + cost.bytes_activations


def chosen(made: Config) -> tuple[int, int, bool]:
    return made.optim.micro_batch_size, made.sampler.batch_size, made.model.gradient_checkpointing


@pytest.fixture(scope="module")
def deep(make_pipeline: Any) -> Path:
    """A base in which activations outweigh the weights, and gradient checkpointing saves some."""
    return make_pipeline(unet={"sample_size": 32, "layers_per_block": 2, "block_out_channels": (8, 16)})


def test_as_many_rows_as_fit(deep: Path) -> None:
    made = config(deep)
    for rows, checkpointing in ((8, False), (4, False), (8, True)):
        bytes_needed = need(made, rows, checkpointing=checkpointing)
        fitted, told = fit_to_memory(made, CPU, memory=round(bytes_needed / SHARE) + 1)
        assert chosen(fitted) == (rows, rows, checkpointing)
        assert told.startswith(
            f"{rows} rows at once{' with gradient checkpointing' if checkpointing else ''}, "
        )
        assert not is_open(fitted)
        assert fit_to_memory(fitted, CPU, memory=1) == (fitted, "")


def test_too_little_memory_is_told(deep: Path) -> None:
    fitted, told = fit_to_memory(config(deep), CPU, memory=1000)
    assert chosen(fitted) == (1, 1, True)
    assert told.startswith("warning: 1 rows at once with gradient checkpointing, ")


def test_a_share_is_left_to_reward_models_and_judges(deep: Path) -> None:
    made = config(deep)
    fitted, _ = fit_to_memory(made, CPU, memory=need(made, 8, checkpointing=True))
    assert fitted.optim.micro_batch_size < 8


def test_what_is_given_stays(deep: Path) -> None:
    plenty = 2**40
    assert chosen(fit_to_memory(config(deep, sampler={"batch_size": 3}), CPU, memory=plenty)[0]) == (
        8,
        3,
        False,
    )
    given = config(deep, optim={"micro_batch_size": 5})
    assert chosen(fit_to_memory(given, CPU, memory=plenty)[0]) == (5, 5, False)
    assert chosen(fit_to_memory(given, CPU, memory=1000)[0]) == (5, 5, False)
    kept = config(deep, model={"path": str(deep), "gradient_checkpointing": True})
    assert chosen(fit_to_memory(kept, CPU, memory=plenty)[0]) == (8, 8, True)
    both = config(deep, optim={"micro_batch_size": 5}, sampler={"batch_size": 3})
    assert fit_to_memory(both, CPU, memory=1000) == (both, "")


def test_processes_share_the_memory_of_a_machine(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = config(deep)
    bytes_needed = round(need(made, 8, checkpointing=False) / SHARE) + 1
    monkeypatch.setattr("cxrl.rl.batch_sizes.machine_memory", lambda device: bytes_needed)
    assert chosen(fit_to_memory(made, CPU)[0]) == (8, 8, False)
    assert chosen(fit_to_memory(made, CPU, 2)[0]) != (8, 8, False)


def test_a_run_keeps_what_was_chosen(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    arguments = ["--optim.micro-batch-size", "0", "--sampler.batch-size", "0", "--train.num-epochs", "1"]
    assert train(["--preset", "smoke", "--run-dir", str(run), *arguments]) == 0
    assert "8 rows at once, about " in capsys.readouterr().out
    saved = load_yaml(run / "config.yaml")
    assert chosen(saved) == (8, 8, False)
    monkeypatch.setattr("cxrl.rl.batch_sizes.machine_memory", lambda device: 1000)
    assert train(["--run-dir", str(run), "--resume", *arguments[:4], "--train.num-epochs", "2"]) == 0
    assert "rows at once" not in capsys.readouterr().out
    assert chosen(load_yaml(run / "config.yaml")) == (8, 8, False)


@pytest.mark.parametrize(
    ("part", "content"),
    [("unet", "[]"), ("unet", "{}"), ("vae", "{"), ("scheduler", "[]"), ("text_encoder", "{}")],
)
def test_a_base_that_cannot_be_loaded_is_named(
    tiny_pipeline: Path, tmp_path: Path, capsys: Any, part: str, content: str
) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "base")
    (config_file,) = (folder / part).glob("*config.json")
    config_file.write_text(content)
    arguments = ["--preset", "smoke", "--run-dir", str(tmp_path / "run"), "--model.path", str(folder)]
    assert train([*arguments, "--optim.micro-batch-size", "0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: model.path: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_taken_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    monkeypatch.setattr("cxrl.rl.batch_sizes.find_base", lambda *_: pytest.fail("looked for the base"))
    arguments = ["--preset", "smoke", "--run-dir", str(tmp_path), "--optim.micro-batch-size", "0"]
    assert train(arguments) == 2
    assert "holds what this run did not write" in capsys.readouterr().err


def test_a_base_that_cannot_be_had_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    arguments = ["--preset", "smoke", "--run-dir", str(tmp_path / "run"), "--model.path", "no/base"]
    assert train([*arguments, "--optim.micro-batch-size", "0"]) == 2
    assert "model.path: cannot load model_index.json of no/base" in capsys.readouterr().err
    with pytest.raises(CxrlError, match="micro_batch_size"):
        Config.from_dict({"optim": {"micro_batch_size": -1}})
