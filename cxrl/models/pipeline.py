"""Networks into a folder that plain diffusers loads with no argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_pipeline(
    folder: Path,
    *,
    vae: Any,
    text_encoder: Any,
    tokenizer: Any,
    unet: Any,
    scheduler: Any,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a StableDiffusionPipeline, safetensors only; the networks are cast in place.

    Args:
        folder: What is there of these names is replaced.
        vae, text_encoder, tokenizer, unet, scheduler: Its parts. The scheduler is stored as it is; diffusers
            insists on a ``steps_offset`` of 1 where it loads one.
        dtype: Of the stored weights. Those of the text encoder are rounded to it and stored in float32:
            transformers loads a network in the dtype of its file and diffusers in float32, and the two must
            agree in a pipeline that nobody gives a dtype.
    """
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=type(scheduler).from_config(scheduler.config, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (vae, unet, text_encoder):
        torch.nn.Module.to(part, dtype)  # the classes' own .to() warns of layers to stay float32, of none
    text_encoder.float()
    pipeline.save_pretrained(folder, safe_serialization=True)
    scheduler.save_pretrained(folder / "scheduler")
