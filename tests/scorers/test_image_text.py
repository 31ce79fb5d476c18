"""CLIP and SigLIP folders: their own preprocessing, token limit and padding."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from cxrl.errors import CxrlError
from cxrl.scorers.choice import ModelChoice, file_sha256
from cxrl.scorers.image_text import CLASSES, ImageTextModel
from cxrl.scorers.required import MissingFile

TEXTS = ["no acute effusion .", "heart size is normal .", "left pleural effusion ."]
KINDS = list(CLASSES)


def choice(folder: Path, **options: object) -> ModelChoice:
    made = ModelChoice("rewards", "consistency", str(folder), Path(), batch_size=2)
    return dataclasses.replace(made, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folders(make_image_text: Callable[..., Path]) -> dict[str, Path]:
    return {kind: make_image_text(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, ImageTextModel]:
    return {kind: ImageTextModel(choice(folder).open(), "cpu") for kind, folder in folders.items()}


def grey(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A smooth 8-bit film, uint8 [H, W]."""
    coarse = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (smooth[0, 0] * 255).round().to(torch.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(96, 96), (64, 100), (90, 50), (32, 32), (20, 20)])
def test_pixels_are_those_of_the_processor(
    models: dict[str, ImageTextModel], folders: dict[str, Path], kind: str, shape: tuple[int, int]
) -> None:
    pixels = grey(*shape)
    processor = transformers.AutoImageProcessor.from_pretrained(folders[kind])
    expected = processor(images=Image.fromarray(pixels.numpy()).convert("RGB"), return_tensors="pt")
    found = models[kind].pixel_values(pixels[None, None].float() / 255.0).expand(-1, 3, -1, -1)
    if kind == "siglip2":
        height, width = expected["spatial_shapes"][0].tolist()
        assert found.shape[-2:] == (8 * height, 8 * width)
        patches = (
            found.reshape(1, 3, height, 8, width, 8).permute(0, 2, 4, 3, 5, 1).reshape(1, height * width, -1)
        )
        found, wanted = patches, expected["pixel_values"][:, : height * width]
    else:
        wanted = expected["pixel_values"]
    # The processor rounds to 8 bits after resizing: half a level, divided by the smallest std of about 0.26.
    assert float((found - wanted).abs().max()) < 1.01 / 255 / 0.26


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_the_model_s(
    models: dict[str, ImageTextModel], folders: dict[str, Path], kind: str
) -> None:
    network = getattr(transformers, CLASSES[kind]).from_pretrained(folders[kind]).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folders[kind])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    pixels = [grey(32, 32, seed) for seed in range(3)]
    pictures = [Image.fromarray(p.numpy()).convert("RGB") for p in pixels]
    limit = 77 if kind == "clip" else 64
    tokens = tokenizer(TEXTS, padding="max_length", max_length=limit, return_tensors="pt")
    inputs = {"input_ids": tokens["input_ids"]}
    if kind == "clip":
        inputs["attention_mask"] = tokens["attention_mask"]
    with torch.no_grad():
        output = network(**inputs, **processor(images=pictures, return_tensors="pt"))
    images = torch.stack(pixels)[:, None].float() / 255.0
    embeds, validity = models[kind].embed_images(images)
    torch.testing.assert_close(embeds, output.image_embeds / output.image_embeds.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(
        models[kind].text_embeds(TEXTS), output.text_embeds / output.text_embeds.norm(dim=-1, keepdim=True)
    )
    assert models[kind].max_tokens == limit
    assert validity.shape == (3,)


def test_every_text_is_read_once(
    models: dict[str, ImageTextModel], monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]
) -> None:
    model = ImageTextModel(choice(folders["clip"]).open(), "cpu")
    calls = []
    original = model._network.get_text_features
    monkeypatch.setattr(
        model._network, "get_text_features", lambda **k: (calls.append(len(k["input_ids"])), original(**k))[1]
    )
    first = model.text_embeds([TEXTS[0], TEXTS[1], TEXTS[0]])
    assert torch.equal(first[0], first[2])
    second = model.text_embeds([TEXTS[2], TEXTS[0]])
    assert torch.equal(second[1], first[0])
    assert calls == [1, 1, 1]
    # Bit by bit, in whatever company a text is read.
    assert torch.equal(models["clip"].text_embeds(TEXTS)[:2], first[:2])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_long_texts_are_cut_with_one_warning(folders: dict[str, Path], kind: str) -> None:
    model = ImageTextModel(choice(folders[kind]).open(), "cpu")
    long = "heart size is normal . " * 30
    with pytest.warns(
        UserWarning, match=rf"2 of 3 reports have more than the {model.max_tokens} tokens"
    ) as heard:
        embeds = model.text_embeds([TEXTS[0], long, long + "lung"])
    assert len(heard) == 1
    torch.testing.assert_close(embeds[1], embeds[2], rtol=0, atol=1e-6)  # rows of a batch may round apart
    model.text_embeds([long + "left lung"])  # a warning would be an error


def test_a_folder_that_is_not_there_and_a_hub_id_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        MissingFile, match=r"rewards\.consistency: missing an image-text model of transformers: some/model"
    ):
        ImageTextModel(choice(Path("some/model")).open(), "cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFile):
        ImageTextModel(choice(tmp_path / "empty").open(), "cpu")


def drop(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {n: t for n, t in tensors.items() if n != name}


def damaged(tensors: dict[str, torch.Tensor], name: str) -> Iterator[tuple[dict[str, torch.Tensor], str]]:
    """The tensors with one of them damaged in every way, and what is to be said."""
    yield drop(tensors, name), f"has no tensor {name}"
    yield {**drop(tensors, name), f"other.{name}": tensors[name]}, f"has no tensor {name}"
    yield {**tensors, name: torch.zeros(3, 5)}, f"has a tensor {name} of shape (3, 5), expected ("
    for value in (torch.nan, torch.inf):
        changed = tensors[name].clone()
        changed.view(-1)[-1] = value
        yield {**tensors, name: changed}, f"has a tensor {name} that holds {value}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_tensor_is_named(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders[kind], folder)
    path = folder / "model.safetensors"
    whole = load_file(path)
    names = sorted(whole)
    last = "visual_projection.weight" if kind == "clip" else names[-1]
    for name in (names[0], names[len(names) // 2], last) if kind == "clip" else (last,):
        for tensors, words in damaged(whole, name):
            save_file(tensors, path, metadata={"format": "pt"})
            with pytest.raises(CxrlError) as told:
                ImageTextModel(choice(folder).open(), "cpu")
            start = f"rewards.consistency: cannot load {folder}: model.safetensors {words}"
            assert str(told.value).startswith(start)
    save_file({f"module.{n}": t for n, t in whole.items()}, path, metadata={"format": "pt"})
    with pytest.raises(CxrlError, match=r"has no tensor .*, but one named module\."):
        ImageTextModel(choice(folder).open(), "cpu")


def test_positions_of_older_files_and_heads_beside_the_model_are_passed_over(
    folders: dict[str, Path], models: dict[str, ImageTextModel], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["clip"], folder)
    path = folder / "model.safetensors"
    beside = {
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "classifier.weight": torch.ones(2),
    }
    save_file(load_file(path) | beside, path, metadata={"format": "pt"})
    assert torch.equal(
        ImageTextModel(choice(folder).open(), "cpu").text_embeds(TEXTS), models["clip"].text_embeds(TEXTS)
    )


def test_shards_are_read(folders: dict[str, Path], models: dict[str, ImageTextModel], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["clip"], folder)
    (folder / "model.safetensors").unlink()
    network = transformers.CLIPModel.from_pretrained(folders["clip"])
    network.save_pretrained(folder, max_shard_size="20KB")
    made = choice(folder)
    assert len(made.weights) > 1
    assert torch.equal(
        ImageTextModel(made.open(), "cpu").text_embeds(TEXTS), models["clip"].text_embeds(TEXTS)
    )


def test_other_models_pickles_and_digests_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CxrlError, match=r"its model_type is 'bert', expected clip, siglip, siglip2"):
        ImageTextModel(choice(tmp_path).open(), "cpu")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in folders["clip"].iterdir():
        if file.suffix != ".safetensors":
            (pickled / file.name).write_bytes(file.read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(CxrlError, match=r"rewards\.consistency: cannot load .*safetensors"):
        ImageTextModel(choice(pickled).open(), "cpu")
    with pytest.raises(CxrlError, match=r"expected 0000"):
        ImageTextModel(choice(folders["clip"], sha256="0" * 64).open(), "cpu")
    digest = file_sha256(folders["clip"] / "model.safetensors")
    ImageTextModel(choice(folders["clip"], sha256=digest, dtype="bfloat16").open(), "cpu")
