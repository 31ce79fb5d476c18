"""The base loads what plain diffusers loads, and gives the same embeddings and images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from cxrl.errors import CxrlError
from cxrl.models.base import load_base

TEXTS = ["no acute", "heart size is normal lung", ""]


def plain(folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


def test_prompt_embeddings_are_those_of_the_pipeline(tiny_pipeline: Path) -> None:
    base = load_base(tiny_pipeline)
    expected, empty = plain(tiny_pipeline).encode_prompt(TEXTS, "cpu", 1, True)
    found = base.encode_text(TEXTS)
    assert found.shape == (3, base.max_tokens, 16)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(base.pad_embedding(), empty[0, -1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_grey_whatever_the_autoencoder(make_pipeline: Callable[..., Path], channels: int) -> None:
    folder = make_pipeline(image_channels=channels)
    base = load_base(folder)
    assert base.latent_shape == (4, 8, 8)
    latents = torch.randn(5, *base.latent_shape)
    images = base.decode(latents, batch_size=2)
    assert images.shape == (5, 1, 16, 16)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    pipeline = plain(folder)
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    expected = pipeline.image_processor.postprocess(decoded.detach(), output_type="pt").mean(1, keepdim=True)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


def test_a_long_prompt_is_told_with_its_count(tiny_pipeline: Path) -> None:
    base = load_base(tiny_pipeline)
    assert (base.max_tokens, base.num_tokens("heart lung")) == (16, 4)
    base.encode_text(["lung " * 14])
    with pytest.raises(CxrlError, match=r"prompt of 17 tokens, the text encoder reads 16: 'lung"):
        base.encode_text(["no acute", "lung " * 15])


def test_everything_is_frozen(tiny_pipeline: Path) -> None:
    base = load_base(tiny_pipeline)
    for network in (base.unet, base.vae, base.text_encoder):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


def test_dtypes(tiny_pipeline: Path) -> None:
    base = load_base(tiny_pipeline, dtype="bfloat16")
    assert {p.dtype for m in (base.unet, base.vae, base.text_encoder) for p in m.parameters()} == {
        torch.bfloat16
    }
    assert base.decode(torch.randn(2, 4, 8, 8)).dtype == torch.float32
    with pytest.raises(CxrlError, match=r"model\.dtype: 'int8'"):
        load_base(tiny_pipeline, dtype="int8")


def test_fingerprint_tells_bases_apart(tiny_pipeline: Path, make_pipeline: Callable[..., Path]) -> None:
    first = load_base(tiny_pipeline).fingerprint()
    assert load_base(tiny_pipeline).fingerprint() == first
    assert load_base(make_pipeline(seed=1)).fingerprint() != first


@pytest.mark.parametrize(
    "part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json"]
)
def test_a_missing_part_is_named(tiny_pipeline: Path, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline, folder)
    if part.endswith(".json"):
        (folder / part).unlink()
    else:
        shutil.rmtree(folder / part)
    with pytest.raises(CxrlError, match=f"model.path: cannot load {part} of {folder}"):
        load_base(folder)


def test_pickled_weights_are_refused_unless_asked_for(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline, folder)
    weights = load_base(folder).unet.state_dict()
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(weights, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(CxrlError, match="cannot load unet"):
        load_base(folder)
    assert load_base(folder, allow_pickle=True).latent_shape == (4, 8, 8)


def test_what_is_no_stable_diffusion_pipeline(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CxrlError, match="expected a StableDiffusionPipeline"):
        load_base(folder)
