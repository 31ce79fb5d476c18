"""A rollout of the embedded default against plain diffusers and peft."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.rl.rollout import batch_noise

TEXTS = ("Small left pleural effusion.", "No acute findings.", "Enlarged heart.", "Right pneumothorax.")


def test_rollout(
    compare: Callable[..., Any], benchmark: Any, device: str, phantom_sampler: Any, stock_loop: Any
) -> None:
    if device != "cpu":
        pytest.skip("the session's policy is on the CPU")
    batch = PromptBatch.repeat([ReportPrompt(i, text, ()) for i, text in enumerate(TEXTS)], 8)
    latent_shape = phantom_sampler.policy.base.latent_shape

    def noise() -> Callable[[], torch.Tensor]:
        return batch_noise(torch.Generator().manual_seed(0), latent_shape, len(batch))

    def theirs() -> torch.Tensor:
        embeds = phantom_sampler.prompt_embeds(batch.prompts)[batch.prompt_of]
        with stock_loop:
            return stock_loop.rollout(embeds, noise())

    latents = phantom_sampler.rollout(batch, noise()).latents
    torch.testing.assert_close(latents, theirs(), rtol=1e-3, atol=1e-3)  # the same chain
    x_bytes = latents[:, 0].numel() * 4
    medians = compare(
        "rollout",
        f"N={len(batch)} T={len(phantom_sampler.schedule)}",
        {"cxrl": lambda: phantom_sampler.rollout(batch, noise()), "diffusers+peft": theirs},
        num_bytes=len(phantom_sampler.schedule) * (stock_loop.weight_bytes + 2 * x_bytes),
        flops=stock_loop.flops(theirs),
    )
    benchmark.extra_info["images_per_second"] = len(batch) / medians["cxrl"]
