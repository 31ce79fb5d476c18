"""The networks that score: stored and read back, whatever the batch, and errors that name the file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cxrl.errors import CxrlError
from cxrl.scorers.phantom_network import Scorer, ScorerConfig, TextTower, load_scorer, save_scorer, words

VOCABULARY = ("effusion", "large", "left", ".")
IMAGES = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def scorer(task: str = "consistency", trunk: str = "resnet") -> Scorer:
    torch.manual_seed(1)
    return Scorer(ScorerConfig(task, trunk, 4, 32, 6, VOCABULARY if task == "consistency" else ())).eval()


@pytest.mark.parametrize("trunk", ["resnet", "convnext"])
@pytest.mark.parametrize("task", ["posture", "diagnosis", "consistency"])
def test_what_is_saved_comes_back_frozen(task: str, trunk: str, tmp_path: Path) -> None:
    saved = scorer(task, trunk)
    save_scorer(saved, tmp_path / "new" / "s.safetensors", dtype=torch.float32)
    loaded = load_scorer(tmp_path / "new" / "s.safetensors")
    assert loaded.config == saved.config
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    with torch.no_grad():
        output, validity = saved(IMAGES)
        assert (tuple(output.shape), tuple(validity.shape)) == ((5, 6), (5,))
        assert torch.equal(loaded(IMAGES)[0], output)
        assert torch.equal(loaded(IMAGES)[1], validity)


def test_half_precision_on_disk_is_float32_in_memory(tmp_path: Path) -> None:
    save_scorer(scorer(), tmp_path / "s.safetensors")
    assert load_file(tmp_path / "s.safetensors")["head.weight"].dtype == torch.float16
    loaded = load_scorer(tmp_path / "s.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.allclose(loaded.image_embeds(IMAGES), scorer().image_embeds(IMAGES), atol=5e-3)


@pytest.mark.parametrize("trunk", ["resnet", "convnext"])
def test_an_image_and_a_text_do_not_see_the_rest_of_the_batch(trunk: str) -> None:
    model, texts = scorer(trunk=trunk), ["Large left effusion.", "effusion", "left " * 9]
    with torch.no_grad():
        together, alone = model.image_embeds(IMAGES), model.image_embeds(IMAGES[2:3])
        assert torch.allclose(together[2:3], alone, atol=1e-5)
        embeds = model.text_embeds(texts)
        assert torch.allclose(embeds.norm(dim=1), torch.ones(3))
        for n, text in enumerate(texts):
            assert torch.allclose(model.text_embeds([text])[0], embeds[n], atol=1e-5), text


@pytest.mark.parametrize("reader", ["gru", "conv"])
def test_the_order_of_words_counts(reader: str) -> None:
    torch.manual_seed(0)
    tower = TextTower(VOCABULARY, 6, reader).eval()
    with torch.no_grad():
        assert not torch.allclose(tower(["large left effusion"]), tower(["left effusion large"]), atol=1e-4)


def test_images_of_another_size_are_resized() -> None:
    with torch.no_grad():
        assert tuple(scorer("posture")(torch.rand(2, 1, 50, 40))[0].shape) == (2, 6)


def test_a_crop_hides_what_is_outside_and_is_stored(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = ScorerConfig("posture", "resnet", 4, 32, 5, crop=0.75)
    model = Scorer(config).eval()
    image, whole = torch.rand(1, 1, 64, 64), Scorer(ScorerConfig("posture", "resnet", 4, 32, 5)).eval()
    whole.load_state_dict(model.state_dict())
    save_scorer(model, tmp_path / "s.safetensors", dtype=torch.float32)
    loaded = load_scorer(tmp_path / "s.safetensors")
    assert loaded.config == config
    border = torch.ones_like(image)
    border[..., 8:56, 8:56] = image[..., 8:56, 8:56]
    centre = image.clone()
    centre[..., 30:34, 30:34] = 1.0
    with torch.no_grad():
        expected = loaded(image)[0]
        assert torch.equal(expected, whole(image[..., 8:56, 8:56])[0])
        assert torch.equal(loaded(border)[0], expected)
        assert not torch.equal(loaded(centre)[0], expected)
        assert not torch.equal(whole(border)[0], whole(image)[0])


def test_a_file_from_before_crops_sees_the_whole_image(tmp_path: Path) -> None:
    model = scorer("posture")
    fields = {"task": "posture", "trunk": "resnet", "width": 4, "image_size": 32, "num_outputs": 6}
    save_file(model.state_dict(), tmp_path / "s.safetensors", metadata={"config": json.dumps(fields)})
    loaded = load_scorer(tmp_path / "s.safetensors")
    assert loaded.config.crop == 1.0
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES)[0], model(IMAGES)[0])


def test_a_model_of_real_films_refuses_a_half_that_is_there_twice_or_missing() -> None:
    half = torch.rand(2, 1, 64, 32, generator=torch.Generator().manual_seed(0))
    doubled = torch.cat([half, half.flip(-1)], -1)
    missing = torch.cat([half, torch.zeros_like(half)], -1)
    plain = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    for crop in (1.0, 0.75):
        model = Scorer(ScorerConfig("posture", "resnet", 4, 32, 5, crop=crop)).eval()
        with torch.no_grad():
            for images in (doubled, missing, plain):
                (psi, logit), (read, validity) = model(images), model.pose(images)
                assert torch.equal(psi, read)
                refused = crop < 1.0 and images is not plain
                assert torch.equal(validity, torch.zeros(2) if refused else logit.sigmoid())


def test_words_of_a_report() -> None:
    assert words("Large, LEFT effusion. No edema; clear") == [
        *("large", "left", "effusion", "."),
        *("no", "edema", ";", "clear"),
    ]


def test_an_unknown_trunk_is_refused() -> None:
    with pytest.raises(CxrlError, match="unknown trunk 'vit': expected"):
        Scorer(ScorerConfig("posture", "vit", 4, 32, 5))


def with_value(tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[-1] = value
    return changed


@pytest.mark.parametrize("task", ["posture", "consistency"])
def test_a_damaged_tensor_is_named(task: str, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    save_scorer(scorer(task), path)
    whole, metadata = load_file(path), {"config": json.dumps(dataclasses.asdict(scorer(task).config))}
    floating = [name for name, tensor in whole.items() if tensor.is_floating_point()]
    for name in floating[:: len(floating) // 4]:
        others = {n: t for n, t in whole.items() if n != name}
        for tensors, told_of in (
            (others, f"it has no tensor {name}"),
            (
                {**others, f"other.{name}": whole[name]},
                f"it has no tensor {name}, but one named other.{name}",
            ),
            ({**whole, f"other.{name}": whole[name].clone()}, f"it has a tensor other.{name}, for which"),
            ({**whole, name: torch.zeros(3, 5)}, f"it has a tensor {name} of shape (3, 5), expected ("),
            ({**whole, name: whole[name].to(torch.int8)}, f"it has a tensor {name} of torch.int8, expected"),
            ({**whole, name: with_value(whole[name], torch.nan)}, f"it has a tensor {name} that holds nan"),
            ({**whole, name: with_value(whole[name], torch.inf)}, f"it has a tensor {name} that holds inf"),
        ):
            save_file(tensors, path, metadata=metadata)
            with pytest.raises(CxrlError) as told:
                load_scorer(path)
            assert str(told.value).startswith(f"{path} cannot be read ({told_of}")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    with pytest.raises(CxrlError, match=r"s\.safetensors is missing; `cxrl pretrain"):
        load_scorer(path)
    save_scorer(scorer("posture"), path)
    whole = path.read_bytes()
    tensors = load_file(path)
    path.write_bytes(whole[:-7])
    with pytest.raises(CxrlError, match=r"s\.safetensors cannot be read"):
        load_scorer(path)
    save_file(tensors, path)  # no configuration
    with pytest.raises(CxrlError, match=r"s\.safetensors cannot be read"):
        load_scorer(path)
    fields = {"task": "posture", "trunk": "resnet", "width": 8, "image_size": 32, "num_outputs": 6}
    save_file(tensors, path, metadata={"config": json.dumps({**fields, "vocabulary": []})})
    with pytest.raises(
        CxrlError, match=r"has a tensor trunk\.0\.weight of shape \(4, 1, 5, 5\), expected \(8, 1"
    ):
        load_scorer(path)
