"""A real run of two epochs, watched: whose images are drawn from which noise, and what becomes of rewards.

Nothing here is wired by the test: spies record what the trainer does, and the formulas of the method are
written out again, in plain float64, on what was recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrl.config import Config
from cxrl.data.prompts import PromptBatch
from cxrl.rl.evaluation import Evaluator
from cxrl.rl.rollout import Sampler
from cxrl.rl.seeding import generator
from cxrl.rl.trainer import Trainer
from cxrl.rl.update import Updater

Make = Callable[..., Config]
WEIGHTS = {"posture": 0.5, "diagnosis": 2.0}


@dataclass
class Drawing:
    """One call of the sampler."""

    kind: str
    batch: PromptBatch
    anchor: bool
    averaged: bool
    noise: list[Tensor]

    @property
    def prompts(self) -> list[int]:
        return [self.batch.prompts[int(p)].prompt_id for p in self.batch.prompt_of]


class Watch:
    """What a run did, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fakes: dict[str, Any]) -> None:
        self.drawings: list[Drawing] = []
        self.predicted_as_anchor: list[set[bool]] = []
        self.scored: list[dict[str, Tensor]] = []
        self.advantages: list[Tensor] = []
        for name in ("rollout", "images"):
            monkeypatch.setattr(Sampler, name, self._sampler_spy(name, getattr(Sampler, name)))
        update = Updater.update

        def spy(updater: Updater, rollout: Any, advantages: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.advantages.append(advantages.clone())
            return update(updater, rollout, advantages, *args, **kwargs)

        monkeypatch.setattr(Updater, "update", spy)
        self.judging = False
        judge = Evaluator._judge

        def judging(evaluator: Evaluator, *args: Any) -> Any:
            self.judging = True
            try:
                return judge(evaluator, *args)
            finally:
                self.judging = False

        monkeypatch.setattr(Evaluator, "_judge", judging)
        for name, reward in fakes["rewards"].items():
            monkeypatch.setattr(reward, "score", self._reward_spy(name, reward.score))

    def _sampler_spy(self, kind: str, original: Any) -> Any:
        def spy(sampler: Sampler, batch: PromptBatch, noise: Any, **options: Any) -> Any:
            policy, drawn = sampler.policy, []
            averaged = all(p.data_ptr() == policy.ema[n].data_ptr() for n, p in policy.trainable.items())
            drawing = Drawing(kind, batch, options.get("anchor", False), averaged, drawn)
            self.drawings.append(drawing)
            predict, as_anchor = policy.predict, set()

            def watched(*args: Any, **kwargs: Any) -> Any:
                as_anchor.add(kwargs["anchor"])
                return predict(*args, **kwargs)

            policy.predict = watched  # type: ignore[method-assign]
            try:
                return original(sampler, batch, lambda: drawn.append(noise()) or drawn[-1], **options)
            finally:
                del policy.predict
                self.predicted_as_anchor.append(as_anchor)

        return spy

    def _reward_spy(self, name: str, original: Any) -> Any:
        def spy(images: Tensor, batch: PromptBatch) -> Tensor:
            value = original(images, batch)
            if self.judging:  # the rewards of judged images are shown, and decide nothing
                return value
            if name == "posture":
                self.scored.append({})
            self.scored[-1][name] = value.double()
            return value

        return spy

    def of(self, kind: str, anchor: bool) -> list[Drawing]:
        return [d for d in self.drawings if d.kind == kind and d.anchor == anchor]


def train(
    make_config: Make, fakes: dict[str, Any], run: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[Watch, Trainer]:
    sections: dict[str, Any] = {
        "train": {"num_epochs": 2, "prompts_per_epoch": 4, "samples_per_prompt": 3, "eval_every": 1},
        "rewards": {"weights": list(WEIGHTS.values())},
        "optim": {"lora_learning_rate": 0.05, "ace_learning_rate": 0.2, "clip_range": 0.5},
    }
    sections["train"] |= changes.pop("train", {})
    watch = Watch(monkeypatch, fakes)
    trainer = Trainer(make_config(**sections, **changes), run, **fakes)
    trainer.run()
    return watch, trainer


def test_the_one_to_one_anchor_shares_the_start_and_nothing_else(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, _ = train(make_config, fakes, tmp_path, monkeypatch, comparison={"anchor": "one_to_one"})
    rollouts = watch.of("rollout", False)
    anchors = [d for d in watch.of("images", True) if d.averaged is False]
    assert (len(rollouts), len(anchors)) == (2, 2)
    for rollout, anchor in zip(rollouts, anchors, strict=True):
        assert anchor.prompts == rollout.prompts
        assert torch.equal(anchor.noise[0], rollout.noise[0]), "x_T is the state: a valid baseline shares it"
        # Replayed step noise, even of another step, would move both images together, and the gradient vanish.
        for own in anchor.noise[1:]:
            for replayed in rollout.noise:
                pair = torch.stack([own.flatten(), replayed.flatten()])
                assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.1
    assert not torch.equal(anchors[0].noise[1], anchors[1].noise[1])
    assert watch.predicted_as_anchor == [{d.anchor} for d in watch.drawings]


def test_the_bank_is_the_anchors_drawn_once_from_noise_of_its_own(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, _ = train(make_config, fakes, tmp_path, monkeypatch, train={"num_epochs": 3})
    bank = [d for d in watch.of("images", True) if not d.averaged]
    drawn = [p for d in bank for p in d.prompts]
    assert sorted(drawn) == sorted(list(range(8)) * 3), "three images of each of the eight prompts, once"
    for drawing in bank:
        for row, (prompt, m) in enumerate(zip(drawing.prompts, [0, 1, 2] * len(drawn), strict=False)):
            rng = generator(0, "anchor", prompt, m)
            for step in drawing.noise:
                expected = torch.randn(step.shape[1:], generator=rng)
                assert torch.equal(step[row], expected)
    assert not [d for d in watch.of("images", False) if not d.averaged], "the policy draws only to be judged"
    assert watch.predicted_as_anchor == [{d.anchor} for d in watch.drawings]


def test_no_epoch_draws_the_noise_of_another(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, _ = train(make_config, fakes, tmp_path, monkeypatch, train={"eval_every": 0})
    rollouts = watch.of("rollout", False)
    draws = [n for d in rollouts for n in d.noise]
    judged = watch.of("images", True)[0].noise
    flat = [n.flatten()[: 4 * 64].tolist() for n in (*draws, *judged)]
    assert len({tuple(f) for f in flat}) == len(flat)
    assert set(rollouts[0].prompts) | set(rollouts[1].prompts) == set(range(8)), "a pass sees every report"
    for rollout in rollouts:
        assert [rollout.prompts.count(p) for p in set(rollout.prompts)] == [3] * 4


def test_both_judged_sides_start_from_the_same_latents(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, trainer = train(make_config, fakes, tmp_path, monkeypatch)
    judged = [d for d in watch.drawings if d.averaged]
    assert [d.anchor for d in judged[:3]] == [True, False, False], "the anchor once, the policy every epoch"
    assert [d.anchor for d in judged[3:]] == [False, True], "and both once for the result"
    choosing, result = judged[:3], judged[3:]
    for drawings in (choosing, result):
        for drawing in drawings:
            assert drawing.prompts == drawings[0].prompts
            for a, b in zip(drawing.noise, drawings[0].noise, strict=True):
                assert torch.equal(a, b)
    assert not set(choosing[0].prompts) & set(result[0].prompts), "a report that chose is not of the result"
    assert not torch.equal(choosing[0].noise[0][0], result[0].noise[0][0])
    assert [d.kind for d in watch.drawings if not d.averaged].count("rollout") == 2
    evaluator = trainer.parts.evaluator
    assert evaluator.anchor.evaluation.values != evaluator.evaluate().evaluation.values


def compared(form: str, own: Tensor, bank: Tensor, unit: float, temperature: float) -> Tensor:
    """The comparison of a reward [N] with the anchors [N, M] of each sample, after the formulas."""
    one = bank.shape[1] == 1
    spread = bank.std(1, correction=0).clamp_min(1e-3 * unit if not one else unit)
    if form == "difference":
        return (own - bank.mean(1)) / spread
    if form == "win":
        share = (own[:, None] > bank).double() + 0.5 * (own[:, None] == bank).double()
        return math.sqrt(2 * math.pi) * share.mean(1)
    scale = 4 * math.sqrt(temperature**2 + math.pi / 8)
    return scale * torch.sigmoid((own[:, None] - bank) / (temperature * spread[:, None])).mean(1)


def normalised(score: Tensor, prompt_of: Tensor, center: str, scale: str, clip: float) -> Tensor:
    result = torch.empty_like(score)
    scopes = [prompt_of == p for p in prompt_of.unique()] if center == "prompt" else [prompt_of >= 0]
    for members in scopes:
        own = score[members]
        centred = own if center == "none" else own - own.mean()
        result[members] = centred / centred.square().mean().sqrt() if scale == "std" else centred
    return result.clamp(-clip, clip)


CASES = [
    {"form": "difference"},
    {"form": "difference", "center": "batch", "without_anchor": []},
    {"form": "win", "scale": "none"},
    {"form": "bradley_terry", "temperature": 0.5, "center": "none", "scale": "none", "advantage_clip": 3.0},
    {"form": "bradley_terry", "advantage_clip": 0.8, "without_anchor": ["diagnosis"]},
    {"form": "difference", "anchor": "one_to_one"},
    {"form": "direct", "center": "batch"},
]


@pytest.mark.parametrize("case", CASES, ids=[" ".join(map(str, c.values())) for c in CASES])
def test_the_advantages_are_the_formulas_of_the_recorded_rewards(
    make_config: Make,
    fakes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: dict[str, Any],
) -> None:
    watch, trainer = train(
        make_config, fakes, tmp_path, monkeypatch, comparison=case, train={"eval_every": 0}
    )
    c = trainer.config.comparison
    rollouts, scored = watch.of("rollout", False), list(watch.scored)
    first, bank, units = scored[0], {}, {}
    prompt_of = rollouts[0].batch.prompt_of
    for name in WEIGHTS:
        centred = torch.cat(
            [first[name][prompt_of == p] - first[name][prompt_of == p].mean() for p in range(4)]
        )
        units[name] = (float(first[name].mean()), float(centred.square().mean().sqrt()))
    for epoch in range(2):
        rewards = scored.pop(0)
        drawing, anchors = rollouts[epoch], None
        if c.form != "direct":
            anchors = scored.pop(0)
            if c.anchor == "bank":
                for k, prompt in enumerate(dict.fromkeys(drawing.prompts)):
                    bank[prompt] = {name: anchors[name][3 * k : 3 * k + 3] for name in WEIGHTS}
        score = torch.zeros(12, dtype=torch.float64)
        for name, weight in WEIGHTS.items():
            mean, unit = units[name]
            if c.form == "direct" or name in c.without_anchor:
                score += weight * (rewards[name] - mean) / unit
                continue
            of = torch.stack([bank[p][name] for p in drawing.prompts]) if bank else anchors[name][:, None]
            score += weight * compared(c.form, rewards[name], of, unit, c.temperature)
        expected = normalised(score, drawing.batch.prompt_of, c.center, c.scale, c.advantage_clip)
        # Float32 against float64: rewards differ from the bank's mean by a few of their last digits.
        torch.testing.assert_close(watch.advantages[epoch].double(), expected, rtol=2e-3, atol=2e-3)
    assert scored == []
    assert len(watch.advantages) == 2
