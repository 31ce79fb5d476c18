"""The policy gradient of a problem that can be solved by hand, through the trainer's own stages.

One step, one latent number, a network that predicts θ (plus the mean of its ACE tokens) and the reward β·x:

    x ~ N(c_x·x_T + c_e·θ, σ²)      ∇_θ E[β·x] = β·c_e

and β·c_e / s with RLCF, where s is the bank's standard deviation: the anchor's reward is a baseline, as
long as its step noise is its own. With the policy's step noise replayed the difference no longer depends on
the action, and the gradient is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrl.config import ComparisonConfig, OptimConfig, SamplerConfig
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.rl.advantages import advantages
from cxrl.rl.anchor import bank_noise
from cxrl.rl.comparison import RewardUnits, compare
from cxrl.rl.engine import Engine
from cxrl.rl.records import RewardTable, Rollout
from cxrl.rl.rollout import NoiseStream, Sampler, batch_noise, start_from
from cxrl.rl.seeding import generator
from cxrl.rl.update import Updater, _Pass

NUM, BETA = 40_000, 1.7
STEPS = SamplerConfig(num_steps=1, batch_size=NUM)
PROMPT = [ReportPrompt(0, "one", ())]
UNIT = RewardUnits(torch.zeros(1), torch.ones(1))


class Problem:
    """Rollout, anchors and gradient of the toy."""

    def __init__(self, policy: Any, run_dir: Path) -> None:
        self.policy = policy
        self.sampler = Sampler(policy, STEPS)
        self.updater = Updater(self.sampler, OptimConfig(micro_batch_size=NUM), Engine(run_dir), num_epochs=1)
        self.batch = PromptBatch.repeat(PROMPT, NUM)
        self.rollout = self.sampler.rollout(self.batch, self.noise("rollout"))
        _, self.c_e, self.sigma = self.sampler.schedule.rows[0].tolist()

    @staticmethod
    def noise(purpose: str) -> NoiseStream:
        return batch_noise(generator(0, purpose), (1, 1, 1), NUM)

    def rewards(self, images: Tensor) -> RewardTable:
        return RewardTable(("r",), BETA * images.flatten(1))

    def bank(self, size: int) -> Tensor:
        noise = bank_noise(0, PROMPT, size, (1, 1, 1), torch.device("cpu"))
        images = self.sampler.images(PromptBatch.repeat(PROMPT, size), noise, anchor=True)
        return self.rewards(images).values.view(1, size, 1)

    def anchors(self, noise: NoiseStream) -> Tensor:
        stream = start_from(self.rollout.latents[:, 0], noise)
        images = self.sampler.images(self.batch, stream, anchor=True)
        return self.rewards(images).values[:, None]

    def advantage(self, anchors: Tensor | None, anchor_of: Tensor, center: str, **settings: Any) -> Tensor:
        config = ComparisonConfig(without_anchor=(), **settings)
        result = compare(self.rewards(self.rollout.images), anchors, anchor_of, (1.0,), UNIT, config)
        values = advantages(result.score, self.batch.prompt_of, center=center, scale="none", clip=1e9)
        return values.values

    def gradient(self, advantage: Tensor) -> tuple[Tensor, float]:
        """Ascent direction of θ, and the standard error of its estimate."""
        for p in self.policy.trainable.values():
            p.grad = None
        embeds = self.sampler.prompt_embeds(PROMPT)
        rows = torch.stack([torch.arange(NUM), torch.zeros(NUM, dtype=torch.int64)], 1)
        _Pass(self.updater, self.rollout, advantage, embeds).accumulate(rows, NUM)
        mean = (
            self.sampler.schedule.rows[0, 0] * self.rollout.latents[:, 0]
            + self.c_e * self.policy.theta.detach()
        )
        score = (self.rollout.latents[:, 1] - mean).flatten() * self.c_e / self.sigma**2
        return -self.policy.theta.grad, float((advantage * score).std() / NUM**0.5)


@pytest.fixture
def problem(make_toy: Callable[..., Any], tmp_path: Path) -> Problem:
    return Problem(make_toy(), tmp_path)


def within(estimate: Tensor, error: float, expected: float) -> None:
    """Five standard errors of the Monte Carlo estimate, and these small enough to tell it from zero."""
    assert abs(float(estimate) - expected) < 5 * error
    assert 5 * error < 0.3 * abs(expected)


@pytest.mark.parametrize("center", ["prompt", "batch", "none"])
def test_direct(problem: Problem, center: str) -> None:
    prompt_of = problem.batch.prompt_of
    estimate, error = problem.gradient(problem.advantage(None, prompt_of, center, form="direct"))
    within(estimate, error, BETA * problem.c_e)


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("center", ["batch", "none"])
def test_difference_to_the_bank(problem: Problem, size: int, center: str) -> None:
    bank = problem.bank(size)
    advantage = problem.advantage(bank, problem.batch.prompt_of, center, form="difference")
    estimate, error = problem.gradient(advantage)
    within(estimate, error, BETA * problem.c_e / float(bank.std(correction=0)))


def test_win_and_bradley_terry(problem: Problem) -> None:
    # ∇ E[f(x)] = c_e · E[f'(x)]; for a share of wins f' is the density at the bank's images.
    bank = problem.bank(8)
    c_x, theta = float(problem.sampler.schedule.rows[0, 0]), float(problem.policy.theta.detach())
    spread = (c_x**2 + problem.sigma**2) ** 0.5
    x = torch.distributions.Normal(problem.c_e * theta, spread)
    win = (2 * torch.pi) ** 0.5 * float(x.log_prob(bank / BETA).exp().mean())
    estimate, error = problem.gradient(problem.advantage(bank, problem.batch.prompt_of, "none", form="win"))
    within(estimate, error, problem.c_e * win)
    grid = torch.linspace(-8, 8, 20_001) * spread + problem.c_e * theta
    s = float(bank.std(correction=0))
    share = torch.sigmoid((BETA * grid[:, None] - bank.flatten()) / s)
    slope = 4 * (1 + torch.pi / 8) ** 0.5 * BETA / s * (share * (1 - share)).mean(1)
    density = x.log_prob(grid).exp()
    expected = problem.c_e * float((slope * density).sum() / density.sum())
    advantage = problem.advantage(bank, problem.batch.prompt_of, "batch", form="bradley_terry")
    within(*problem.gradient(advantage), expected)


def test_one_anchor_a_sample_from_the_same_x_t(problem: Problem) -> None:
    anchors = problem.anchors(problem.noise("anchor"))
    pairs = torch.arange(NUM)
    advantage = problem.advantage(anchors, pairs, "none", form="difference", anchor="one_to_one")
    estimate, error = problem.gradient(advantage)
    within(estimate, error, BETA * problem.c_e)


@pytest.mark.parametrize("form", ["difference", "win", "bradley_terry"])
def test_replayed_step_noise_gives_zero(problem: Problem, form: str) -> None:
    """The mistake that the bank and ``start_from`` are built to avoid, made on purpose."""
    replayed = problem.noise("rollout")
    replayed()  # x_T
    anchors = problem.anchors(replayed)
    pairs = torch.arange(NUM)
    advantage = problem.advantage(anchors, pairs, "batch", form=form, anchor="one_to_one")
    estimate, _ = problem.gradient(advantage)
    assert float(estimate) == 0.0
    own = problem.anchors(problem.noise("anchor"))
    advantage = problem.advantage(own, pairs, "batch", form=form, anchor="one_to_one")
    estimate, error = problem.gradient(advantage)
    assert abs(float(estimate)) > 10 * error


def test_ace_gets_its_share(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    problem = Problem(make_toy(num_ace_tokens=3), tmp_path)
    bank = problem.bank(8)
    advantage = problem.advantage(bank, problem.batch.prompt_of, "batch", form="difference")
    estimate, error = problem.gradient(advantage)
    expected = BETA * problem.c_e / float(bank.std(correction=0))
    within(estimate, error, expected)
    # The output takes the mean of 3 tokens of width 2.
    ace = problem.policy.ace.grad
    torch.testing.assert_close(-ace, torch.full((3, 2), float(estimate) / 6), rtol=1e-4, atol=0)


def test_old_actions_are_scored_again_exactly(problem: Problem) -> None:
    rollout: Rollout = problem.rollout
    assert rollout.latents.shape == (NUM, 2, 1, 1, 1)
    problem.gradient(torch.ones(NUM))
    expected = (
        torch.distributions.Normal(0.0, 1.0)
        .log_prob(
            (
                rollout.latents[:, 1]
                - rollout.latents[:, 0] * problem.sampler.schedule.rows[0, 0]
                - problem.c_e * problem.policy.theta.detach()
            )
            / problem.sigma
        )
        .flatten()
        - torch.tensor(problem.sigma).log()
    )
    torch.testing.assert_close(rollout.log_probs[:, 0], expected, rtol=1e-4, atol=1e-4)
