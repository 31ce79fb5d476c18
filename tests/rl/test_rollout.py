"""A step of sampling, whatever kind of Stable Diffusion the base is, is the step of plain diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from cxrl.config import PolicyConfig, SamplerConfig
from cxrl.data.prompts import ReportPrompt
from cxrl.models.base import load_base
from cxrl.models.policy import Policy
from cxrl.ops import denoise_step
from cxrl.rl.rollout import Sampler

KINDS: dict[str, dict[str, Any]] = {
    "sd1": {
        "scheduler_class": "PNDMScheduler",
        "scheduler": {"prediction_type": "epsilon", "set_alpha_to_one": False, "skip_prk_steps": True},
    },
    "sd2": {
        "scheduler": {"prediction_type": "v_prediction", "set_alpha_to_one": False, "clip_sample": True},
        "width": 24,
        "unet": {"attention_head_dim": (2, 4), "use_linear_projection": True},
    },
    "zero-snr": {
        "scheduler": {"rescale_betas_zero_snr": True, "beta_schedule": "linear", "steps_offset": 0},
    },
    "trained-betas": {
        "scheduler_class": "EulerDiscreteScheduler",
        "scheduler": {
            "prediction_type": "epsilon",
            "trained_betas": np.geomspace(1e-3, 0.08, 100).tolist(),
            "timestep_spacing": "linspace",
        },
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_diffusers_ddim_of_the_same_folder(
    make_pipeline: Callable[..., Path], kind: str
) -> None:
    folder = make_pipeline(**KINDS[kind])
    policy = Policy(load_base(folder), PolicyConfig(num_ace_tokens=0), seed=0)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()
    prompts = [ReportPrompt(0, "left lung", ()), ReportPrompt(1, "heart", ())]
    x, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prompt_of = torch.tensor([0, 1, 1])
    for spacing, num_steps in (("trailing", 5), ("leading", 9), ("linspace", 4)):
        sampler = Sampler(policy, SamplerConfig(num_steps=num_steps, eta=0.8, timestep_spacing=spacing))
        embeds = sampler.prompt_embeds(prompts)
        # A pipeline for latents switches clip_sample off, whatever the folder says.
        changes = {"timestep_spacing": spacing, "clip_sample": False}
        ddim: Any = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", **changes)
        ddim.set_timesteps(num_steps)
        assert sampler.schedule.timesteps.tolist() == ddim.timesteps.tolist()
        for step, t in enumerate(ddim.timesteps):
            found, _ = sampler._step(step, x, noise, embeds, prompt_of, anchor=False)
            with torch.no_grad():
                output = unet(x, t, embeds[prompt_of], return_dict=False)[0]
            expected = ddim.step(output, t, x, eta=0.8, variance_noise=noise).prev_sample
            # float32 in the network, and diffusers' coefficients in float32: of terms up to 1/sqrt(alpha_T).
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_guidance_goes_away_from_the_empty_prompt(make_pipeline: Callable[..., Path]) -> None:
    folder = make_pipeline()
    policy = Policy(load_base(folder), PolicyConfig(num_ace_tokens=0), seed=0)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()
    sampler = Sampler(policy, SamplerConfig(num_steps=3, eta=0.8, guidance_scale=2.5))
    x, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    embeds = sampler.prompt_embeds([ReportPrompt(0, "left lung", ())])
    found, _ = sampler._step(1, x, noise, embeds, torch.tensor([0, 0]), anchor=False)
    t, row = sampler.schedule.timesteps[1], sampler.schedule.rows[1].expand(2, 3)
    with torch.no_grad():
        outputs = [
            unet(x, t, text.expand(2, -1, -1), return_dict=False)[0]
            for text in (embeds, policy.base.encode_text([""]))
        ]
    expected, _ = denoise_step(outputs[0], outputs[1], 2.5, x, noise, row)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
