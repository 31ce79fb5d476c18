"""One judgement on a folder: what cxrl.doctor says of a base is what loading it does."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from cxrl import checkup, doctor
from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.models.base import load_base
from cxrl.models.base_files import load_tokenizer, local_folder
from cxrl.requirements import required_files

Change = Callable[[Path], object]
UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS = "text_encoder/model.safetensors"


def without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def without_folder(name: str) -> Change:
    return lambda folder: shutil.rmtree(folder / name)


def holding(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9])


def with_settings(name: str, **settings: Any) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | settings))

    return change


def with_tensors(name: str, make: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    return lambda folder: save_file(make(load_file(folder / name)), folder / name, metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    path = folder / UNET_WEIGHTS
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3438167534\n"
BROKEN: dict[str, tuple[Change, str]] = {
    "no UNet weights": (without(UNET_WEIGHTS), "unet of .* has no weights"),
    "no text encoder weights": (without(TEXT_WEIGHTS), "text_encoder of .* has no weights"),
    "pickles only": (pickled, r"unet of .* are pickles \(.*\.bin\).*--model\.allow-pickle"),
    "a tensor missing": (
        with_tensors(UNET_WEIGHTS, lambda t: {n: v for n, v in t.items() if n != "conv_in.weight"}),
        r"unet of .*safetensors has no tensor conv_in\.weight",
    ),
    "a tensor of another shape": (
        with_tensors(TEXT_WEIGHTS, lambda t: t | {"final_layer_norm.bias": torch.zeros(2)}),
        r"final_layer_norm\.bias of shape \(2,\), expected \(16,\)",
    ),
    "class-conditional": (with_settings(UNET, num_class_embeds=3), r"no tensor class_embedding\.weight"),
    "no size": (with_settings(UNET, sample_size=None), "sample_size in unet/config.json is None"),
    "a size that is none": (with_settings(UNET, sample_size=[8, 0]), "sample_size"),
    "no factor": (with_settings(VAE, scaling_factor=None), "scaling_factor in vae/config.json is None"),
    "a factor of 0": (with_settings(VAE, scaling_factor=0), "scaling_factor"),
    "other width": (with_settings(TEXT, hidden_size=32), r"text_encoder of .* expected \("),
    "another vocabulary": (with_settings(TEXT, vocab_size=100), r"token_embedding.* expected \(100"),
    "text of nothing known": (
        with_settings("model_index.json", text_encoder=["transformers", "No"]),
        "expected a",
    ),
    "text by no list": (
        with_settings("model_index.json", text_encoder=7),
        "expected a StableDiffusionPipeline",
    ),
    "cut weights": (cut(UNET_WEIGHTS), r"unet of .*diffusion_pytorch_model\.safetensors cannot be read"),
    "a pointer to weights": (holding(TEXT_WEIGHTS, LFS), r"model\.safetensors cannot be read"),
    "no content": (holding(UNET_WEIGHTS, b""), "cannot be read"),
    **{
        f"without {name}": (without(name), f"cannot load {name.split('/')[0]}")
        for name in ("model_index.json", UNET, VAE, TEXT, SCHEDULER)
    },
    **{
        f"{content.decode()} in {name}": (holding(name, content), f"cannot load {name.split('/')[0]}")
        for name in ("model_index.json", UNET, VAE, TEXT, SCHEDULER, "tokenizer/tokenizer.json")
        for content in (b"[]", b"{")
    },
    "no tokenizer": (without_folder("tokenizer"), "cannot load tokenizer"),
    "betas in words": (with_settings(SCHEDULER, beta_end="large"), "cannot load scheduler"),
    "betas above 1": (with_settings(SCHEDULER, beta_end=3.0), r"noise levels outside \[0, 1\]"),
    "an unknown schedule": (with_settings(SCHEDULER, beta_schedule="mine"), "cannot load scheduler"),
    "channels in words": (with_settings(UNET, in_channels="four"), "cannot load unet"),
    "layers without end": (
        with_settings(TEXT, num_hidden_layers=10**18),
        r"num_hidden_layers in config\.json is more than model\.safetensors has tensors, 20",
    ),
    "blocks without end": (with_settings(UNET, layers_per_block=10**400), "layers_per_block"),
    "layers in words": (with_settings(TEXT, num_hidden_layers="one"), "cannot load text_encoder"),
}


def verdict(folder: Path, *, allow_pickle: bool = False) -> str:
    """What the doctor says, "" where it finds nothing; loading does the same."""
    model = {"path": str(folder), "allow_pickle": allow_pickle}
    file = required_files(Config.from_dict({"model": model}))[0]
    assert file.option == "model.path"
    assert file.is_present is not bool(file.problem)
    if file.problem:
        assert "\n" not in file.problem
        with pytest.raises(CxrlError, match=f"^{re.escape('model.path: ' + file.problem)}$"):
            load_base(folder, allow_pickle=allow_pickle)
    else:
        base = load_base(folder, allow_pickle=allow_pickle)
        assert base.encode_text(["no acute"]).isfinite().all()
    return file.problem


@pytest.mark.parametrize("name", BROKEN)
def test_the_doctor_and_loading_say_the_same(tiny_pipeline: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_pipeline, folder)
    change, message = BROKEN[name]
    change(folder)
    assert re.search(message, verdict(folder))


def test_what_loads_is_there(tiny_pipeline: Path, make_pipeline: Callable[..., Path], tmp_path: Path) -> None:
    assert verdict(tiny_pipeline) == ""
    folder = tmp_path / "base"
    shutil.copytree(tiny_pipeline, folder)
    pickled(folder)
    assert verdict(folder, allow_pickle=True) == ""
    with pytest.warns(UserWarning, match="has only fp16 weights"):
        assert verdict(make_pipeline(variant="fp16")) == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unet": {"in_channels": 9}}, "takes 9 channels"),
        ({"unet": {"cross_attention_dim": 20}}, "text of width 20"),
        ({"unet": {"num_class_embeds": 3}}, "more than text and timestep"),
    ],
)
def test_parts_that_do_not_fit_are_told_by_both(
    make_pipeline: Callable[..., Path], settings: dict[str, Any], message: str
) -> None:
    assert message in verdict(make_pipeline(**settings))


def test_a_tokenizer_with_more_words_than_the_text_encoder(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_pipeline, folder)
    path = folder / "tokenizer" / "tokenizer.json"
    core = json.loads(path.read_text())
    core["model"]["vocab"]["surplus"] = 700
    path.write_text(json.dumps(core))
    assert "its tokenizer gives numbers up to 700, its text encoder knows 558 tokens" in verdict(folder)


def test_the_command_says_it_and_exits_2(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "matmul_rate", lambda device, dtype: 1e9)
    folder = tmp_path / "base"
    shutil.copytree(tiny_pipeline, folder)
    pickled(folder)
    assert doctor.main(["--model.path", str(folder)]) == 2
    captured = capsys.readouterr()
    words = " ".join(captured.out.split())
    assert f"model.path BROKEN: cannot load unet of {folder}: its weights are pickles" in words
    assert "not known before the base at model.path can be loaded" in words
    assert captured.err == "error: missing for preset phantom: 0, broken: 1; see above\n"
    assert doctor.main(["--model.path", str(folder), "--model.allow-pickle"]) == 0
    assert f"model.path there: {folder}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("limit", [None, 12, 10**30])
def test_the_longest_prompt_is_one_number(tiny_pipeline: Path, tmp_path: Path, limit: int | None) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_pipeline, folder)
    path = folder / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("model_max_length")
    path.write_text(json.dumps(settings if limit is None else settings | {"model_max_length": limit}))
    base, reader = load_base(folder), load_tokenizer(folder)
    assert base.max_tokens == reader.max_tokens == (12 if limit == 12 else 16)
    assert base.num_tokens("heart lung") == reader.num_tokens("heart lung") == 4
    assert load_tokenizer("phantom").max_tokens == load_base("phantom").max_tokens == 48


def test_a_relative_path_is_kept_as_an_absolute_one(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    assert load_base("base").path == load_base(Path("base")).path == str(tmp_path / "base")
    shutil.copytree(tiny_pipeline, tmp_path / "phantom")
    base = load_base("phantom")
    assert (base.path, base.image_size) == ("phantom", (64, 64)), "the name is that of the one that ships"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_pipeline: Path) -> Path:
    """The folder where huggingface_hub keeps the files of the hub id ``some/base``."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--some--base"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0123abcd")
    shutil.copytree(tiny_pipeline, repo / "snapshots" / "0123abcd")
    return repo / "snapshots" / "0123abcd"


def test_a_hub_id_whose_files_are_here_needs_no_network(hub: Path, tiny_pipeline: Path) -> None:
    assert local_folder("some/base") == hub
    assert local_folder("some/other") is None
    base = load_base("some/base")
    assert base.path == "some/base"
    assert base.fingerprint() == load_base(tiny_pipeline).fingerprint()
    assert load_tokenizer("some/base").max_tokens == 16
    file = required_files(Config.from_dict({"model": {"path": "some/base"}}))[0]
    assert (file.is_present, file.problem) == (True, "")


def test_what_the_cache_lacks_of_a_hub_id_is_fetched(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = (hub / UNET_WEIGHTS).read_bytes()
    (hub / UNET_WEIGHTS).unlink()
    asked: list[dict[str, Any]] = []

    def download(repo: str, **settings: Any) -> Path:
        asked.append({"repo": repo, **settings})
        if "variant" not in settings:
            raise OSError("none of that variant")
        (hub / UNET_WEIGHTS).write_bytes(weights)
        return hub

    file = required_files(Config.from_dict({"model": {"path": "some/base"}}))[0]
    assert "it has no weights" in file.problem
    monkeypatch.setattr(StableDiffusionPipeline, "download", download)
    assert load_base("some/base").path == "some/base"
    assert [a.get("variant") for a in asked] == [None, "fp16"]
    assert all(a["repo"] == "some/base" and a["use_safetensors"] for a in asked)


def test_a_hub_id_that_cannot_be_had_is_one_line(hub: Path) -> None:
    for path in ("some/other", "no/such/folder/at/all"):
        with pytest.raises(
            CxrlError, match=rf"model_index\.json of {path} \(no such folder here; taken"
        ) as told:
            load_base(path)
        assert "\n" not in str(told.value)
