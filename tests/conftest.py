"""Tiny random models in the real formats, so that every loader is the one that users run."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = ("no", "acute", "heart", "size", "is", "normal", "enlarged", "left", "pleural", "effusion", "lung")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """``full_size`` tests run when they are asked for by name, and not because of another ``-m``."""
    if "full_size" in config.getoption("-m"):
        return
    for item in items:
        if item.get_closest_marker("full_size"):
            item.add_marker(pytest.mark.skip(reason="full size: pytest -m full_size"))


def write_tokenizer(folder: Path, max_length: int = 16) -> Any:
    """A byte-level CLIPTokenizer with a few merges."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(a + "</w>" for a in alphabet)]
    merges: list[str] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merge = f"{pieces[0]} {pieces[1]}"
            pieces[:2] = [pieces[0] + pieces[1]]
            if merge not in merges:
                merges.append(merge)
                tokens.append(pieces[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=max_length
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_pipeline(
    folder: Path,
    *,
    image_channels: int = 3,
    seed: int = 0,
    scheduler_class: str = "DDIMScheduler",
    scheduler: dict[str, Any] | None = None,
    width: int = 16,
    unet: dict[str, Any] | None = None,
    variant: str | None = None,
) -> Path:
    """A random StableDiffusionPipeline folder: latents 4x8x8, images 16x16, 16 tokens of width 16.

    ``scheduler`` and ``unet`` go over their settings here; ``variant`` "fp16" writes half-precision files.
    """
    import diffusers
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    write_tokenizer(folder.parent / f"{folder.name}-tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder.parent / f"{folder.name}-tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet2DConditionModel(
            **{
                "sample_size": 8,
                "in_channels": 4,
                "out_channels": 4,
                "block_out_channels": (8, 16),
                "layers_per_block": 1,
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
                "attention_head_dim": 2,
                "norm_num_groups": 4,
                "cross_attention_dim": width,
                **(unet or {}),
            }
        )
        vae = AutoencoderKL(
            in_channels=image_channels,
            out_channels=image_channels,
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            block_out_channels=(8, 8),
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.5,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=16,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    settings = {
        "num_train_timesteps": 100,
        "beta_start": 0.001,
        "beta_end": 0.1,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 1,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        **(scheduler or {}),
    }
    kind = getattr(diffusers, scheduler_class)
    known = inspect.signature(kind.__init__).parameters
    own = kind(**{k: v for k, v in settings.items() if k in known})
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=network,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    if variant is not None:
        pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, variant=variant)
    own.save_pretrained(folder / "scheduler")  # the pipeline's constructor would change some settings
    return folder


@pytest.fixture(scope="session")
def make_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a tiny pipeline with other settings, see :func:`write_pipeline`."""

    def make(**settings: Any) -> Path:
        return write_pipeline(tmp_path_factory.mktemp("models") / "pipeline", **settings)

    return make


@pytest.fixture(scope="session")
def tiny_pipeline(make_pipeline: Callable[..., Path]) -> Path:
    """Folder of a tiny random StableDiffusionPipeline. Shared by all tests: never write there."""
    return make_pipeline()


def helper_module(name: str) -> Any:
    """A module beside the tests, by its path; tests are no package."""
    path = Path(__file__).parent / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def mimic() -> Any:
    """The module ``tests/data/mimic_tree.py``."""
    return helper_module("data/mimic_tree.py")


@pytest.fixture(scope="session")
def files() -> Any:
    """The module ``tests/images/picture_files.py``."""
    return helper_module("images/picture_files.py")


@pytest.fixture(scope="session")
def write_densenet(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a random DenseNet-121 of torchxrayvision, saved whole as its release's files are."""

    def write(seed: int = 0, *, name: str = "densenet.pt", zipped: bool = False) -> Path:
        from cxrl.scorers.xrv_densenet import import_xrv

        path = tmp_path_factory.mktemp("xrv") / name
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            model = import_xrv().models.DenseNet()
            torch.save(model, path, _use_new_zipfile_serialization=zipped)
        return path

    return write


@pytest.fixture(scope="session")
def densenet(write_densenet: Callable[..., Path]) -> Path:
    """A random DenseNet-121 in the format before torch 1.6."""
    return write_densenet()


def _image_text_tokenizer(folder: Path, kind: str) -> None:
    if kind == "clip":
        write_tokenizer(folder, max_length=77)
        return
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["</s>", "<unk>", *WORDS, "."]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=64, pad_token="</s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def write_image_text(folder: Path, kind: str, seed: int = 0) -> Path:
    """A random CLIP, SigLIP or SigLIP 2 model folder: images of 32 pixels, embeddings of 8."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    _image_text_tokenizer(folder, kind)
    size = len(transformers.AutoTokenizer.from_pretrained(folder))
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text: dict[str, Any] = {**tower, "vocab_size": size, "max_position_embeddings": 64}
    vision: dict[str, Any] = {**tower, "image_size": 32, "patch_size": 8}
    if kind == "clip":
        text |= {"max_position_embeddings": 77, "projection_dim": 8}
        text |= {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
        config: Any = transformers.CLIPConfig(
            text_config=text, vision_config={**vision, "projection_dim": 8}, projection_dim=8
        )
        model, processor = (
            transformers.CLIPModel,
            transformers.CLIPImageProcessor(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
            ),
        )
    elif kind == "siglip":
        config = transformers.SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=vision)
        model = transformers.SiglipModel
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    else:
        vision = {**tower, "num_patches": 16, "patch_size": 8}
        config = transformers.Siglip2Config(text_config={**text, "projection_size": 16}, vision_config=vision)
        model = transformers.Siglip2Model
        processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_image_text(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a tiny image-text model, see :func:`write_image_text`."""

    def make(kind: str, seed: int = 0) -> Path:
        return write_image_text(tmp_path_factory.mktemp("models") / kind, kind, seed)

    return make


@pytest.fixture(scope="session")
def write_run() -> Any:
    """``tests/output/run_files.py``: a run directory by hand."""
    return helper_module("output/run_files.py").write_run


@pytest.fixture(scope="session")
def page_reader() -> Any:
    """The module ``tests/output/page_reader.py``."""
    return helper_module("output/page_reader.py")
