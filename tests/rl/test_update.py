"""The update on the tiny pipeline: ratio, pieces, skipped rows, remedies and what stops it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrl.config import OptimConfig, PolicyConfig, SamplerConfig
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError
from cxrl.models.base import load_base
from cxrl.models.policy import Policy
from cxrl.ops import trajectory_log_prob
from cxrl.rl.engine import Engine
from cxrl.rl.loss import ppo_loss, step_kl
from cxrl.rl.records import Rollout, UpdateStats
from cxrl.rl.rollout import Sampler, batch_noise
from cxrl.rl.seeding import generator
from cxrl.rl.update import Updater, _Pass
from cxrl.storage.checkpoint import State

PROMPTS = [ReportPrompt(0, "no acute", ()), ReportPrompt(1, "left lung", ())]
NUM = 8
ADVANTAGES = torch.tensor([1.0, -0.5, 0.0, 2.0, 0.0, -1.5, 0.3, -1.3])


class Setup:
    """A fresh policy, its rollout, and an updater."""

    def __init__(
        self, pipeline: Path, run_dir: Path, *, sampler: dict[str, Any] | None = None, **optim: Any
    ) -> None:
        self.policy = Policy(load_base(pipeline), PolicyConfig(lora_rank=2, num_ace_tokens=2))
        settings = {"num_steps": 3, "batch_size": NUM, "guidance_scale": 2.0} | (sampler or {})
        self.sampler = Sampler(self.policy, SamplerConfig(**settings))
        settings = {"minibatches": 1, "micro_batch_size": 16} | optim
        self.updater = Updater(self.sampler, OptimConfig(**settings), Engine(run_dir), num_epochs=10)
        batch = PromptBatch.repeat(PROMPTS, NUM // 2)
        noise = batch_noise(generator(0, "rollout"), self.policy.base.latent_shape, NUM)
        self.rollout: Rollout = self.sampler.rollout(batch, noise)

    def update(self, advantages: Tensor = ADVANTAGES, epoch: int = 0) -> UpdateStats:
        return self.updater.update(
            self.rollout, advantages, NUM, epoch=epoch, rng=generator(0, "rows", epoch)
        )

    def gradient(self, advantages: Tensor = ADVANTAGES) -> dict[str, Tensor]:
        """Of the mean over all rows, by the updater's own pass."""
        plan = self.updater._plan(
            advantages, NUM, self.rollout.schedule.num_policy_steps, generator(0, "rows")
        )
        embeds = self.sampler.prompt_embeds(PROMPTS)
        for rows, count in plan:
            _Pass(self.updater, self.rollout, advantages, embeds).accumulate(rows, count)
        return {
            n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for n, p in self.policy.trainable.items()
        }

    def plain_gradient(
        self, advantages: Tensor = ADVANTAGES, kl_weight: float = 0.0, step_weight: float = 0.0
    ) -> dict[str, Tensor]:
        """The same written down plainly: every row on its own, none left out."""
        s = self.rollout.schedule
        embeds = self.sampler.prompt_embeds(PROMPTS)
        total = torch.zeros(())
        gain = torch.stack([s.rows[t, 1].abs() / s.rows[t, 2] for t in s.policy_steps.tolist()])
        scale = (gain.square().sum() / (gain ** (1 - step_weight)).square().sum()).sqrt()
        for n in range(NUM):
            for k, t in enumerate(s.policy_steps.tolist()):
                inputs = (s.timesteps[t][None], embeds[self.rollout.batch.prompt_of[n]][None])
                x_t, x_prev = self.rollout.latents[n, t][None], self.rollout.latents[n, t + 1][None]
                output = self.policy.predict(x_t, *inputs, self.sampler.negative_embeds)
                log_prob = trajectory_log_prob(*output, 2.0, x_t, x_prev, s.rows[t][None])
                old = self.rollout.log_probs[n, k][None]
                total = (
                    total
                    + ppo_loss(log_prob, old, advantages[n][None], 1e-4, scale / gain[k] ** step_weight)[
                        0
                    ].sum()
                )
                if kl_weight:
                    anchor = self.policy.predict(x_t, *inputs, self.sampler.negative_embeds, anchor=True)
                    total = total + kl_weight * step_kl(output, anchor, 2.0, s.rows[t][None]).sum()
        grads = torch.autograd.grad(
            total / (NUM * s.num_policy_steps), list(self.policy.trainable.values()), allow_unused=True
        )
        return {
            n: torch.zeros_like(p) if g is None else g
            for (n, p), g in zip(self.policy.trainable.items(), grads, strict=True)
        }


@pytest.fixture
def make(tiny_pipeline: Path, tmp_path: Path) -> Callable[..., Setup]:
    return lambda **settings: Setup(tiny_pipeline, tmp_path, **settings)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    # float32 sums in another order: relative to the gradient's own size.
    size = max(float(g.abs().max()) for g in expected.values())
    assert size > 1e-6
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-5 * size, msg=name)


@pytest.mark.parametrize("step_weight", [0.0, 0.5, 1.0])
def test_the_gradient_weighs_the_steps(make: Callable[..., Setup], step_weight: float) -> None:
    setup = make(step_weight=step_weight, clip_range=1.0)
    assert_close(setup.gradient(), setup.plain_gradient(step_weight=step_weight))


def test_at_one_every_step_gets_the_same(make: Callable[..., Setup]) -> None:
    """What the likelihood gives the first and the last of 8 steps differs many times."""
    found = {}
    for step_weight in (0.0, 1.0):
        setup = make(sampler={"num_steps": 8}, step_weight=step_weight, minibatches=4, clip_range=1.0)
        by_step = setup.update().by_step
        assert len(by_step["output_grad"]) == setup.rollout.schedule.num_policy_steps
        found[step_weight] = by_step["output_grad"]
        assert all(0 <= share <= 1 for share in by_step["clip_fraction"])
    assert max(found[0.0]) > 5 * min(found[0.0])
    assert max(found[1.0]) < 2 * min(found[1.0])
    norms = [torch.tensor(values).square().mean().sqrt() for values in found.values()]
    assert 0.5 < float(norms[1] / norms[0]) < 2, "the total is kept"


def test_ratio_is_one_before_the_first_step(make: Callable[..., Setup]) -> None:
    setup = make()
    stats = setup.update()
    assert stats.ratio_max_dev <= 2e-6
    assert stats.ratio_mean == pytest.approx(1.0, abs=1e-6)
    # In the next epoch the policy has moved: a new rollout is on-policy again, the old one is not.
    with pytest.raises(CxrlError, match="importance ratio off by") as error:
        Setup.update(setup, epoch=1)
    for remedy in ("micro_batch_size", "float32", "on_ratio_mismatch", "re-scored"):
        assert remedy in str(error.value)


def test_told_to_go_on_the_old_log_probs_are_scored_again(make: Callable[..., Setup]) -> None:
    setup = make(on_ratio_mismatch="warn")
    true = setup.gradient()
    wrong = make(on_ratio_mismatch="warn", lora_learning_rate=0.0, ace_learning_rate=0.0, max_grad_norm=1e9)
    log_probs = wrong.rollout.log_probs + 0.05 * torch.arange(NUM)[:, None]
    wrong.rollout = Rollout(
        wrong.rollout.batch, wrong.rollout.latents, wrong.rollout.schedule, log_probs, wrong.rollout.images
    )
    kept: dict[str, Tensor] = {}
    step = wrong.updater.optimizer.step
    wrong.updater.optimizer.step = lambda: (  # type: ignore[method-assign]
        kept.update({n: p.grad.clone() for n, p in wrong.policy.trainable.items()}),
        step(),
    )
    with pytest.warns(RuntimeWarning, match="importance ratio off"):
        stats = wrong.update()
    assert stats.ratio_max_dev > 0.2  # what was found, not what was mended
    assert_close(kept, true)


@pytest.mark.parametrize(
    "pieces", [{"micro_batch_size": 5}, {"gradient_accumulation": 3}, {"micro_batch_size": 1}]
)
def test_pieces_do_not_change_the_gradient(make: Callable[..., Setup], pieces: dict[str, int]) -> None:
    assert_close(make(**pieces).gradient(), make().gradient())


def test_the_gradient_is_that_of_the_plain_loss(make: Callable[..., Setup]) -> None:
    setup = make()
    assert_close(setup.gradient(), setup.plain_gradient())
    assert setup.gradient()["ace"].abs().max() > 0


def test_kl_to_the_anchor(make: Callable[..., Setup]) -> None:
    setup = make(kl_weight=0.7, clip_range=1e-4)
    with torch.no_grad():
        for p in setup.policy.trainable.values():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    assert_close(setup.gradient(), setup.plain_gradient(kl_weight=0.7))


def test_rows_without_advantage_are_skipped_exactly(make: Callable[..., Setup]) -> None:
    setup = make()
    setup.plain_gradient()
    stats = setup.update()
    steps = setup.rollout.schedule.num_policy_steps
    assert stats.num_rows == int((ADVANTAGES != 0).sum()) * steps
    assert make(kl_weight=0.1).update().num_rows == NUM * steps


def test_nothing_to_learn_moves_nothing(make: Callable[..., Setup]) -> None:
    setup = make(weight_decay=0.0)
    before = {n: p.clone() for n, p in setup.policy.weights().items()}
    stats = setup.update(torch.zeros(NUM))
    assert stats.num_rows == 0
    assert stats.num_steps == 1
    assert stats.ratio_max_dev <= 2e-6  # measured on the probe
    assert all(torch.equal(p, before[n]) for n, p in setup.policy.weights().items())


def test_every_row_is_in_exactly_one_step_of_a_pass(make: Callable[..., Setup]) -> None:
    setup = make(minibatches=5, num_inner_epochs=2)
    plan = setup.updater._plan(torch.ones(NUM), NUM, 2, generator(0, "rows"))
    assert len(plan) == 10
    for pass_ in (plan[:5], plan[5:]):
        rows = torch.cat([r for r, _ in pass_])
        assert sorted(map(tuple, rows.tolist())) == [(n, k) for n in range(NUM) for k in range(2)]
        assert [count for _, count in pass_] == [4, 3, 3, 3, 3]
    assert not torch.equal(plan[0][0], plan[5][0])
    setup = make(timestep_fraction=0.5)
    rows = setup.updater._plan(torch.ones(NUM), NUM, 2, generator(0, "rows"))[0][0]
    assert sorted(rows[:, 0].tolist()) == list(range(NUM))
    assert rows[:, 1].unique().numel() == 2


def test_steps_move_the_weights_and_their_average(make: Callable[..., Setup]) -> None:
    setup = make(minibatches=3, num_inner_epochs=2, lora_learning_rate=1e-3, ace_learning_rate=1e-2)
    start = {n: p.clone() for n, p in setup.policy.weights().items()}
    stats = setup.update()
    assert (stats.num_steps, setup.updater.num_steps, setup.policy.num_ema_updates) == (6, 6, 6)
    assert set(stats.grad_norm) == {"lora", "ace"}
    assert stats.kl >= 0
    assert stats.clip_fraction > 0
    for name, p in setup.policy.weights().items():
        moved, averaged = (p - start[name]).abs().max(), (setup.policy.ema[name] - start[name]).abs().max()
        assert 0 < averaged < moved, name


@pytest.mark.parametrize("where", ["advantage", "gradient", "weights"])
def test_what_is_not_finite_stops_with_the_cause(make: Callable[..., Setup], where: str) -> None:
    setup = make()
    advantages, message = ADVANTAGES.clone(), ""
    if where == "advantage":
        advantages[3], message = float("nan"), r"epoch 4, optimizer step 1: not finite: loss; lower"
    elif where == "weights":
        with torch.no_grad():
            setup.policy.trainable["ace"][0, 0] = float("nan")
        message = r"importance ratio off by nan before the first step of epoch 4"
    else:
        setup.policy.trainable["ace"].register_hook(lambda grad: grad * float("inf"))
        message = r"epoch 4, optimizer step 1: gradient of ace is (inf|nan)"
    before = {n: p.clone() for n, p in setup.policy.weights().items()}
    with pytest.raises(CxrlError, match=message):
        setup.update(advantages, epoch=4)
    for name, p in setup.policy.weights().items():
        torch.testing.assert_close(p, before[name], rtol=0, atol=0, equal_nan=True)


def test_the_statistics_are_their_definitions(
    make: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """approx_kl, clip fraction, loss and ratio of an epoch, from every log-probability that was scored."""
    clip = 1e-4
    setup = make(minibatches=3, lora_learning_rate=1e-3, ace_learning_rate=1e-3, clip_range=clip)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def spy(log_prob: Tensor, old: Tensor, advantage: Tensor, clip_range: float, weight: Tensor) -> Any:
        seen.append((log_prob.detach().double(), old.double(), advantage.double()))
        assert clip_range == clip
        assert torch.equal(weight, torch.ones_like(weight)), "nothing is weighted by default"
        return ppo_loss(log_prob, old, advantage, clip_range, weight)

    monkeypatch.setattr("cxrl.rl.update.ppo_loss", spy)
    stats = setup.update()
    assert len(seen) == 3, "a piece an optimizer step"
    change = torch.cat([new - old for new, old, _ in seen[1:]])
    assert stats.approx_kl == pytest.approx(float(change.square().mean()) / 2, rel=1e-4)
    outside = (change.exp() - 1).abs() > clip
    assert stats.clip_fraction == pytest.approx(float(outside.double().mean()))
    assert 0 < stats.clip_fraction < 1
    assert stats.ratio_mean == pytest.approx(float((seen[0][0] - seen[0][1]).exp().mean()), abs=1e-6)
    rows = torch.arange(NUM * setup.rollout.schedule.num_policy_steps)
    total = 0.0
    for (new, old, advantage), part in zip(seen, rows.tensor_split(3), strict=True):
        ratio = (new - old).exp()
        clipped = ratio.clamp(1 - clip, 1 + clip)
        total += float(torch.maximum(-advantage * ratio, -advantage * clipped).sum()) / len(part)
    assert stats.loss == pytest.approx(total / 3, rel=1e-3, abs=1e-5)


def test_the_optimizers_state_comes_back(make: Callable[..., Setup]) -> None:
    one, other = make(), make()
    one.update()
    state = one.updater.state()
    names = one.policy.trainable
    assert set(state.tensors["optimizer.safetensors"]) == {
        f"{name}/{entry}" for name in names for entry in ("step", "exp_avg", "exp_avg_sq")
    }
    other.policy.load_weights({n: p.clone() for n, p in one.policy.weights().items()}, "here")
    kept = {name: value.clone() for name, value in state.tensors["optimizer.safetensors"].items()}
    other.updater.load_state(State({"optimizer.safetensors": kept}, state.numbers), "here")
    assert other.updater.num_steps == 1
    one.rollout = other.rollout = one.sampler.rollout(one.rollout.batch, fresh_noise(one))
    for setup in (one, other):
        setup.update(epoch=1)
    for name in names:
        assert torch.equal(one.policy.trainable[name], other.policy.trainable[name])
    wrong = {name: value for name, value in kept.items() if not name.startswith("ace/")}
    with pytest.raises(CxrlError, match=r"here/optimizer.safetensors: misses weight ace"):
        other.updater.load_state(State({"optimizer.safetensors": wrong}, state.numbers), "here")
    make().updater.load_state(
        State({"optimizer.safetensors": {}}, {"step": 0}), "here"
    )  # before a first step


def fresh_noise(setup: Setup) -> Any:
    return batch_noise(generator(1, "rollout"), setup.policy.base.latent_shape, NUM)
