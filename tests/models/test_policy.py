"""The policy, its anchor, and the artefacts that plain diffusers reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from cxrl.config import PolicyConfig
from cxrl.errors import CxrlError
from cxrl.models.adapter import save_adapter
from cxrl.models.base import load_base
from cxrl.models.policy import Policy
from cxrl.rl.reopen import load_policy

X, T = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 50, 99])
TEXTS = ["no acute", "left lung", "heart"]


def make(folder: Path, *, moved: bool = True, **settings: Any) -> Policy:
    policy = Policy(
        load_base(folder), PolicyConfig(**{"lora_rank": 2, "num_ace_tokens": 3, **settings}), seed=1
    )
    if moved:
        rng = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for p in policy.trainable.values():
                p.add_(0.1 * torch.randn(p.shape, generator=rng))
        policy.ema = {n: p.detach().clone() for n, p in policy.trainable.items()}
    return policy


@torch.no_grad()
def predict(policy: Policy, **settings: Any) -> Tensor:
    return policy.predict(X, T, policy.base.encode_text(TEXTS), **settings)[0]


@pytest.mark.parametrize(
    "settings",
    [{}, {"train": "none"}, {"num_ace_tokens": 0}, {"train": "full"}],
    ids=["lora", "ace", "no-ace", "full"],
)
def test_the_anchor_is_the_base(tiny_pipeline: Path, settings: dict[str, Any]) -> None:
    policy, base = make(tiny_pipeline, **settings), load_base(tiny_pipeline)
    with torch.no_grad():
        expected = base.unet(X, T, base.encode_text(TEXTS), return_dict=False)[0]
    anchor = predict(policy, anchor=True)
    # The policy's attention processor sums in another order than the stock one.
    torch.testing.assert_close(anchor, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(anchor, predict(make(tiny_pipeline, train="none"), anchor=True))
    assert not torch.allclose(predict(policy), expected, atol=1e-4)
    assert torch.equal(predict(policy, anchor=True), anchor)  # and using the policy did not change it
    assert all(p.requires_grad for p in policy.trainable.values())


def test_an_untrained_policy_without_ace_is_the_anchor(tiny_pipeline: Path) -> None:
    policy = make(tiny_pipeline, moved=False, num_ace_tokens=0)
    assert torch.equal(predict(policy), predict(policy, anchor=True))


def test_ace_starts_at_the_padding_token_and_its_tokens_differ(tiny_pipeline: Path) -> None:
    policy = make(tiny_pipeline, moved=False)
    pad = policy.base.pad_embedding()
    assert policy.ace is not None
    assert policy.ace.shape == (3, 16)
    assert (policy.ace - pad).abs().max() < 0.1 * pad.std()
    # Equal tokens would get equal gradients for ever.
    assert torch.pdist(policy.ace.detach()).min() > 0
    output = policy.predict(X, T, policy.base.encode_text(TEXTS))[0]
    (grad,) = torch.autograd.grad(output.square().sum(), [policy.ace])
    assert torch.pdist(grad).min() > 0


def test_guidance_in_one_pass_with_ace_in_both_branches(tiny_pipeline: Path) -> None:
    policy = make(tiny_pipeline)
    embeds, negative = policy.base.encode_text(TEXTS), policy.base.encode_text([""])[0]
    with torch.no_grad():
        cond, uncond = policy.predict(X, T, embeds, negative)
        torch.testing.assert_close(cond, predict(policy), rtol=1e-4, atol=1e-5)
        ace = policy.trainable["ace"].expand(3, -1, -1)
        tokens = torch.cat([negative.expand(3, -1, -1), ace], 1)
        expected = policy.base.unet(X, T, tokens, return_dict=False)[0]
    torch.testing.assert_close(uncond, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [2.0, 5.0])
def test_the_adapter_loads_in_plain_diffusers(tiny_pipeline: Path, tmp_path: Path, alpha: float) -> None:
    policy = make(tiny_pipeline, lora_alpha=alpha)
    save_adapter(policy, tmp_path)
    assert json.loads((tmp_path / "adapter.json").read_text())["base"] == str(tiny_pipeline)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    pipe.load_lora_weights(tmp_path)
    ace = load_file(tmp_path / "ace.safetensors")["ace"]
    prompt_embeds, _ = pipe.encode_prompt(TEXTS, "cpu", 1, False)
    prompt_embeds = torch.cat([prompt_embeds, ace.expand(3, -1, -1)], dim=1)
    with torch.no_grad():
        found = pipe.unet(X, T, prompt_embeds, return_dict=False)[0]
    torch.testing.assert_close(found, predict(policy), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, predict(policy, anchor=True), atol=1e-3)


@pytest.mark.parametrize(
    "settings", [{"lora_alpha": 5.0}, {"train": "none"}, {"num_ace_tokens": 0}, {"train": "full"}]
)
def test_what_is_saved_comes_back(tiny_pipeline: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    policy = make(tiny_pipeline, **settings)
    save_adapter(policy, tmp_path / "adapter")
    loaded = load_policy(tmp_path)
    assert loaded.config == policy.config
    assert all(torch.equal(p, policy.trainable[n]) for n, p in loaded.trainable.items())
    assert torch.equal(predict(loaded), predict(policy))


def test_another_base_is_refused(
    tiny_pipeline: Path, make_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    save_adapter(make(tiny_pipeline), tmp_path / "adapter", {"base": str(make_pipeline(seed=1))})
    with pytest.raises(
        CxrlError, match=r"trained from another base .*: its unet and vae and text encoder differ"
    ):
        load_policy(tmp_path)
    save_adapter(make(tiny_pipeline), tmp_path / "adapter", {"base_fingerprint": "0" * 64})
    with pytest.raises(CxrlError, match="adapter: was written by an earlier version of cxrl"):
        load_policy(tmp_path)


def test_damage_is_named(tiny_pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(CxrlError, match="no adapter and no checkpoint there"):
        load_policy(tmp_path)
    save_adapter(make(tiny_pipeline), tmp_path / "adapter")
    about = (tmp_path / "adapter" / "adapter.json").read_text()
    victim = tmp_path / "adapter" / "pytorch_lora_weights.safetensors"
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(CxrlError, match=r"cannot read .*pytorch_lora_weights.safetensors"):
        load_policy(tmp_path)
    (tmp_path / "adapter" / "adapter.json").write_text(about[:30])
    with pytest.raises(CxrlError, match=r"cannot read .*adapter.json"):
        load_policy(tmp_path)
    (tmp_path / "adapter" / "adapter.json").write_text("{}")
    with pytest.raises(CxrlError, match="not of this version of cxrl: format None"):
        load_policy(tmp_path)
    shutil.rmtree(tmp_path / "adapter")
    save_adapter(make(tiny_pipeline), tmp_path / "adapter", {"policy": {"lora_rnk": 3}})
    with pytest.raises(CxrlError, match=r"misses or has an unknown .*lora_rnk"):
        load_policy(tmp_path)


def test_an_adapter_that_was_changed_is_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_adapter(make(tiny_pipeline), folder, {"epochs": 3})
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        for place in (len(content) // 2, len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(CxrlError, match=f"{path.name}: its content has changed"):
                load_policy(tmp_path)
        path.unlink()
        with pytest.raises(CxrlError, match=f"{path.name}: it is missing"):
            load_policy(tmp_path)
        path.write_bytes(content)
    about = (folder / "adapter.json").read_text()
    for old, new in (
        ('"lora_alpha": 8.0', '"lora_alpha": 400.0'),
        ('"num_ace_tokens": 3', '"num_ace_tokens": 0'),
        ('"epochs": 3', '"epochs": 4'),
        ('"ace.safetensors": {', '"../ace.safetensors": {'),
    ):
        assert old in about
        (folder / "adapter.json").write_text(about.replace(old, new))
        with pytest.raises(CxrlError, match=r"adapter.json: its content has changed"):
            load_policy(tmp_path)
    (folder / "adapter.json").write_text(about)
    load_policy(tmp_path)


def test_the_files_of_others_stay_in_an_adapters_folder(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "unet.safetensors").write_text("of an adapter before")
    save_adapter(make(tiny_pipeline), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "unet.safetensors").exists()


def test_weights_of_another_shape_are_refused(tiny_pipeline: Path) -> None:
    policy = make(tiny_pipeline)
    weights = {n: p.clone() for n, p in policy.weights().items()}
    with pytest.raises(CxrlError, match=r"here: weight ace is \(2, 16\), expected \(3, 16\)"):
        policy.load_weights({**weights, "ace": weights["ace"][:2]}, "here")
    del weights["ace"]
    with pytest.raises(CxrlError, match="here: misses weight ace"):
        policy.load_weights(weights, "here")


def test_average(tiny_pipeline: Path) -> None:
    policy = make(tiny_pipeline, moved=False, ema_decay=0.5)
    start = {n: p.clone() for n, p in policy.weights().items()}
    with torch.no_grad():
        for p in policy.trainable.values():
            p.add_(1.0)
    live = predict(policy)
    policy.update_ema()  # young: decay 2/11
    policy.update_ema()  # 3/12
    for name, value in policy.ema.items():
        expected = start[name] + 1 - (2 / 11) * (3 / 12)
        torch.testing.assert_close(value, expected)
    with policy.ema_weights():
        assert not torch.equal(predict(policy), live)
        assert torch.equal(policy.trainable["ace"], policy.ema["ace"])
    assert torch.equal(predict(policy), live)
    for _ in range(50):
        policy.update_ema()
    assert all(torch.allclose(policy.ema[n], p) for n, p in policy.weights().items())


def test_learning_rates_are_separate(tiny_pipeline: Path) -> None:
    groups = make(tiny_pipeline).param_groups(1e-3, 1e-2, 1e-4)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("lora", 1e-3, 1e-4),
        ("ace", 1e-2, 1e-4),
    ]
    assert [g["name"] for g in make(tiny_pipeline, num_ace_tokens=0).param_groups(1, 1, 0)] == ["lora"]
    assert [g["name"] for g in make(tiny_pipeline, train="none").param_groups(1, 1, 0)] == ["ace"]


def test_trainable_weights_are_float32_in_a_bfloat16_network(tiny_pipeline: Path) -> None:
    for train in ("lora", "full"):
        policy = Policy(load_base(tiny_pipeline, dtype="bfloat16"), PolicyConfig(train=train))
        assert {p.dtype for p in policy.trainable.values()} == {torch.float32}
        output = predict(policy)
        assert output.dtype == torch.bfloat16
        assert predict(policy, anchor=True).dtype == torch.bfloat16


def test_gradient_checkpointing_keeps_less_and_changes_no_bit(tiny_pipeline: Path) -> None:
    def gradients(checkpointing: bool) -> tuple[Tensor, dict[str, Tensor], int]:
        base = load_base(tiny_pipeline, gradient_checkpointing=checkpointing)
        policy = Policy(base, PolicyConfig(lora_rank=2, num_ace_tokens=3), seed=1)
        kept = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = policy.predict(X, T, base.encode_text(TEXTS), prompt_of=torch.tensor([0, 2, 2]))[0]
        inside = kept
        output.square().mean().backward()
        return output, {n: p.grad for n, p in policy.trainable.items() if p.grad is not None}, inside

    (plain, expected, all_kept), (output, found, few_kept) = gradients(False), gradients(True)
    assert torch.equal(output, plain)
    assert expected.keys() == found.keys()
    assert "ace" in found
    for name, grad in expected.items():
        assert torch.equal(found[name], grad), name
    assert few_kept < all_kept / 2
