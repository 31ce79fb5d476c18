"""The bank: its images depend on (seed, prompt, m) alone, and its noise is never the policy's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cxrl.config import PolicyConfig, SamplerConfig
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError
from cxrl.models.base import load_base
from cxrl.models.policy import Policy
from cxrl.rl.anchor import AnchorBank, bank_noise
from cxrl.rl.rollout import Sampler, batch_noise, start_from
from cxrl.rl.seeding import generator

PROMPTS = [ReportPrompt(i, text, ()) for i, text in [(7, "no acute"), (3, "heart normal"), (5, "left lung")]]
SHAPE, CPU = (4, 8, 8), torch.device("cpu")


def stream(
    prompts: list[ReportPrompt], size: int, draws: int = 3, start: int = 0, stop: int | None = None
) -> torch.Tensor:
    noise = bank_noise(0, prompts, size, SHAPE, CPU, start, stop)
    return torch.stack([noise() for _ in range(draws)], 1)


def test_noise_depends_on_seed_prompt_and_number_alone() -> None:
    together, alone = stream(PROMPTS, 4), stream(PROMPTS[1:2], 4)
    assert torch.equal(together[4:8], alone)
    assert torch.equal(stream(PROMPTS[1:2], 2), alone[:2])  # a larger bank extends a smaller one
    assert torch.equal(stream(PROMPTS, 4, start=3, stop=7), together[3:7])  # as does another process's share
    assert torch.unique(together.flatten(2), dim=0).shape[0] == 12


def test_images_do_not_depend_on_when_they_are_drawn(tiny_pipeline: Path) -> None:
    policy = Policy(load_base(tiny_pipeline), PolicyConfig())
    sampler = Sampler(policy, SamplerConfig(num_steps=3))

    def draw(prompts: list[ReportPrompt]) -> torch.Tensor:
        batch, noise = PromptBatch.repeat(prompts, 2), bank_noise(0, prompts, 2, SHAPE, CPU)
        return sampler.images(batch, noise, anchor=True)

    together = draw(PROMPTS)
    with torch.no_grad():  # the policy moves on; the anchor does not
        for p in policy.trainable.values():
            p.add_(0.1)
    # The same numbers in another batch shape: to float32 rounding.
    torch.testing.assert_close(
        torch.cat([draw(PROMPTS[2:]), draw(PROMPTS[:2])]), together[[4, 5, 0, 1, 2, 3]]
    )


def test_the_anchor_shares_x_t_but_not_the_step_noise() -> None:
    own = batch_noise(generator(0, "rollout", 4), SHAPE, 5)
    x_start, *policy_noise = own(), own(), own()
    anchor = start_from(x_start, batch_noise(generator(0, "anchor", 4), SHAPE, 5))
    assert torch.equal(anchor(), x_start)
    for eps in policy_noise:
        other = anchor()
        assert abs(float((eps * other).mean())) < 5 / (5 * 256) ** 0.5  # uncorrelated, within 5 sd
        assert (eps != other).all()


def test_add_extend_and_table() -> None:
    bank = AnchorBank(("a", "b"), 2)
    assert bank.missing(PROMPTS) == PROMPTS
    bank.add(PROMPTS[:2], torch.arange(8.0).view(4, 2))
    assert bank.missing(PROMPTS) == PROMPTS[2:]
    assert bank.table([PROMPTS[1], PROMPTS[0]]).tolist() == [[[4, 5], [6, 7]], [[0, 1], [2, 3]]]
    with pytest.raises(RuntimeError, match="shape"):
        bank.add(PROMPTS, torch.zeros(4, 2))


def test_state_comes_back_and_is_refused_when_it_does_not_fit() -> None:
    bank = AnchorBank(("a", "b"), 2)
    bank.add(PROMPTS, torch.randn(6, 2))
    copy = AnchorBank(("a", "b"), 2)
    copy.load_state(bank.state(), CPU, "x")
    assert torch.equal(copy.table(PROMPTS), bank.table(PROMPTS))
    empty = AnchorBank(("a", "b"), 2)
    empty.load_state(AnchorBank(("a", "b"), 2).state(), CPU, "x")
    assert len(empty) == 0
    with pytest.raises(CxrlError, match=r"bank.safetensors.*comparison.bank_size"):
        AnchorBank(("a", "b"), 3).load_state(bank.state(), CPU, "bank.safetensors")


def test_rollout_and_images_are_the_same_chain(tiny_pipeline: Path, make_toy: Callable[..., object]) -> None:
    policy = Policy(load_base(tiny_pipeline), PolicyConfig())
    batch = PromptBatch.repeat(PROMPTS, 3)
    results = []
    for batch_size in (9, 4):
        sampler = Sampler(policy, SamplerConfig(num_steps=3, guidance_scale=2.0, batch_size=batch_size))
        rollout = sampler.rollout(batch, batch_noise(generator(1, "x"), SHAPE, 9))
        images = sampler.images(batch, batch_noise(generator(1, "x"), SHAPE, 9))
        assert torch.equal(images, rollout.images)
        results.append(rollout)
        assert rollout.latents.dtype == torch.float32
        assert rollout.log_probs.shape == (9, sampler.schedule.num_policy_steps)
    torch.testing.assert_close(results[0].latents, results[1].latents, rtol=1e-4, atol=1e-5)
