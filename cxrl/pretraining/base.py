"""The base model: text encoder and UNet trained together on latents, saved as a genuine
StableDiffusionPipeline.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrl.pretraining.fit import FitOptions, fit

MAX_TOKENS = 48
TEXT_WIDTH = 128
PROMPT_DROPOUT = 0.1
"""Share of training texts replaced by the empty prompt, so that classifier-free guidance works."""


def build_tokenizer(texts: Sequence[str], folder: Path) -> Any:
    """A byte-level CLIPTokenizer whose merges are learnt from ``texts``; its files are written to
    ``folder``.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1000, min_frequency=2, end_of_word_suffix="</w>", show_progress=False
    )
    model.train_from_iterator(sorted(set(texts)), trainer)
    learnt = json.loads(model.to_str())["model"]["merges"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in learnt]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(m) for m in merges)]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, rules = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    rules.write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(str(vocabulary), str(rules), model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def build_text_encoder(tokenizer: Any) -> nn.Module:
    """A small CLIPTextModel for ``tokenizer``."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=3 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(latent_channels: int, latent_size: int, channels: tuple[int, int] = (64, 96)) -> nn.Module:
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
    train_text_encoder: bool,
    seed: int,
    work_dir: Path,
    data: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Trains ``unet`` (and ``text_encoder``) in place on scaled latents [N, C, h, w] and their reports.

    ``data`` names what is trained on, see :func:`cxrl.pretraining.fit.fit`.
    """
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    text_encoder.requires_grad_(train_text_encoder)
    both = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    encoded = tokenizer(
        ["", *texts],
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (batch_size,), generator=generator)
        dropped = torch.rand(batch_size, generator=generator) < PROMPT_DROPOUT
        ids = encoded[torch.where(dropped, 0, index + 1)]
        embeds = text_encoder(ids)[0]
        return denoising_loss(unet, embeds, latents[index], scheduler, generator)

    fit("base", both, loss_at, options, seed=seed, work_dir=work_dir, data=data, report=report)


def save_pipeline(
    folder: Path,
    *,
    vae: Any,
    text_encoder: Any,
    tokenizer: Any,
    unet: Any,
    scheduler: Any,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a StableDiffusionPipeline folder, safetensors only; ``dtype`` casts the stored weights (in
    place).
    """
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    if dtype is not None:
        pipeline.to(dtype)
    pipeline.save_pretrained(folder, safe_serialization=True)
