"""README and its neighbours tell the truth: its Python runs as it stands, its commands and names exist."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from inspect import getsource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cxrl.cli import train_parser
from cxrl.commands import COMMANDS
from cxrl.config import DataConfig, PolicyConfig, SamplerConfig
from cxrl.data import sources
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.models import adapter
from cxrl.models.base import load_base
from cxrl.models.policy import Policy
from cxrl.rewards import base as registry
from cxrl.rl.rollout import Sampler, image_noise
from cxrl.shipped import BASE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def python_with(word: str) -> str:
    (found,) = (code for code in blocks("python") if word in code)
    return found


def commands() -> list[list[str]]:
    """Every ``cxrl X …`` of the text, as words; one within a paragraph may span two lines."""
    lines = [line.split("#")[0] for block in blocks("sh") for line in block.splitlines()]
    lines += re.findall(r"`(cxrl [a-z]+ --[^`]*)`", README)
    return [shlex.split(line) for line in lines if line.startswith("cxrl ")]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the base that ships where README has it."""
    (tmp_path / "cxrl" / "assets" / "phantom").mkdir(parents=True)
    (tmp_path / "cxrl" / "assets" / "phantom" / "pipeline").symlink_to(BASE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_adapter(folder: Path, *, size: float) -> Policy:
    """An adapter of the base that ships, moved away from where it starts by ``size``."""
    policy = Policy(load_base("phantom"), PolicyConfig(lora_rank=2, num_ace_tokens=3), seed=0)
    rng = torch.Generator().manual_seed(1)
    for name, p in policy.trainable.items():
        policy.ema[name] = p.detach() + size * torch.randn(p.shape, generator=rng)
    adapter.save_adapter(policy, folder)
    return policy


def test_lora_and_ace_run_in_plain_diffusers(elsewhere: Path) -> None:
    drawn = []
    code = python_with("load_lora_weights")
    for size in (0.02, 0.02, 0.0):
        policy = save_adapter(Path("runs/phantom/adapter"), size=size)
        torch.manual_seed(0)
        names: dict[str, object] = {}
        exec(compile(code, "README.md", "exec"), names)
        assert isinstance(names["image"], Image.Image)
        assert names["image"].size == (64, 64)
        assert names["embeds"].shape[1] == load_base("phantom").max_tokens + 3  # type: ignore[attr-defined]
        drawn.append(names["image"].tobytes())
        torch.manual_seed(0)
        batch = PromptBatch.repeat([ReportPrompt(0, "Small left pleural effusion.", ())], 1)
        noise = image_noise([torch.default_generator], policy.base.latent_shape)
        with policy.ema_weights():
            ours = Sampler(policy, SamplerConfig(num_steps=8, eta=1.0)).images(batch, noise)[0, 0]
        theirs = torch.from_numpy(np.array(names["image"].convert("L"))).float()
        assert float((ours * 255 - theirs).abs().max()) < 1.0, "plain diffusers has other pixels than cxrl"
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_ace_is_a_five_line_example() -> None:
    code = python_with("load_lora_weights")
    after = code[code.index("pipe.load_lora_weights") :].strip().splitlines()[1:]
    assert len([line for line in after if line.strip()]) <= 5


def test_the_reward_of_ten_lines_trains(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = python_with("register_reward")
    reward = code[code.index("@register_reward") : code.index("settings =")]
    assert len([line for line in reward.splitlines() if line.strip()]) <= 10
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert '"contrast"' in (elsewhere / "runs" / "contrast" / "metrics.jsonl").read_text()
    assert "torch.Size([1, 1, 1, 64, 64])" in capsys.readouterr().out


@pytest.mark.slow
def test_the_commands_run_in_their_order_in_one_folder(tmp_path: Path) -> None:
    """As they stand, after a short run in place of the first; what is for real films needs those."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first, *rest = blocks("sh")[0].strip().split(" && ")[1:] + blocks("sh")[2].splitlines()
    assert first == "python -m cxrl.train"
    told = [f"{first} --preset smoke --run-dir runs/phantom", *rest]
    assert len(told) >= 7
    for line in told:
        words = [sys.executable, "-m", *shlex.split(line, comments=True)]
        words = [word for word in words if word != "python"]
        if words.count("-m") > 1:
            words.remove("-m")
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (line, done.stderr)
    for path in ("runs/phantom-report.html", "images/policy-000003.png", "scores.json", "both.html"):
        assert (tmp_path / path).is_file(), path
    assert (tmp_path / "runs" / "smoke" / "summary.json").is_file()


def test_every_command_has_the_options_that_readme_gives(capsys: pytest.CaptureFixture[str]) -> None:
    helps = {}
    for name, (module, _) in COMMANDS.items():
        with pytest.raises(SystemExit):
            importlib.import_module(module).main(
                ["--help", *(["all"] if name in ("train", "doctor") else [])]
            )
        helps[name] = capsys.readouterr().out
    seen = set()
    for _, name, *words in commands():
        seen.add(name)
        for word in words:
            if word.startswith("--"):
                assert re.search(rf"{word}\b", helps[name]), (name, word)
    assert seen >= {"train", "generate", "evaluate", "report", "export", "doctor", "inspect", "pretrain"}


def test_inline_options_exist() -> None:
    known = train_parser().format_help()
    for option in re.findall(r"`(--[a-z.-]+(?:_[a-z]+)*)", README):
        assert option.replace("_", "-") in known, option


def test_every_file_that_is_named_exists() -> None:
    paths = re.findall(r"`((?:cxrl|tests|csrc|benchmarks|kernels)/[\w./-]+)`", README + CONTRIBUTING)
    paths += re.findall(r"\]\((?!http)([\w./-]+)\)", README + CONTRIBUTING)
    assert len(paths) > 15
    for path in paths:
        if "NAME" not in path:
            assert (ROOT / path).exists(), path


def test_every_name_of_the_code_exists() -> None:
    names = re.findall(r"`(cxrl(?:\.\w+)+)`", README + CONTRIBUTING)
    assert len(names) > 5
    for name in names:
        pkgutil.resolve_name(name)


def test_the_recipe_for_a_data_set_can_be_followed() -> None:
    """Every name in it is there, and what it says of labels is so."""
    recipe = CONTRIBUTING.split("## Add a data set\n")[1].split("\n## ")[0]
    named = re.findall(r"`([\w./]+)`", recipe)
    dotted = {name for name in named if name.startswith("cxrl.")}
    assert {n for n in named if "/" not in n and "NAME" not in n} - dotted == {"source", "_source"}
    for name in dotted:
        pkgutil.resolve_name(name)
    choices = {field.name: field.metadata for field in fields(DataConfig)}["source"]["choices"]
    code = getsource(sources._source)
    for name in set(choices) - {"phantom"}:
        assert f'"{name}"' in code
    prompt = ReportPrompt(1, "Edema.", (1.0, 0.0), ("Edema", "Fracture"))
    assert str(prompt.labels_of(("Mass", "Fracture", "Edema"))) == "(nan, 0.0, 1.0)"


def test_every_environment_variable_is_listed() -> None:
    files = [*ROOT.glob("cxrl/**/*.py"), *ROOT.glob("kernels/**/*.py"), ROOT / "setup.py"]
    files += [*ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("csrc/**/*.h")]
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    read = set(re.findall(r"(?:environ(?:\.get\(|\[)|getenv\()\s*[\"'](\w+)[\"']", source))
    read |= set(re.findall(r"^ENVIRONMENT_VARIABLE = \"(\w+)\"", source, re.M))
    read -= {"RANK", "WORLD_SIZE"}  # set by launchers
    read -= {"CXRL_EMULATOR_ORDER"}  # of tests: the emulated CUDA device
    read -= {"GRADIO_ANALYTICS_ENABLED", "NO_PROXY"}  # written for Gradio
    assert read >= {"CXRL_BACKEND", "CXRL_SKIP_EXTENSION"}
    assert {name for name in read if f"`{name}" not in README} == set()


def test_it_fits_and_says_what_it_must() -> None:
    assert len(README.splitlines()) <= 200
    assert "Not for diagnosis" in README
    assert (ROOT / "LICENSE").read_text().count("Apache License") >= 1


def test_continuous_integration_runs_what_readme_says() -> None:
    script = ROOT / ".ci" / "run"
    lines = script.read_text(encoding="utf-8").splitlines()
    (install, run), tests = (block.strip().split(" && ") for block in blocks("sh")[:2])
    assert install in lines
    assert any(line.startswith(f"{run} ") for line in lines)
    assert set(tests) <= set(lines)
    assert any(line.startswith("python -m cxrl.train --preset smoke") for line in lines)
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
