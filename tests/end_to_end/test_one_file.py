"""``examples/cxrl_in_one_file.py`` is the trainer's method: two epochs of both give the same numbers.

The two share reports and reward models, and nothing else: the example computes by itself what it trains on,
down to the names of the random streams. So whoever rewires the trainer has two places to change.
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cxrl.models.base
from cxrl.config import Config
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.rl.advantages import advantages
from cxrl.rl.comparison import compare
from cxrl.rl.progress import Progress
from cxrl.rl.rollout import Sampler
from cxrl.rl.trainer import Trainer

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "cxrl_in_one_file.py"

Numbers = dict[str, Tensor]


@pytest.fixture
def one() -> Any:
    """The example as a module of its own, whose constants a test may change."""
    spec = importlib.util.spec_from_file_location("cxrl_in_one_file", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_of(one: Any) -> Config:
    """The configuration that says what the example's constants say."""
    return Config.from_dict(
        {
            "seed": one.SEED,
            "model": {"path": str(one.BASE)},
            "data": {"num_prompts": one.NUM_PROMPTS, "eval_num_prompts": 1},
            "sampler": {"num_steps": one.NUM_STEPS, "eta": one.ETA, "guidance_scale": one.GUIDANCE}
            | {"batch_size": 4},
            "policy": {"lora_rank": one.LORA_RANK, "lora_alpha": one.LORA_RANK, "ema_decay": one.EMA_DECAY}
            | {"num_ace_tokens": one.NUM_ACE_TOKENS},
            "rewards": {"names": list(one.REWARDS), "weights": list(one.REWARDS.values())},
            "comparison": {"form": one.FORM, "temperature": one.TEMPERATURE, "anchor": one.ANCHOR}
            | {"bank_size": one.BANK_SIZE, "min_std": one.MIN_STD, "center": one.CENTER, "scale": one.SCALE}
            | {"advantage_clip": one.ADVANTAGE_CLIP, "without_anchor": sorted(one.WITHOUT_ANCHOR)},
            "optim": {"lora_learning_rate": one.LORA_LR, "ace_learning_rate": one.ACE_LR}
            | {"weight_decay": one.WEIGHT_DECAY, "max_grad_norm": one.MAX_GRAD_NORM}
            | {"clip_range": one.CLIP_RANGE, "minibatches": one.MINIBATCHES, "micro_batch_size": 3}
            | {"timestep_fraction": one.TIMESTEP_FRACTION},
            "train": {"num_epochs": one.NUM_EPOCHS, "prompts_per_epoch": one.PROMPTS_PER_EPOCH}
            | {"samples_per_prompt": one.SAMPLES_PER_PROMPT, "eval_every": 0},
            "eval": {"num_images": 2, "samples_per_prompt": 2, "bootstrap": 0, "grid_prompts": 1},
            "run": {"trackers": []},
        }
    )


def set_constants(one: Any, constants: dict[str, Any]) -> None:
    for name, value in constants.items():
        assert hasattr(one, name), name
        setattr(one, name, value)


def assert_close(found: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    """Everywhere within ``tolerance`` of the tensor's largest value."""
    assert found.shape == expected.shape, name
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error <= tolerance, f"{name}: off by {error:.1e}"


def trained_weights(weights: dict[str, Tensor], ema: dict[str, Tensor]) -> Numbers:
    named = {f"weights/{name}": p.detach().clone() for name, p in weights.items()}
    return named | {f"ema/{name}": p.clone() for name, p in ema.items()}


def by_name(policy: Any, *values: Tensor) -> Numbers:
    """What the example yields."""
    names = ("log_probs", "rewards", "anchors", "score", "win_rate", "advantages")
    return dict(zip(names, values, strict=True)) | trained_weights(policy.weights, policy.ema)


class Recorder(Progress):
    """What the trainer's stages return in every epoch, seen from outside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.epochs: list[Numbers] = []
        self.records: list[dict[str, Any]] = []
        self.now: Numbers = {}
        self.policy: Any = None
        self.start: Numbers = {}
        rollout = Sampler.rollout

        def watched(sampler: Sampler, *args: Any) -> Any:
            result = rollout(sampler, *args)
            self.policy, self.now["log_probs"] = sampler.policy, result.log_probs
            if not self.start:
                self.start = trained_weights(self.policy.trainable, self.policy.ema)
            return result

        monkeypatch.setattr(Sampler, "rollout", watched)
        spy(monkeypatch, compare, self.compared)
        spy(monkeypatch, advantages, lambda args, result: self.now.update(advantages=result.values))

    def compared(self, args: Any, result: Any) -> None:
        rewards, anchors, anchor_of, *_ = args
        self.now |= {"rewards": rewards.values, "anchors": anchors[anchor_of]}
        self.now |= {"score": result.score, "win_rate": result.win_rate}

    def epoch(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.epochs.append(self.now | trained_weights(self.policy.trainable, self.policy.ema))
        self.now = {}


def spy(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], see: Callable[..., None]) -> None:
    """Show ``see`` the arguments and the result of every call, whichever module of cxrl calls."""

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        see(args, result)
        return result

    for name, module in list(sys.modules.items()):
        if name.startswith("cxrl.") and getattr(module, function.__name__, None) is function:
            monkeypatch.setattr(module, function.__name__, watched)


class Float64Torch:
    """``torch`` with float64 in float32's place."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, whatever cxrl and the example keep in float32 is float64.

    Both do the same sums in another order. AdamW's first steps are signs of the gradient: where one is 0 to
    rounding, rounding decides on a whole step, so in float32 no bound on single weights is both tight and
    safe. In float64 they agree to 1e-11 of their size.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch.nn.Module, "float", torch.nn.Module.double)
    monkeypatch.setitem(cxrl.models.base.DTYPES, "float32", torch.float64)
    for name, module in list(sys.modules.items()):
        if name.startswith("cxrl.") and getattr(module, "torch", None) is torch:
            monkeypatch.setattr(module, "torch", Float64Torch())
    yield
    torch.set_default_dtype(default)


class Look:
    """A reward that is a line: smooth, and of the report's first label too."""

    def __init__(self, name: str, look: Callable[[Tensor], Tensor]) -> None:
        self.name, self.look = name, look

    def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
        return self.look(images.flatten(1)) * (1 + batch.labels[:, 0].to(images) / 200)


LOOKS = {
    "posture": Look("posture", lambda x: -x.mean(1)),
    "diagnosis": Look("diagnosis", lambda x: x[:, :100].mean(1) - x[:, 100:].mean(1)),
    "consistency": Look("consistency", lambda x: x.std(1) * x[:, 7].exp()),
}
PROMPTS = [
    ReportPrompt(3, "no acute", (0.0,)),
    ReportPrompt(0, "left effusion", (1.0,)),
    ReportPrompt(7, "lung", (1.0,)),
]


class NoJudges:
    """In the judges' place, which have no part in training."""

    findings, reference = ("a",), None

    def posture(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), 5)

    def classify(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), 1)

    features = image_embeds = classify

    def text_embeds(self, texts: list[str]) -> Tensor:
        return torch.zeros(len(texts), 1)


HELD_OUT = (
    [ReportPrompt(9, "no heart", PROMPTS[0].labels)],
    [ReportPrompt(9, "left heart", PROMPTS[0].labels)],
)
SMALL = {"NUM_EPOCHS": 2, "NUM_PROMPTS": 3, "PROMPTS_PER_EPOCH": 2, "SAMPLES_PER_PROMPT": 3, "NUM_STEPS": 3}
TINY = SMALL | {"BANK_SIZE": 3, "MINIBATCHES": 3, "LORA_LR": 0.03, "CLIP_RANGE": 4e-3}
CASES: dict[str, dict[str, Any]] = {
    "bank, bradley_terry, guided": {"GUIDANCE": 2.0, "FORM": "bradley_terry", "TEMPERATURE": 0.7}
    | {"REWARDS": {"posture": 0.5, "diagnosis": 2.0, "consistency": 1.0}, "ADVANTAGE_CLIP": 1.2},
    "bank, difference, whole batch": {"FORM": "difference", "CENTER": "batch", "SCALE": "none"}
    | {"REWARDS": {"consistency": 0.3, "posture": 0.7, "diagnosis": 0.1}, "ADVANTAGE_CLIP": 1.5}
    | {"ETA": 0.6, "MIN_STD": 1.5, "TIMESTEP_FRACTION": 0.5, "WITHOUT_ANCHOR": {"posture", "diagnosis"}},
    "one_to_one, difference, guided": {"ANCHOR": "one_to_one", "FORM": "difference", "GUIDANCE": 1.5}
    | {"REWARDS": {"posture": 3.0, "diagnosis": 1.0, "consistency": 0.5}, "EMA_DECAY": 0.1, "SEED": 5}
    | {"MAX_GRAD_NORM": 5e-4},
    "bank, win": {"FORM": "win", "WITHOUT_ANCHOR": set(), "NUM_ACE_TOKENS": 1, "LORA_RANK": 3}
    | {"REWARDS": {"posture": 1.0, "diagnosis": 1.5, "consistency": 0.1}, "WEIGHT_DECAY": 0.3},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.usefixtures("float64")
def test_the_same_numbers(
    one: Any, case: dict[str, Any], tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a rounding of float64, weights included."""
    set_constants(one, TINY | {"BASE": tiny_pipeline} | case)
    one.phantom_prompts, one.build_rewards = lambda num, seed: PROMPTS[:num], lambda names, path: LOOKS
    seen = Recorder(monkeypatch)
    given: Any = {"rewards": LOOKS, "judges": NoJudges(), "prompts": (PROMPTS, *HELD_OUT)}
    Trainer(config_of(one), tmp_path / "run", progress=seen, **given).run()
    found = [by_name(*values) for values in one.train()]
    for example, trainer, r in zip(found, seen.epochs, seen.records, strict=True):
        assert trainer.keys() == example.keys()
        for name in trainer:
            assert trainer[name].dtype == torch.float64 or name == "win_rate"
            assert_close(example[name], trainer[name], 1e-9, name)
        for key, column in (("reward", example["rewards"].mean(0)), ("win_rate", example["win_rate"])):
            assert r[key] == pytest.approx(dict(zip(one.REWARDS, column.tolist(), strict=True)))
    # Where nothing is clipped, or all, a clip that is wired wrongly would not show.
    assert 0 < sum(r["clip_fraction"] for r in seen.records) < one.NUM_EPOCHS
    if one.ADVANTAGE_CLIP < 5:
        assert 0 < sum(r["advantage_clip_fraction"] for r in seen.records) < one.NUM_EPOCHS


def test_the_same_numbers_as_they_ship(
    one: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the phantom, whose reports and rewards each side gets by itself, in float32 and with every fast op.

    Four networks in a chain turn float32 rounding, 6e-8, into 1e-5 of a score (measured: at most 9e-6); a
    log-probability is a mean over a latent and keeps 1e-7. Weights: AdamW makes of a gradient that is 0 to
    rounding a step of any size up to the learning rate, so single weights are off by that; all together are
    within 1e-3 of the way they went (measured: 3e-4).
    """
    set_constants(one, SMALL)
    seen = Recorder(monkeypatch)
    Trainer(config_of(one), tmp_path / "run", progress=seen, judges=NoJudges()).run()
    train, found = one.train, []

    def recorded() -> Iterator[Any]:
        for values in train():
            found.append(by_name(*values))
            yield values

    monkeypatch.setattr(one, "train", recorded)
    one.main()
    for example, trainer in zip(found, seen.epochs, strict=True):
        assert trainer.keys() == example.keys()
        for name in ("rewards", "anchors", "score", "win_rate", "advantages"):
            assert_close(example[name], trainer[name], 5e-5, name)
        assert_close(example["log_probs"], trainer["log_probs"], 1e-6, "log_probs")
        for kind in ("lora_A", "lora_B", "ace"):
            for group in ("weights", "ema"):
                a, b, start = (
                    torch.cat([v.flatten() for n, v in numbers.items() if group in n and kind in n])
                    for numbers in (example, trainer, seen.start)
                )
                assert float((a - b).norm() / (b - start).norm()) < 1e-3, (group, kind)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(one.REWARDS)
    for line, (epoch, name) in zip(lines, itertools.product(range(2), one.REWARDS), strict=True):
        k, numbers = list(one.REWARDS).index(name), seen.epochs[epoch]
        words = [f"{numbers['rewards'][:, k].mean():.3f}", f"{numbers['win_rate'][k]:.2f}"]
        assert line.startswith(f"epoch {epoch}  {name}")
        assert set(words) <= set(line.split())


def test_it_is_one_file_that_takes_only_reports_and_rewards_from_cxrl() -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 250
    nodes = list(ast.walk(ast.parse(source)))
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    ours = {name for name in modules | names if name and name.split(".")[0].startswith("cxrl")}
    assert ours == {"cxrl", "cxrl.data.phantom.films", "cxrl.data.prompts", "cxrl.rewards.base"}
    assert re.findall(r"\bcxrl\.\w+", source.split("\nBASE")[1]) == ["cxrl.__file__"]  # where the base is
