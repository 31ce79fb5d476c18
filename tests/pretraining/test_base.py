from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor, nn

from cxrl.data.phantom.films import phantom_prompts
from cxrl.models.pipeline import save_pipeline
from cxrl.pretraining.autoencoder import build_autoencoder
from cxrl.pretraining.base import build_scheduler, build_unet, denoising_loss
from cxrl.pretraining.text_encoder import MAX_TOKENS, build_text_encoder, build_tokenizer

LATENTS = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0))


class Oracle(nn.Module):
    """Knows the clean latents: solves x_t = sqrt(a) x_0 + sqrt(1 - a) noise and answers in ``kind``."""

    def __init__(self, scheduler: Any, kind: str) -> None:
        super().__init__()
        self.alphas, self.kind = scheduler.alphas_cumprod, kind

    def forward(self, noisy: Tensor, steps: Tensor, embeds: Tensor) -> SimpleNamespace:
        a = self.alphas[steps].view(-1, 1, 1, 1)
        noise = (noisy - a.sqrt() * LATENTS) / (1 - a).sqrt()
        v = a.sqrt() * noise - (1 - a).sqrt() * LATENTS
        return SimpleNamespace(sample={"epsilon": noise, "v_prediction": v, "sample": LATENTS}[self.kind])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("answer", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_that_of_the_prediction_type(kind: str, answer: str) -> None:
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", prediction_type=kind)
    loss = denoising_loss(
        Oracle(scheduler, answer), torch.zeros(6, 1, 1), LATENTS, scheduler, torch.Generator().manual_seed(1)
    )
    # float32: the oracle divides by sqrt(1 - a), which is 0.03 at the first step.
    assert (float(loss) < 1e-6) == (kind == answer)


def test_the_scheduler_ends_in_pure_noise() -> None:
    scheduler = build_scheduler()
    assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(0.0, abs=1e-7)
    scheduler.set_timesteps(8)
    assert int(scheduler.timesteps[0]) == 999


def test_the_tokenizer_keeps_reports_apart_and_is_saved(tmp_path: Path) -> None:
    texts = [prompt.text for prompt in phantom_prompts(200, seed=0)]
    tokenizer = build_tokenizer(texts, tmp_path)
    ids = [tuple(tokenizer(text).input_ids) for text in texts]
    assert len(set(ids)) == 200
    assert max(map(len, ids)) <= MAX_TOKENS
    num_words = sum(len(text.split()) for text in texts)
    assert sum(map(len, ids)) < 1.5 * num_words + 2 * 200  # merges were learnt: a word is about a token
    assert ids[0][0] == tokenizer.bos_token_id
    assert ids[0][-1] == tokenizer.eos_token_id
    # Words that were never seen, and other alphabets, are spelled out, not lost.
    for text in ("zebra", "pneumothorax", "épanchement", "胸水"):
        assert tokenizer.decode(tokenizer(text).input_ids[1:-1]).strip() == text
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again(texts[0]).input_ids == tokenizer(texts[0]).input_ids


def test_what_is_built_is_a_pipeline_of_plain_diffusers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer([p.text for p in phantom_prompts(8, seed=0)], tmp_path / "tokenizer")
    vae = build_autoencoder(32, (8, 8, 8, 8))
    unet = build_unet(vae.config.latent_channels, 4, (16, 16))
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as after training
    save_pipeline(
        tmp_path / "pipeline",
        vae=vae,
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        dtype=torch.float16,
    )
    files = {p.suffix for p in (tmp_path / "pipeline").rglob("*") if p.is_file()}
    assert files <= {".json", ".txt", ".safetensors"}
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline").to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(0)
    image = pipe("Large left effusion.", num_inference_steps=2, generator=rng, output_type="np").images
    assert image.shape[:3] == (1, 32, 32)
