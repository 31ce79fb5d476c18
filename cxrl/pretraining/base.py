"""The base model: a UNet trained on latents and reports, saved as a genuine StableDiffusionPipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrl.pretraining.fit import FitOptions, fit
from cxrl.pretraining.text_encoder import TEXT_WIDTH, tokenize

PROMPT_DROPOUT = 0.1
"""Share of training texts replaced by the empty prompt, so that classifier-free guidance works."""


def build_unet(latent_channels: int, latent_size: int, channels: tuple[int, int] = (64, 96)) -> Any:
    """A UNet2DConditionModel with attention at both resolutions."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> Any:
    """v-prediction on Stable Diffusion's betas, rescaled to zero terminal SNR (arXiv 2305.08891),
    trailing steps.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # StableDiffusionPipeline warns of anything else; trailing steps do not use it
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def denoising_loss(
    unet: nn.Module, embeds: Tensor, latents: Tensor, scheduler: Any, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the model output at uniform timesteps, for any prediction type.

    Args:
        embeds: Prompt embeddings [B, L, D].
        latents: Scaled latents float32 [B, C, h, w].
    """
    n = latents.shape[0]
    steps = torch.randint(scheduler.config.num_train_timesteps, (n,), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    noisy = scheduler.add_noise(latents, noise, steps)
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        target = scheduler.get_velocity(latents, noise, steps)
    else:
        target = noise if kind == "epsilon" else latents
    output = unet(noisy.to(memory_format=torch.channels_last), steps, embeds).sample
    return F.mse_loss(output.float(), target)


def fit_base(
    latents: Tensor,
    texts: Sequence[str],
    *,
    tokenizer: Any,
    text_encoder: nn.Module,
    unet: nn.Module,
    scheduler: Any,
    options: FitOptions,
    batch_size: int,
    seed: int,
    work_dir: Path,
    data: str = "",
    tell: Callable[[str], None] = print,
) -> None:
    """Trains ``unet`` in place on scaled latents [N, C, h, w] and their reports; the text encoder is frozen.

    ``data`` names what is trained on, see :func:`cxrl.pretraining.fit.fit`.
    """
    unet.to(memory_format=torch.channels_last)
    with torch.no_grad():
        ids = tokenize(tokenizer, ["", *texts])
        embeds = torch.cat([text_encoder(part)[0].half() for part in ids.split(256)])

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (batch_size,), generator=generator)
        dropped = torch.rand(batch_size, generator=generator) < PROMPT_DROPOUT
        prompt = embeds[torch.where(dropped, 0, index + 1)].float()
        return denoising_loss(unet, prompt, latents[index], scheduler, generator)

    fit("base", unet, loss_at, options, seed=seed, work_dir=work_dir, data=data, tell=tell)
