"""The base loads what plain diffusers loads, and gives the same embeddings and images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_weights_of_the_variant_fp16_are_read_where_there_are_no_others(
    make_pipeline: Callable[..., Path], tiny_pipeline: Path, tmp_path: Path
) -> None:
    folder = make_pipeline(variant="fp16")
    assert (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    with pytest.warns(UserWarning, match="has only fp16 weights of") as told:
        base = load_base(folder)
    assert len(told) == 3
    assert base.unet.dtype == torch.float32
    full = load_base(tiny_pipeline)  # the same seed
    for name, p in full.unet.named_parameters():
        torch.testing.assert_close(base.unet.get_parameter(name), p, rtol=1e-3, atol=1e-6)
    copy = tmp_path / "both"
    shutil.copytree(folder, copy)
    shutil.copytree(tiny_pipeline, copy, dirs_exist_ok=True)
    assert load_base(copy).fingerprint() == full.fingerprint()
    (copy / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CxrlError, match="cannot load vae"):
        load_base(copy)


def test_a_safety_checker_is_not_even_looked_at(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"not read")
    assert load_base(folder).fingerprint() == load_base(tiny_pipeline).fingerprint()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"unet": {"in_channels": 9}},
            "UNet takes 9 channels and gives 4, its autoencoder has 4; an inpainting",
        ),
        ({"unet": {"cross_attention_dim": 20}}, "UNet reads text of width 20, its text encoder gives 16"),
        ({"unet": {"num_class_embeds": 3}}, "needs more than text and timestep"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    make_pipeline: Callable[..., Path], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(CxrlError, match=f"{message}.*; expected a StableDiffusionPipeline"):
        load_base(make_pipeline(**settings))


def test_few_large_images_are_decoded_at_once(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(tiny_pipeline)
    expected = base.decode(torch.ones(5, 4, 8, 8))
    sizes: list[int] = []
    original = base.vae.decode

    def decode(z: torch.Tensor, **settings: Any) -> Any:
        sizes.append(len(z))
        return original(z, **settings)

    monkeypatch.setattr(base.vae, "decode", decode)
    monkeypatch.setattr("cxrl.models.base.DECODE_PIXELS", 2 * 16 * 16 + 1)
    torch.testing.assert_close(base.decode(torch.ones(5, 4, 8, 8)), expected, rtol=0, atol=1e-5)
    assert sizes == [2, 2, 1]
    sizes.clear()
    monkeypatch.setattr("cxrl.models.base.DECODE_PIXELS", 1)
    base.decode(torch.ones(2, 4, 8, 8))
    assert sizes == [1, 1]


def test_offloaded_networks_are_on_the_device_while_in_use_and_only_then(
    tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_base, base = load_base(tiny_pipeline), load_base(tiny_pipeline, offload=True)
    moves: list[str] = []
    for name in ("vae", "text_encoder", "unet"):
        network = getattr(base, name)
        monkeypatch.setattr(network, "to", lambda device, name=name: moves.append(f"{name} {device}"))
    # There is one device here: another name for it tells the two moves apart.
    monkeypatch.setattr(type(base), "device", property(lambda self: torch.device("cpu:0")))
    with base.in_use(base.text_encoder):
        for text in TEXTS:
            assert torch.equal(base.encode_text([text]), plain_base.encode_text([text]))
    assert moves == ["text_encoder cpu:0", "text_encoder cpu"]
    moves.clear()
    z = torch.ones(2, 4, 8, 8)
    assert torch.equal(base.decode(z), plain_base.decode(z))
    assert moves == ["vae cpu:0", "vae cpu"]
    moves.clear()
    with pytest.raises(RuntimeError):
        base.decode(torch.ones(2, 5, 8, 8))
    assert moves == ["vae cpu:0", "vae cpu"], "it goes back after an error too"
    assert not plain_base.offload
