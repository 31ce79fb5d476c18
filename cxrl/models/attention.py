"""The UNet's attention as the policy runs it: one K and V per prompt, LoRA folded into small projections.

A drop-in for diffusers' ``AttnProcessor2_0`` with three exact savings:

    kv_index [B]   row b attends to the text of prompt kv_index[b]: K and V are computed once per distinct
                   prompt (and once for the empty one of guidance), not once per sample and timestep
    ace [n, D]     the tokens appended to every prompt are projected once and attended to as a segment of
                   their own, never concatenated
    W + s·B·A      LoRA of a small layer is one matrix product and not three; wide layers, where the low
                   rank pays, and low-precision weights, which would round it away, keep peft's way

Shapes: B rows, P prompts, N positions, L tokens, H heads of D.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrl.ops import attention
from cxrl.ops.attention import concatenate_extra

FOLD_FACTOR = 16
"""Fold where in·out ≤ FOLD_FACTOR · rank · (in + out): thin products run at a fraction of the speed."""


class PolicyAttention:
    """Attention processor of the policy's UNet."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        kv_index: Tensor | None = None,
        ace: Tensor | None = None,
    ) -> Tensor:
        """[B, N, C] or [B, C, h, w] → the same shape.

        Args:
            attn: The ``Attention`` module.
            hidden_states: Queries, and keys of self-attention.
            encoder_hidden_states: Text, [B, L, D], or [P, L, D] with ``kv_index``; None is self-attention.
            attention_mask: Added to the scores.
            temb: Time embedding, for the group norm of some blocks.
            kv_index: int64 [B]; not used in self-attention.
            ace: [n, D], text tokens that follow those of every prompt; not used in self-attention. A mask
                never hides them.
        """
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        image_shape = hidden_states.shape if hidden_states.ndim == 4 else None
        if image_shape is not None:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        batch = hidden_states.shape[0]
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        text = encoder_hidden_states
        if text is None:
            text, kv_index, ace = hidden_states, None, None
        elif attn.norm_cross:
            if ace is not None:  # the norm may look across tokens
                text = torch.cat([text, ace.expand(len(text), -1, -1)], dim=1)
                attention_mask = None if attention_mask is None else F.pad(attention_mask, (0, len(ace)))
                ace = None
            text = attn.norm_encoder_hidden_states(text)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, text.shape[1], batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])

        q = _heads(project(attn.to_q, hidden_states)[0], attn.heads)
        sources = (text,) if ace is None else (text, ace[None])
        k, *more_k = (_heads(x, attn.heads) for x in project(attn.to_k, *sources))
        v, *more_v = (_heads(x, attn.heads) for x in project(attn.to_v, *sources))
        extra_k, extra_v = (more_k[0][0], more_v[0][0]) if more_k else (None, None)
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        if attn.norm_k is not None:
            k = attn.norm_k(k)
            extra_k = None if extra_k is None else attn.norm_k(extra_k)
        if attention_mask is None:
            out = attention(q, k, v, extra_k=extra_k, extra_v=extra_v, kv_index=kv_index, scale=attn.scale)
        else:
            k, v = concatenate_extra(q, k, v, extra_k, extra_v, kv_index)
            if extra_k is not None:
                attention_mask = F.pad(attention_mask, (0, extra_k.shape[1]))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask, scale=attn.scale)
        out = out.transpose(1, 2).flatten(2).to(q.dtype)
        out = attn.to_out[1](project(attn.to_out[0], out)[0])
        if image_shape is not None:
            out = out.transpose(1, 2).reshape(image_shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, H·D] → [B, H, N, D]."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def project(layer: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """A linear layer of every input, with LoRA folded into its weight, once, where that is cheaper."""
    weight = folded_weight(layer)
    if weight is None:
        return [layer(x) for x in inputs]
    bias = layer.get_base_layer().bias  # type: ignore[operator]
    return [F.linear(x, weight, bias) for x in inputs]


def folded_weight(layer: Any) -> Tensor | None:
    """W + s·B·A of a LoRA layer, differentiable in A and B; None where the layer should run by itself."""
    if not hasattr(layer, "lora_A") or layer.disable_adapters or layer.merged:
        return None
    base, names = layer.get_base_layer(), layer.active_adapters
    if len(names) != 1 or not isinstance(base, nn.Linear) or base.weight.dtype != torch.float32:
        return None
    down, up = layer.lora_A[names[0]].weight, layer.lora_B[names[0]].weight
    size = base.in_features * base.out_features
    if size > FOLD_FACTOR * down.shape[0] * (base.in_features + base.out_features):
        return None
    return torch.addmm(base.weight, up, down, alpha=layer.scaling[names[0]])
