"""The fingerprint: any value, setting or token that decides a pixel changes it, and the part is named."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

import cxrl.shipped
from cxrl.config import PolicyConfig
from cxrl.errors import CxrlError
from cxrl.models.base import load_base
from cxrl.models.base_files import check_base
from cxrl.models.fingerprint import SCHEDULER_FIELDS, check_fingerprint, scheduler_digest
from cxrl.models.policy import Policy
from cxrl.rl.schedule import ddim_table

State = dict[str, torch.Tensor]
ChangedBase = Callable[..., Path]
PARTS = ("unet", "vae", "text_encoder", "scheduler", "tokenizer")


@pytest.fixture(scope="module")
def whole(tiny_pipeline: Path) -> dict[str, str]:
    """The fingerprint of the unchanged base."""
    return check_base(tiny_pipeline).fingerprint()


def differing(folder: Path, whole: dict[str, str]) -> list[str]:
    found = check_base(folder).fingerprint()
    assert tuple(found) == PARTS
    return [part for part in PARTS if found[part] != whole[part]]


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_every_value_counts(
    changed_base: ChangedBase, whole: dict[str, str], part: str, place: float
) -> None:
    def nudged(tensors: State) -> State:
        name = sorted(tensors)[round(place * (len(tensors) - 1))]
        values = tensors[name].clone()
        at = round(place * (values.numel() - 1))
        flat = values.view(-1)
        flat[at] = torch.nextafter(flat[at], torch.tensor(9.0))
        return tensors | {name: values}

    assert differing(changed_base(part, nudged), whole) == [part]


def test_two_tensors_of_one_shape_cannot_change_places(
    changed_base: ChangedBase, whole: dict[str, str]
) -> None:
    name = "encoder.layers.0.self_attn.{}_proj.weight"

    def swapped(tensors: State) -> State:
        q, k = name.format("q"), name.format("k")
        return tensors | {q: tensors[k], k: tensors[q]}

    assert differing(changed_base("text_encoder", swapped), whole) == ["text_encoder"]


@pytest.mark.parametrize(
    ("part", "change", "counts"),
    [
        ("unet", {"norm_eps": 1e-3}, True),
        ("unet", {"attention_head_dim": 4}, True),
        ("unet", {"act_fn": "gelu"}, True),
        ("unet", {"sample_size": 16}, True),
        ("vae", {"scaling_factor": 0.6}, True),
        ("vae", {"shift_factor": 0.1}, True),
        ("text_encoder", {"hidden_act": "gelu"}, True),
        ("text_encoder", {"num_attention_heads": 4}, True),
        ("text_encoder", {"layer_norm_eps": 1e-3}, True),
        ("text_encoder", {"use_attention_mask": True}, True),
        ("unet", {"_diffusers_version": "0.1", "_name_or_path": "x"}, False),
        ("text_encoder", {"transformers_version": "4.1", "dtype": "float16", "architectures": None}, False),
    ],
)
def test_settings_of_the_networks(
    changed_base: ChangedBase, whole: dict[str, str], part: str, change: dict[str, Any], counts: bool
) -> None:
    folder = changed_base()
    edit(folder / part / "config.json", **change)
    assert differing(folder, whole) == ([part] if counts else [])


def edit(path: Path, **change: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


OTHER: dict[str, Any] = {
    "num_train_timesteps": 80,
    "beta_start": 0.0002,
    "beta_end": 0.03,
    "beta_schedule": "squaredcos_cap_v2",
    "trained_betas": [0.01 + 0.0001 * n for n in range(100)],
    "clip_sample": True,
    "set_alpha_to_one": False,
    "steps_offset": 0,
    "prediction_type": "epsilon",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.5,
    "clip_sample_range": 2.0,
    "sample_max_value": 2.0,
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": True,
}
BASE = {
    **{"num_train_timesteps": 100, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    **{"steps_offset": 1, "prediction_type": "v_prediction"},
}


def test_another_value_of_every_setting_is_tried() -> None:
    assert set(OTHER) == set(inspect.signature(DDIMScheduler.__init__).parameters) - {"self"}


@pytest.mark.parametrize("field", OTHER)
def test_a_setting_of_the_scheduler_counts_where_it_changes_the_chain(field: str) -> None:
    def chains(config: dict[str, Any]) -> list[Any]:
        made: list[Any] = []
        for spacing in ("trailing", "leading"):
            try:
                table = ddim_table(config, 10, 1.0, spacing)
            except CxrlError as error:
                made.append(str(error))
            else:
                made.append((table.timesteps.tolist(), table.rows.tolist()))
        return made

    changed = BASE | {field: OTHER[field]}
    changes_chain = chains(changed) != chains(BASE)
    assert (scheduler_digest(changed) != scheduler_digest(BASE)) is changes_chain
    assert (field in SCHEDULER_FIELDS) is changes_chain


def test_what_is_left_out_of_a_scheduler_is_its_default() -> None:
    defaults = inspect.signature(DDIMScheduler.__init__).parameters
    full = {name: p.default for name, p in defaults.items() if name != "self"}
    assert (
        scheduler_digest(full) == scheduler_digest({}) == scheduler_digest({"_class_name": "PNDMScheduler"})
    )
    assert scheduler_digest({"beta_start": 1}) == scheduler_digest({"beta_start": 1.0})


def edit_core(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    path = folder / "tokenizer" / "tokenizer.json"
    core = json.loads(path.read_text())
    change(core)
    path.write_text(json.dumps(core))
    return folder


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("what", ["vocab", "merges"])
def test_every_token_and_merge_counts(
    changed_base: ChangedBase, whole: dict[str, str], what: str, place: float
) -> None:
    def swap(core: dict[str, Any]) -> None:
        model = core["model"]
        if what == "merges":
            at = round(place * (len(model["merges"]) - 2))
            model["merges"][at : at + 2] = reversed(model["merges"][at : at + 2])
            return
        names = sorted(set(model["vocab"]) - {"<|startoftext|>", "<|endoftext|>"}, key=model["vocab"].get)
        at = round(place * (len(names) - 2))
        one, other = names[at : at + 2]
        model["vocab"][one], model["vocab"][other] = model["vocab"][other], model["vocab"][one]

    folder = edit_core(changed_base(), swap)
    assert differing(folder, whole) == ["tokenizer"]


def test_the_rest_of_the_tokenizer_counts(changed_base: ChangedBase, whole: dict[str, str]) -> None:
    for change in ({"model_max_length": 12}, {"pad_token": "<|startoftext|>"}, {"padding_side": "left"}):
        folder = changed_base()
        edit(folder / "tokenizer" / "tokenizer_config.json", **change)
        assert differing(folder, whole) == ["tokenizer"], change
    folder = changed_base()
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=10**30)
    assert differing(folder, whole) == [], "the text encoder's limit is the same"


def test_equal_weights_are_the_same_base_however_stored(
    tiny_pipeline: Path, tmp_path: Path, whole: dict[str, str]
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    pipeline("no acute", num_inference_steps=1, output_type="latent")  # leaves its padding in the tokenizer
    pipeline.save_pretrained(tmp_path / "again")
    assert differing(tmp_path / "again", whole) == []
    pipeline.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards" / "unet").iterdir())) > 5
    assert differing(tmp_path / "shards", whole) == []


def test_half_precision_is_itself_in_full_precision(changed_base: ChangedBase) -> None:
    def half(tensors: State) -> State:
        return {name: t.half() for name, t in tensors.items()}

    def rounded(tensors: State) -> State:
        return {name: t.half().float() for name, t in tensors.items()}

    found = [check_base(changed_base("unet", change)).fingerprint() for change in (half, rounded)]
    assert found[0] == found[1]


def test_neither_dtype_nor_adapters_matter(tiny_pipeline: Path, whole: dict[str, str]) -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        base = load_base(tiny_pipeline, dtype=dtype)
        assert base.fingerprint() == whole
    policy = Policy(base, PolicyConfig(lora_rank=2))
    with torch.no_grad():
        for p in policy.trainable.values():
            p.add_(1)
    assert policy.base.fingerprint() == policy.fingerprint == policy.describe()["base_fingerprint"] == whole


def test_the_base_that_ships_in_both_spellings_of_its_text_encoder(tmp_path: Path) -> None:
    """Versions of transformers write the names of a CLIP text encoder with and without a prefix."""
    folder = tmp_path / "phantom"
    shutil.copytree(cxrl.shipped.BASE, folder)
    path = folder / "text_encoder" / "model.safetensors"
    save_file({f"text_model.{n}": t for n, t in load_file(path).items()}, path, metadata={"format": "pt"})
    assert check_base(folder).fingerprint() == check_base(cxrl.shipped.BASE).fingerprint()


def test_the_refusal_names_the_parts() -> None:
    found = dict.fromkeys(PARTS, "a")
    check_fingerprint(dict(found), found, "here", "/base")
    begin = "here: was trained from another base than /base: its "
    for saved, words in (
        ({**found, "scheduler": "b"}, "scheduler differs;"),
        ({**found, "unet": "b", "text_encoder": "b"}, "unet and text encoder differ;"),
        ({k: v for k, v in found.items() if k != "vae"}, "vae differs;"),
        ({**found, "image_encoder": "b"}, "image encoder differs;"),
    ):
        with pytest.raises(CxrlError) as told:
            check_fingerprint(saved, found, "here", "/base")
        assert str(told.value).startswith(begin + words)
    for old in ("0" * 64, None):
        with pytest.raises(CxrlError, match="here: was written by an earlier version of cxrl"):
            check_fingerprint(old, found, "here", "/base")


def test_what_was_saved_by_the_library_of_today_is_its_own(tmp_path: Path, tiny_pipeline: Path) -> None:
    """Parts that are loaded and saved by themselves keep their digest."""
    whole = check_base(tiny_pipeline).fingerprint()
    folder = tmp_path / "parts"
    shutil.copytree(tiny_pipeline, folder)
    for kind, part in ((AutoencoderKL, "vae"), (CLIPTextModel, "text_encoder"), (CLIPTokenizer, "tokenizer")):
        kind.from_pretrained(folder / part).save_pretrained(folder / part)
    assert differing(folder, whole) == []
