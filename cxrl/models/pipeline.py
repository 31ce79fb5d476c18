"""Networks into a folder that plain diffusers loads with no argument."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError


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

    Raises:
        OSError: The disk is full.
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
    try:
        with _without_bars():
            pipeline.save_pretrained(folder, safe_serialization=True)
            scheduler.save_pretrained(folder / "scheduler")
    except SafetensorError as error:  # a type of its own, also where the disk is full
        raise OSError(" ".join(str(error).split())) from error


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Inside, transformers shows no bar of shards, of which there is one."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
