"""Log-probabilities and KL against torch.distributions, and the clipped objective by cases."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from cxrl.ops import denoise_step, trajectory_log_prob
from cxrl.rl.loss import ppo_loss, step_kl

SHAPE = (5, 3, 4, 2)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table(num: int = SHAPE[0]) -> torch.Tensor:
    return torch.tensor([0.9, -0.4, 0.3]) + 0.05 * torch.arange(num)[:, None]


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_log_prob_is_the_mean_of_torch_distributions(guidance: float) -> None:
    cond, x_t, noise = draw(3, *SHAPE)
    uncond = draw(*SHAPE, seed=1) if guidance > 1 else None
    rows = table()
    x_prev, sampled = denoise_step(cond, uncond, guidance, x_t, noise, rows)
    scored = trajectory_log_prob(cond, uncond, guidance, x_t, x_prev, rows)
    guided = cond if uncond is None else uncond + guidance * (cond - uncond)
    c_x, c_e, sigma = (rows[:, k].view(-1, 1, 1, 1).double() for k in range(3))
    expected = Normal(c_x * x_t.double() + c_e * guided.double(), sigma.expand(SHAPE))
    expected = expected.log_prob(x_prev.double()).flatten(1).mean(1)
    torch.testing.assert_close(scored.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sampled, scored, rtol=0, atol=1e-6)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_step_kl_is_that_of_torch_distributions(guidance: float) -> None:
    outputs = draw(4, *SHAPE).double()
    policy, anchor = (outputs[0], outputs[1]), (outputs[2], outputs[3])
    if guidance == 1:
        policy, anchor = (outputs[0], None), (outputs[2], None)
    rows = table()
    x_t = draw(*SHAPE, seed=2).double()
    c_x, c_e, sigma = (rows[:, k].view(-1, 1, 1, 1).double() for k in range(3))

    def step(output: tuple[torch.Tensor, torch.Tensor | None]) -> Normal:
        cond, uncond = output
        guided = cond if uncond is None else uncond + guidance * (cond - uncond)
        return Normal(c_x * x_t + c_e * guided, sigma.expand(SHAPE))

    expected = kl_divergence(step(policy), step(anchor)).flatten(1).mean(1)
    torch.testing.assert_close(
        step_kl(policy, anchor, guidance, rows).double(), expected, rtol=1e-4, atol=1e-6
    )
    assert not step_kl(policy, policy, guidance, rows).any()


def test_the_clipped_objective_by_cases() -> None:
    #                      at 1   in    up,A>0  up,A<0  down,A>0  down,A<0
    advantage = torch.tensor([2.0, 2.0, 2.0, -2.0, 2.0, -2.0])
    log_ratio = torch.tensor([0.0, 0.05, 0.5, 0.5, -0.5, -0.5], requires_grad=True)
    loss, ratio = ppo_loss(log_ratio, torch.zeros(6), advantage, 0.1)
    ratio = ratio.detach()
    expected = torch.stack(
        [-2 * ratio[0], -2 * ratio[1], torch.tensor(-2.2), 2 * ratio[3], -2 * ratio[4], torch.tensor(1.8)]
    )
    torch.testing.assert_close(loss.detach(), expected)
    loss.sum().backward()
    # Beyond the clip range the gradient is gone where the step already did what the advantage asks for.
    assert (log_ratio.grad == 0).tolist() == [False, False, True, False, False, True]


def test_the_gradient_at_ratio_one_is_the_policy_gradient() -> None:
    log_prob = draw(7).requires_grad_()
    advantage = draw(7, seed=3)
    ppo_loss(log_prob, log_prob.detach(), advantage, 1e-4)[0].sum().backward()
    torch.testing.assert_close(log_prob.grad, -advantage)
