"""A pipeline folder that plain diffusers loads and runs with no argument, whatever it is stored in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import logging
from safetensors import SafetensorError
from safetensors.torch import load_file

from cxrl.models.base import load_base
from cxrl.models.pipeline import save_pipeline
from cxrl.rl.schedule import ddim_scheduler


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_saved_runs_with_no_argument(tiny_pipeline: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    logging.disable_progress_bar()
    base = load_base(tiny_pipeline)
    save_pipeline(
        tmp_path,
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=ddim_scheduler(base.scheduler_config, "trailing"),
        dtype=dtype,
    )
    stored = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    texts = load_file(tmp_path / "text_encoder" / "model.safetensors")
    assert all(torch.equal(t, t.to(dtype).float()) for t in texts.values() if t.is_floating_point())
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert pipe("heart", num_inference_steps=2, output_type="pt").images.isfinite().all()


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr("diffusers.StableDiffusionPipeline.__init__", lambda *_, **__: None)
    monkeypatch.setattr("diffusers.StableDiffusionPipeline.save_pretrained", full)
    network, scheduler = torch.nn.Linear(1, 1), DDIMScheduler()
    with pytest.raises(OSError, match="No space left on device"):
        save_pipeline(
            tmp_path, vae=network, text_encoder=network, tokenizer=None, unet=network, scheduler=scheduler
        )
