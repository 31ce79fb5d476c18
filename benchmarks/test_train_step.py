"""Forward and backward of one minibatch of (sample, timestep) rows against plain diffusers and peft."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cxrl.data.prompts import ReportPrompt
from cxrl.ops import trajectory_log_prob
from cxrl.ops.trajectory_log_prob import trajectory_log_prob_reference
from cxrl.rl.loss import ppo_loss

ROWS, PROMPTS = 96, 8


def test_train_step(
    compare: Callable[..., Any], benchmark: Any, device: str, phantom_sampler: Any, stock_loop: Any
) -> None:
    if device != "cpu":
        pytest.skip("the session's policy is on the CPU")
    policy, schedule = phantom_sampler.policy, phantom_sampler.schedule
    embeds = phantom_sampler.prompt_embeds([ReportPrompt(i, f"Report {i}.", ()) for i in range(PROMPTS)])
    prompt_of = torch.randint(PROMPTS, (ROWS,))
    step = schedule.policy_steps[torch.randint(schedule.num_policy_steps, (ROWS,))]
    timesteps, rows = schedule.timesteps[step], schedule.rows[step]
    x_t = torch.randn(ROWS, *policy.base.latent_shape)
    x_prev, advantages = x_t + 0.1 * torch.randn_like(x_t), torch.randn(ROWS)
    weights = list(policy.trainable.values())

    def gradient(log_prob: torch.Tensor) -> list[torch.Tensor]:
        loss, _ = ppo_loss(log_prob, log_prob.detach(), advantages, 1e-3)
        return list(torch.autograd.grad(loss.mean(), weights))

    def ours() -> list[torch.Tensor]:
        output = policy.predict(x_t, timesteps, embeds, prompt_of=prompt_of)
        return gradient(trajectory_log_prob(*output, 1.0, x_t, x_prev, rows))

    def theirs() -> list[torch.Tensor]:
        with stock_loop:
            output = stock_loop.predict(x_t, timesteps, embeds[prompt_of])
            return gradient(trajectory_log_prob_reference(output, None, 1.0, x_t, x_prev, rows))

    for a, b in zip(ours(), theirs(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 + 1e-4 * float(b.abs().max()))
    medians = compare(
        "train step fwd+bwd",
        f"rows={ROWS} prompts={PROMPTS}",
        {"cxrl": ours, "diffusers+peft": theirs},
        num_bytes=2 * stock_loop.weight_bytes + 12 * x_t.numel(),
        flops=stock_loop.flops(theirs),
    )
    benchmark.extra_info["rows_per_second"] = ROWS / medians["cxrl"]
