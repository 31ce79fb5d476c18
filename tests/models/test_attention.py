"""The policy's attention processor against diffusers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from peft import LoraConfig
from torch import Tensor

from cxrl.models.attention import PolicyAttention

TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}

MODULES: dict[str, dict[str, Any]] = {
    "cross": {"cross_attention_dim": 12},
    "self": {},
    "bias": {"bias": True, "cross_attention_dim": 12},
    "residual": {"residual_connection": True, "rescale_output_factor": 1.7, "norm_num_groups": 4},
    "norm_cross": {"cross_attention_dim": 12, "cross_attention_norm": "layer_norm"},
    "qk_norm": {"cross_attention_dim": 12, "qk_norm": "rms_norm"},
}


def outputs(module: Attention, *args: Any, **kwargs: Any) -> list[Tensor]:
    """Results of both processors, with the gradients of everything they use."""
    results = []
    for processor in (AttnProcessor2_0(), PolicyAttention()):
        module.set_processor(processor)
        module.zero_grad()
        output = module(*args, **kwargs)
        output.square().sum().backward()
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        results.append([output.detach(), *[g.clone() for g in grads]])
    stock, ours = results
    assert len(stock) == len(ours) > 1
    # Gradients of one backward have one scale of rounding: that of a key's bias is zero but for it.
    scale = max(float(b.abs().max()) for b in stock)
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * scale)
    return ours


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("ndim", [3, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_stock_processor(name: str, ndim: int, masked: bool) -> None:
    torch.manual_seed(0)
    module = Attention(query_dim=16, heads=2, dim_head=8, **MODULES[name])
    x = torch.randn(3, 16, 4, 5) if ndim == 4 else torch.randn(3, 20, 16)
    text = torch.randn(3, 7, 12) if "cross_attention_dim" in MODULES[name] else None
    mask = None
    if masked:
        keys = 20 if text is None else 7
        mask = torch.zeros(3, 1, keys).masked_fill(torch.rand(3, 1, keys) < 0.4, -10_000.0)
    outputs(module, x, encoder_hidden_states=text, attention_mask=mask)


@pytest.mark.parametrize("name", ["cross", "bias", "residual", "norm_cross", "qk_norm"])
@pytest.mark.parametrize("masked", [False, True])
def test_ace_is_a_longer_text(name: str, masked: bool) -> None:
    torch.manual_seed(0)
    module = Attention(query_dim=16, heads=2, dim_head=8, **{"cross_attention_dim": 12} | MODULES[name])
    x, text, ace = torch.randn(3, 20, 16), torch.randn(3, 7, 12), torch.randn(2, 12)
    mask = torch.zeros(3, 1, 7).masked_fill(torch.rand(3, 1, 7) < 0.4, -10_000.0) if masked else None
    longer = None if mask is None else torch.nn.functional.pad(mask, (0, 2))
    appended, segment = (ace.clone().requires_grad_() for _ in range(2))
    module.set_processor(AttnProcessor2_0())
    stock = module(x, torch.cat([text, appended.expand(3, -1, -1)], 1), attention_mask=longer)
    module.set_processor(PolicyAttention())
    ours = module(x, text, attention_mask=mask, ace=segment)
    torch.testing.assert_close(ours, stock, **TOLERANCE)
    stock.square().sum().backward()
    ours.square().sum().backward()
    torch.testing.assert_close(segment.grad, appended.grad, rtol=1e-4, atol=1e-5)


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=16,
    )


@pytest.mark.parametrize("lora", [False, True])
def test_the_unet_is_the_same(lora: bool) -> None:
    model = unet()
    if lora:
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        model.add_adapter(LoraConfig(r=4, lora_alpha=8, init_lora_weights="gaussian", target_modules=targets))
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.1)
    x, t, text = torch.randn(4, 4, 8, 8), torch.tensor([3, 70, 3, 999]), torch.randn(2, 9, 16)
    of, ace = torch.tensor([0, 1, 1, 0]), torch.randn(3, 16)
    with torch.no_grad():
        model.set_attn_processor(AttnProcessor2_0())
        stock = model(x, t, text[of]).sample
        model.set_attn_processor(PolicyAttention())
        repeated = model(x, t, text[of]).sample
        shared = model(x, t, text, cross_attention_kwargs={"kv_index": of}).sample
        with_ace = model(x, t, text, cross_attention_kwargs={"kv_index": of, "ace": ace}).sample
        model.set_attn_processor(AttnProcessor2_0())
        longer = model(x, t, torch.cat([text[of], ace.expand(4, -1, -1)], 1)).sample
    torch.testing.assert_close(repeated, stock, **TOLERANCE)
    torch.testing.assert_close(shared, stock, **TOLERANCE)
    torch.testing.assert_close(with_ace, longer, **TOLERANCE)
