"""Nothing of a network is made up: what is missing, renamed, reshaped or no number is refused and named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cxrl.errors import CxrlError
from cxrl.models.base import load_base
from cxrl.models.loading import _told, check_network

State = dict[str, torch.Tensor]
ChangedBase = Callable[..., Path]
KINDS: dict[str, Any] = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModel,
}
FORMATS = ("safetensors", "safetensors shards", "fp16", "fp16 shards", "bin", "bin shards")
PLACES = {"first": 0.0, "middle": 0.5, "last": 1.0}


def drop(tensors: State, name: str) -> State:
    return {n: t for n, t in tensors.items() if n != name}


def rename(tensors: State, name: str) -> State:
    return {f"other.{n}" if n == name else n: t for n, t in tensors.items()}


def reshape(tensors: State, name: str) -> State:
    return tensors | {name: torch.zeros(3, 5)}


def with_value(value: float) -> Callable[[State, str], State]:
    def change(tensors: State, name: str) -> State:
        changed = tensors[name].clone()
        changed.view(-1)[-1] = value
        return tensors | {name: changed}

    return change


DAMAGES: dict[str, tuple[Callable[[State, str], State], str]] = {
    "drop": (drop, "has no tensor {}"),
    "rename": (rename, "has no tensor {}, but one named other.{}"),
    "reshape": (reshape, "has a tensor {} of shape (3, 5), expected ("),
    "nan": (with_value(float("nan")), "has a tensor {} that holds nan"),
    "inf": (with_value(float("-inf")), "has a tensor {} that holds inf"),
}


def name_at(tensors: State, place: float) -> str:
    names = sorted(tensors)
    return names[round(place * (len(names) - 1))]


def weights_of(folder: Path) -> State:
    return load_file(next(folder.glob("*.safetensors")))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", KINDS)
def test_a_damaged_tensor_is_named(
    tiny_pipeline: Path, changed_base: ChangedBase, part: str, damage: str, place: str
) -> None:
    change, message = DAMAGES[damage]
    name = name_at(weights_of(tiny_pipeline / part), PLACES[place])
    folder = changed_base(part, lambda tensors: change(tensors, name))
    with pytest.raises(CxrlError) as told:
        load_base(folder)
    text = str(told.value)
    assert text.startswith(f"model.path: cannot load {part} of {folder}: ")
    assert f"model.safetensors {message.format(name, name)}" in text
    assert "\n" not in text


@pytest.mark.parametrize("part", KINDS)
def test_tensor_by_tensor(changed_base: ChangedBase, part: str) -> None:
    folder = changed_base() / part
    path = next(folder.glob("*.safetensors"))
    whole = load_file(path)
    for name in sorted(whole)[:: len(whole) // 6]:
        save_file(drop(whole, name), path)
        with pytest.raises(CxrlError) as told:
            check_network(KINDS[part], folder, "here")
        assert str(told.value) == f"here: {path.name} has no tensor {name}"


@pytest.mark.parametrize("written_as", FORMATS)
@pytest.mark.parametrize("part", KINDS)
def test_every_format_is_read_and_refused_alike(
    tiny_pipeline: Path, changed_base: ChangedBase, part: str, written_as: str
) -> None:
    kind, whole = KINDS[part], weights_of(tiny_pipeline / part)
    name, is_half = name_at(whole, 0.5), written_as.startswith("fp16")

    def check(folder: Path) -> Any:
        return check_network(kind, folder / part, "here", allow_pickle=True)

    found = check(changed_base(part, written_as=written_as))
    assert found.variant == ("fp16" if is_half else None)
    assert (found.digest() == check(tiny_pipeline).digest()) is not is_half
    network = found.load(torch.float32)
    for key, tensor in whole.items():
        assert torch.equal(network.state_dict()[key], tensor.half().float() if is_half else tensor), key
    # The library itself reads the same files, so they are the format that it writes.
    theirs, info = kind.from_pretrained(
        found.folder,
        use_safetensors=not written_as.startswith("bin"),
        variant=found.variant,
        output_loading_info=True,
    )
    assert not any(info.values())
    for key, tensor in theirs.float().state_dict().items():
        assert torch.equal(network.state_dict()[key], tensor), key
    for damage in ("drop", "nan"):
        change, message = DAMAGES[damage]
        made = changed_base(part, lambda tensors, change=change: change(tensors, name), written_as)
        with pytest.raises(CxrlError, match=f"^here: .* {re.escape(message.format(name))}"):
            check(made).check_values()


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_shards_of_the_libraries_are_read(changed_base: ChangedBase, part: str, variant: str | None) -> None:
    folder, kind = changed_base() / part, KINDS[part]
    network = kind.from_pretrained(folder)
    next(folder.glob("*.safetensors")).unlink()
    network.save_pretrained(folder, max_shard_size="20KB", variant=variant)
    found = check_network(kind, folder, "here")
    assert (found.main.suffix, found.variant) == (".json", variant)
    for name, p in found.load(torch.float32).named_parameters():
        assert torch.equal(p, network.get_parameter(name)), name


@pytest.mark.parametrize("part", KINDS)
def test_another_prefix_is_not_the_network(changed_base: ChangedBase, part: str) -> None:
    folder = changed_base(part, lambda tensors: {f"module.{n}": t for n, t in tensors.items()})
    with pytest.raises(CxrlError, match=rf"cannot load {part} of .* has no tensor .*but one named module\."):
        load_base(folder)


def test_a_tensor_too_many_is_refused_where_it_matters(changed_base: ChangedBase) -> None:
    def one_layer_more(tensors: State) -> State:
        return tensors | {n.replace("layers.0", "layers.1"): t for n, t in tensors.items() if "layers.0" in n}

    no_place = ", for which the network has no place"
    for part in ("unet", "vae"):
        folder = changed_base(part, lambda tensors: tensors | {"class_embedding.weight": torch.zeros(3)})
        with pytest.raises(CxrlError, match=rf"{part} of .*tensor class_embedding\.weight{no_place}"):
            load_base(folder)
    with pytest.raises(CxrlError, match=rf"tensor encoder\.layers\.1\..*{no_place} \(and 15 more\)"):
        load_base(changed_base("text_encoder", one_layer_more))


def test_what_a_text_encoder_was_cut_from_is_passed_over(
    tiny_pipeline: Path, changed_base: ChangedBase
) -> None:
    def whole_model(tensors: State) -> State:
        beside = {"vision_model.embeddings.class_embedding": torch.full((4,), torch.nan)}
        beside |= {"text_projection.weight": torch.ones(3, 16), "logit_scale": torch.ones(())}
        counted = {"text_model.embeddings.position_ids": torch.arange(16)[None]}
        return {f"text_model.{n}": t for n, t in tensors.items()} | beside | counted

    base, plain = load_base(changed_base("text_encoder", whole_model)), load_base(tiny_pipeline)
    assert torch.equal(base.encode_text(["no acute"]), plain.encode_text(["no acute"]))
    assert base.fingerprint() == plain.fingerprint()


def test_old_names_of_attention_are_read_as_diffusers_reads_them(
    tiny_pipeline: Path, changed_base: ChangedBase
) -> None:
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def renamed(tensors: State) -> State:
        def name_of(name: str) -> str:
            return next((name.replace(new, o) for new, o in old.items() if new in name), name)

        return {name_of(name): t for name, t in tensors.items()}

    folder = changed_base("vae", renamed)
    assert sum(".query." in name for name in weights_of(folder / "vae")) == 4
    found, plain = load_base(folder), load_base(tiny_pipeline)
    z = torch.ones(1, 4, 8, 8)
    assert torch.equal(found.decode(z), plain.decode(z))
    assert found.fingerprint() == plain.fingerprint()
    with pytest.raises(CxrlError, match=r"has no tensor .*to_q"):  # diffusers does not rename in shards
        load_base(changed_base("vae", renamed, "safetensors shards"))


def test_where_tensors_lie_in_a_file_does_not_matter(tiny_pipeline: Path) -> None:
    """A mapped tensor at an odd address may give other bits: what computes is a copy."""
    base = load_base(tiny_pipeline)
    for network in (base.unet, base.vae, base.text_encoder):
        assert {p.data_ptr() % 64 for p in network.parameters()} == {0}


def test_numbers_that_are_no_floating_point_are_refused(changed_base: ChangedBase) -> None:
    whole = {"conv_in.bias": torch.zeros(8, dtype=torch.int8)}
    folder = changed_base("unet", lambda tensors: tensors | whole)
    with pytest.raises(CxrlError, match=r"tensor conv_in\.bias of I8, expected floating point"):
        load_base(folder)


@pytest.mark.parametrize("part", KINDS)
def test_a_value_too_large_for_the_dtype_is_named(
    tiny_pipeline: Path, changed_base: ChangedBase, part: str
) -> None:
    name = name_at(weights_of(tiny_pipeline / part), 0.5)
    folder = changed_base(part, lambda tensors: with_value(1e6)(tensors, name))
    assert load_base(folder, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(CxrlError, match=rf"{part} of .* tensor {re.escape(name)} that holds inf in float16"):
        load_base(folder, dtype="float16")


def test_an_index_and_its_shards_agree(changed_base: ChangedBase) -> None:
    folder = changed_base("unet", written_as="safetensors shards") / "unet"
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    name = sorted(places)[0]
    shard = places[name]

    def refused(weight_map: Any, message: str) -> None:
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        with pytest.raises(CxrlError, match=f"^here: {index.name} {message}$"):
            check_network(KINDS["unet"], folder, "here")

    refused({**places, "extra": shard}, f"names a tensor extra that {shard} does not have")
    refused({n: f for n, f in places.items() if n != name}, f"does not name the tensor {name} of {shard}")
    refused({**places, name: "gone.safetensors"}, r"names gone\.safetensors, which is missing")
    refused({**places, name: f"../unet/{shard}"}, r"names \.\./unet/.*, which is missing")
    for damaged in ([], {name: 3}, None):
        refused(damaged, "is no index of shards")


def test_both_a_file_and_shards_as_each_library_chooses(changed_base: ChangedBase) -> None:
    for part, is_file in (("unet", False), ("text_encoder", True)):
        folder = changed_base(part, written_as="safetensors shards") / part
        shards = list(folder.glob("*-of-*"))
        tensors = {name: t + 1 for shard in shards for name, t in load_file(shard).items()}
        single = shards[0].name.split("-")[0] + ".safetensors"
        save_file(tensors, folder / single, metadata={"format": "pt"})
        found = check_network(KINDS[part], folder, "here")
        assert (found.main.suffix == ".safetensors") is is_file
        loaded = found.load(torch.float32)
        for name, p in KINDS[part].from_pretrained(folder).named_parameters():
            assert torch.equal(p, loaded.get_parameter(name))


def test_no_warning_of_the_libraries_beside_the_error(
    tiny_pipeline: Path, changed_base: ChangedBase, capfd: pytest.CaptureFixture[str]
) -> None:
    level = transformers.utils.logging.get_verbosity()
    with pytest.raises(CxrlError):
        load_base(changed_base("text_encoder", lambda tensors: drop(tensors, name_at(tensors, 0.5))))
    load_base(tiny_pipeline)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert transformers.utils.logging.get_verbosity() == level


def test_a_pickle_that_is_none_and_one_that_would_run_code(changed_base: ChangedBase) -> None:
    folder = changed_base("vae", written_as="bin") / "vae"
    path = folder / "diffusion_pytorch_model.bin"

    def refused(message: str) -> None:
        with pytest.raises(CxrlError, match=rf"^here: diffusion_pytorch_model\.bin {message}"):
            check_network(KINDS["vae"], folder, "here", allow_pickle=True)

    for content in ({"a": 1}, [torch.zeros(2)]):
        torch.save(content, path)
        refused("holds other things than named tensors")
    torch.save({"a": shutil.rmtree}, path)
    refused("cannot be read: Weights only load failed")
    path.write_bytes(b"damaged")
    refused("cannot be read")


def test_mismatches_of_older_transformers_are_told() -> None:
    # Before version 5 it gives names alone, since then (name, stored, expected).
    info = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": ["b.weight", "a.weight"]}
    assert "a.weight of another shape" in _told(info, transformers.CLIPTextModel, torch.nn.Module())
